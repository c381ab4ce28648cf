# SPDX-License-Identifier: Apache-2.0
"""What of a cluster file or a node file is allowed and probably not meant, on this gateway. Pure."""

from collections.abc import Collection, Mapping
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType

from lb.configuration.gateway_addresses import clash
from lb.configuration.model import ClusterConfig, Vip
from lb.configuration.node import NodeConfig

Network = IPv4Network | IPv6Network


def advice(
    config: ClusterConfig,
    networks: Mapping[str, Collection[Network]],
    forwarding: Mapping[int, bool],
    gateway_addresses: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """One sentence for each thing.

    `networks`: by segment, those in which this gateway has an address of its own. `forwarding`: whether the kernel
    forwards packets of an IP version. `gateway_addresses`: those that are a gateway's own → whose, in words.
    """
    on_segments = (vip for vip in config.vips if not vip.is_routed)
    found = [text for vip in on_segments if (text := _misplaced(vip, networks)) is not None]
    found += [f"vip {vip.address}: {fault}" for vip in config.vips if (fault := clash(vip, gateway_addresses))]
    for service in config.services:
        takers = [backend for backend in service.backends if backend.weight and not backend.drain]
        if service.forward != "local" and not takers:
            found.append(f"service {service.name}: no backend takes new connections")
    return found + _not_forwarded(config, forwarding)


def _misplaced(vip: Vip, networks: Mapping[str, Collection[Network]]) -> str | None:
    if vip.segment not in networks:
        known = ", ".join(sorted(networks))
        return f"vip {vip.address}: this gateway has no interface on segment {vip.segment}, only on {known}"
    inside = [network for network in networks[vip.segment] if network.version == vip.ip.version]
    if any(vip.ip in network for network in inside):
        return None
    there = ", ".join(sorted(str(network) for network in inside)) or f"no IPv{vip.ip.version} network"
    return (
        f"vip {vip.address}: outside the networks of segment {vip.segment} here ({there}): "
        "hosts there reach it only over a route"
    )


def _not_forwarded(config: ClusterConfig, forwarding: Mapping[int, bool]) -> list[str]:
    """Answers of nat backends and routed traffic go through the kernel's routing, which hosts have turned off."""
    needed = {service.ip.version for service in config.services if service.forward == "nat"}
    needed |= {vip.ip.version for vip in config.vips} if config.routed else set()
    setting = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
    return [
        f"this gateway does not forward IPv{version} packets: set {setting[version]} = 1"
        for version in sorted(needed)
        if not forwarding[version]
    ]


def node_advice(node: NodeConfig) -> list[str]:
    """One sentence for each thing in a node file: so far, a partition policy that cannot do its work."""
    if node.ring is None:
        return []
    found = []
    if node.ring.partition_policy == "majority" and len(node.ring.peers) == 1:
        found.append(
            "ring.partition_policy: one of two gateways is no majority, so neither serves while the other is away: "
            'use "continue", "critical", or a third gateway'
        )
    if node.ring.partition_policy == "critical" and not any(resource.critical for resource in node.resources):
        found.append(
            'ring.partition_policy: "critical" without a [[resource]] that is critical is "continue": '
            "say critical = true where it is meant"
        )
    return found
