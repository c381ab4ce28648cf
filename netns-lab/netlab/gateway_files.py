# SPDX-License-Identifier: Apache-2.0
"""Writes what an operator would write: each gateway's node file, the cluster's declarative file and the ring's key."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from netlab.topology import RING_PORT, Node, Service, Topology, Vip

# Generic XDP works on every veth, whatever hangs on its other end.
XDP_MODE = "generic"
KEY_BYTES = 32

Scalar = str | int | bool


def _value(value: Scalar | list[str]) -> str:
    """A TOML value; JSON's strings, numbers, booleans and lists are TOML's too."""
    return json.dumps(value)


def _table(header: str, **items: Scalar | list[str]) -> Iterator[str]:
    yield ""
    yield header
    for key, value in items.items():
        yield f"{key} = {_value(value)}"


def ring_addresses(topology: Topology, node: Node) -> list[str]:
    """host:port of a node on every ring segment it is on, the preferred first."""
    present = {interface.segment.name for interface in node.interfaces}
    addresses = [node.address(name, topology.ring_family) for name in topology.ring_segments if name in present]
    return [f"[{address}]:{RING_PORT}" if ":" in address else f"{address}:{RING_PORT}" for address in addresses]


def ring_only_segments(topology: Topology) -> set[str]:
    """Segments that carry nothing but the ring: no packets are balanced there."""
    return set(topology.ring_segments) - {vip.segment for vip in topology.vips}


def node_file(
    lab: str,
    topology: Topology,
    node: Node,
    directory: Path,
    ring_options: Mapping[str, Scalar],
    resources: Iterable[Mapping[str, Scalar]] = (),
) -> str:
    """The TOML file that holds what is local to one gateway. `directory` is the lab's; each node has its own below."""
    own = directory / node.name
    lines = [f"# Gateway {node.name} of lab {lab}", f"cluster = {_value(lab)}"]
    lines += _table("[node]", name=node.name, id=node.number, run_dir=str(own / "run"), state_dir=str(own / "state"))
    for interface in node.interfaces:
        if interface.segment.name not in ring_only_segments(topology):
            lines += _table("[[interface]]", name=interface.name, segment=interface.segment.name, xdp=XDP_MODE)
            if topology.ring_segments:
                # Without one of its data links a gateway of a cluster leaves the service to the others.
                lines += _table("[[resource]]", name=f"{interface.name}-link", kind="link", interface=interface.name)
    for resource in resources:
        lines += _table("[[resource]]", **resource)
    if topology.ring_segments:
        listen = ring_addresses(topology, node)
        lines += _table("[ring]", listen=listen, key_file=str(directory / "ring.key"), **ring_options)
        lines += ["", "[ring.peers]"]
        for peer in topology.of_role("gateway"):
            if peer.name != node.name:
                addresses = _value(ring_addresses(topology, peer))
                lines.append(f"{peer.name} = {{ id = {peer.number}, addresses = {addresses} }}")
    return "\n".join(lines) + "\n"


def _vip_table(vip: Vip) -> Iterator[str]:
    prefer = {"prefer": [vip.prefer]} if vip.prefer else {}
    place = {"segment": vip.segment} if vip.segment else {"announce": "route"}
    yield from _table("[[vip]]", address=vip.cidr, **place, **prefer)


def _service_tables(service: Service) -> Iterator[str]:
    yield from _table(
        "[[service]]",
        name=service.name,
        address=service.address,
        port=service.port,
        protocol=service.protocol,
        forward=service.forward,
        **service.options,
    )
    for target in service.targets:
        yield from _table(
            "[[service.backend]]", name=target.name, address=target.address, port=target.port, weight=target.weight
        )
    if service.health:
        yield from _table("[service.health]", **service.health)


def cluster_file(topology: Topology) -> str:
    """The declarative file for `lbctl apply -f`: VIPs, services and backends."""
    lines = [f"# What the gateways of topology {topology.name} serve"]
    for vip in topology.vips:
        lines += _vip_table(vip)
    if topology.ring_segments:
        # Also what merely passes through takes the same gateway in both directions.
        lines += _table("[routed]")
    for service in topology.services:
        lines += _service_tables(service)
    return "\n".join(lines) + "\n"


def add_health(path: Path, topology: Topology, service: str, health: dict[str, Scalar]) -> None:
    """Write the cluster file anew with one service checked for its backends' health."""
    changed = tuple(replace(s, health=health) if s.name == service else s for s in topology.services)
    path.write_text(cluster_file(replace(topology, services=changed)))


def write_all(lab: str, topology: Topology, directory: Path, ring_options: dict[str, Scalar] | None = None) -> None:
    """Node files as NODE/node.toml, the cluster's as cluster.toml, the key as ring.key, all below `directory`."""
    key = directory / "ring.key"
    key.touch(mode=0o600)
    key.write_text(secrets.token_hex(KEY_BYTES) + "\n")
    (directory / "cluster.toml").write_text(cluster_file(topology))
    write_nodes(lab, topology, directory, ring_options or {})


def write_nodes(
    lab: str,
    topology: Topology,
    directory: Path,
    ring_options: Mapping[str, Scalar],
    resources: Sequence[Mapping[str, Scalar]] = (),
) -> None:
    """The gateways' node files alone."""
    for node in topology.of_role("gateway"):
        own = directory / node.name
        for part in ("run", "state"):
            (own / part).mkdir(parents=True, exist_ok=True)
        (own / "node.toml").write_text(node_file(lab, topology, node, directory, ring_options, resources))
