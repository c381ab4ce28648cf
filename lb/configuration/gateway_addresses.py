# SPDX-License-Identifier: Apache-2.0
"""No VIP may be the own address of a gateway. Pure.

Whoever holds such a VIP takes that gateway off its segment, out of the ring even: neighbours send to the holder what is
meant for the gateway, and the gateway itself does not answer for an address that it does not hold.
"""

from collections.abc import Mapping
from ipaddress import ip_address

from lb.configuration.cross_check import Fault
from lb.configuration.model import ClusterConfig, Vip
from lb.configuration.node import NodeConfig, split_address

ALLOWED = "an address that no gateway has: rainlb puts VIPs onto interfaces itself, so take a leftover off there first"


def ring_addresses(node: NodeConfig) -> dict[str, str]:
    """The gateways' addresses in the ring, as a node file names them → whose each is, in words."""
    if node.ring is None:
        return {}
    by_name = {peer: each.addresses for peer, each in node.ring.peers.items()} | {node.node.name: node.ring.listen}
    return {_host(text): f"gateway {name} (in the ring)" for name, texts in by_name.items() for text in texts}


def _host(text: str) -> str:
    return str(ip_address(split_address(text)[0]))


def clash(vip: Vip, known: Mapping[str, str]) -> str:
    """What is wrong with a VIP in view of the gateways' addresses `known` (→ whose, in words); empty if nothing is."""
    whose = known.get(vip.host)
    return f"is the own address of {whose}, which nobody would reach any more" if whose else ""


def clashes(config: ClusterConfig, known: Mapping[str, str]) -> list[Fault]:
    """One fault for each VIP that is an address of a gateway."""
    return [
        Fault(("vip", index, "address"), vip.address, problem, ALLOWED)
        for index, vip in enumerate(config.vips)
        if (problem := clash(vip, known))
    ]
