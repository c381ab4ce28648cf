# SPDX-License-Identifier: Apache-2.0
"""Frames of the packet tables, written with scapy, and what must hold for every frame that is forwarded."""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet.gateway import CLIENT_MAC, GATEWAY_MAC, backend_mac

CLIENT4, CLIENT6 = "192.0.2.7", "2001:db8::7"
VIP4, VIP6 = "203.0.113.10", "2001:db8:ffff::10"
CLIENT_PORT, PORT = 40000, 80

__all__ = [
    "CLIENT4",
    "CLIENT6",
    "CLIENT_PORT",
    "ICMP",
    "IP",
    "PORT",
    "TCP",
    "UDP",
    "VIP4",
    "VIP6",
    "Ether",
    "ICMPerror",
    "IPerror",
    "IPv6",
    "Raw",
    "TCPerror",
    "UDPerror",
    "assert_valid",
    "client",
    "link",
    "network",
    "to_backend",
]


def link() -> Packet:
    """From the client's side to the gateway."""
    return Ether(src=CLIENT_MAC, dst=GATEWAY_MAC)


def to_backend(target: int) -> Packet:
    """From the gateway to a backend of the tests."""
    return Ether(src=GATEWAY_MAC, dst=backend_mac(target))


def network(family: int, source: str = "", destination: str = "", **fields: Any) -> Packet:
    """An IP header from the client to the VIP unless told otherwise."""
    if family == 4:
        return IP(src=source or CLIENT4, dst=destination or VIP4, **fields)
    return IPv6(src=source or CLIENT6, dst=destination or VIP6, **fields)


def client(family: int = 4, flags: str = "A", payload: bytes = b"", **fields: Any) -> Packet:
    """A TCP segment of the client."""
    segment = TCP(sport=CLIENT_PORT, dport=PORT, flags=flags, seq=1000, ack=2000)
    return link() / network(family, **fields) / segment / Raw(payload)


def assert_valid(frame: bytes) -> None:
    """Lengths and checksums of every layer are what scapy computes for the same content."""
    parsed = Ether(frame)
    fresh = parsed.copy()
    layer: Packet | None = fresh
    while layer is not None and not isinstance(layer, Raw):
        quoted = isinstance(layer, (IPerror, TCPerror, UDPerror, ICMPerror))
        for field in ("chksum", "cksum", "len", "plen"):
            fragment = getattr(fresh.getlayer(IP), "frag", 0)
            # What an ICMP error quotes is cut short, and a UDP checksum of zero means none.
            if not quoted and field in layer.fields and not fragment and not _no_checksum(layer, field):
                del layer.fields[field]
        layer = layer.payload if layer.payload else None
    assert bytes(fresh) == frame, (
        f"invalid:\n{parsed.show(dump=True)}\nshould be:\n{Ether(bytes(fresh)).show(dump=True)}"
    )


def _no_checksum(layer: Packet, field: str) -> bool:
    return isinstance(layer, UDP) and field == "chksum" and layer.chksum == 0
