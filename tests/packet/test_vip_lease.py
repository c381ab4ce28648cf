# SPDX-License-Identifier: Apache-2.0
"""What a gateway answers for, as one of several: ARP, neighbour discovery and echo for VIPs, within the lease."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr
from scapy.layers.l2 import ARP
from scapy.packet import Packet

from ebpf import layout
from ebpf.layout import AddressFlag, Method
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import (
    CLIENT4,
    CLIENT6,
    ICMP,
    IP,
    PORT,
    VIP4,
    VIP6,
    Ether,
    IPv6,
    Raw,
    assert_valid,
    client,
    link,
    network,
)
from tests.packet.peers import PEER_MAC

VIP_HELD = AddressFlag.VIP | AddressFlag.HELD


def arp(target: str = VIP4, operation: int = 1) -> bytes:
    return bytes(Ether(src=g.CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=operation, psrc=CLIENT4, pdst=target))


def solicitation(target: str = VIP6) -> bytes:
    header = IPv6(src=CLIENT6, dst="ff02::1:ff00:10", hlim=255)
    return bytes(link() / header / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=g.CLIENT_MAC))


def echo(family: int) -> Packet:
    request = ICMP(type=8, id=7, seq=3) if family == 4 else ICMPv6EchoRequest(id=7, seq=3)
    return link() / network(family) / request / Raw(b"ping")


ASKED = [
    ("held, lease ahead", VIP_HELD, 10.0, None, Verdict.PASS),
    ("held, lease over", VIP_HELD, -0.001, None, Verdict.DROP),
    ("not held", AddressFlag.VIP, 10.0, None, Verdict.DROP),
    ("own address", AddressFlag.OWN, -1.0, None, Verdict.PASS),
    ("held, node's lease ahead", VIP_HELD, None, 10.0, Verdict.PASS),
    ("held, node's lease over", VIP_HELD, None, -0.001, Verdict.DROP),
]


@pytest.mark.parametrize(("what", "flags", "lease_s", "node_lease_s", "verdict"), ASKED, ids=[row[0] for row in ASKED])
@pytest.mark.parametrize("ask", [arp, solicitation])
def test_requests_for_a_vip_are_answered_within_its_lease_only(
    gateway: g.Gateway,
    ask: object,
    what: str,
    flags: AddressFlag,
    lease_s: float | None,
    node_lease_s: float | None,
    verdict: Verdict,
) -> None:
    for vip in (VIP4, VIP6):
        gateway.put_address(vip, flags, lease_s or 0)
        if lease_s is None:
            entry = np.zeros((), layout.ADDRESS_ENTRY)
            entry["flags"] = int(flags)
            gateway.maps.addresses.set(layout.pack_address(vip).view(layout.ADDRESS_KEY), entry)
    if node_lease_s is not None:
        gateway.maps.lease.set(0, time.monotonic_ns() + int(node_lease_s * 1e9))
    frame = arp() if ask is arp else solicitation()
    assert gateway.run(frame) == (verdict, frame)
    expected = "PASS_NEIGHBOUR" if verdict is Verdict.PASS else "DROP_LEASE_EXPIRED"
    assert gateway.reasons() == {expected: 1}


def test_requests_for_other_addresses_and_replies_pass(gateway: g.Gateway) -> None:
    gateway.put_address(VIP4, AddressFlag.VIP)
    for frame in (arp("203.0.113.11"), arp(VIP4, operation=2), solicitation()):
        assert gateway.run(frame) == (Verdict.PASS, frame)


@pytest.mark.parametrize("family", [4, 6])
def test_echo_to_a_held_vip_is_answered(gateway: g.Gateway, family: int) -> None:
    gateway.put_address(VIP4 if family == 4 else VIP6, VIP_HELD)
    request = echo(family)
    verdict, out = gateway.run(bytes(request))
    assert verdict == Verdict.TX
    assert_valid(out)
    reply = Ether(out)
    layer = IP if family == 4 else IPv6
    assert (reply.src, reply.dst) == (g.GATEWAY_MAC, g.CLIENT_MAC)
    assert (reply[layer].src, reply[layer].dst) == (request[layer].dst, request[layer].src)
    assert bytes(reply)[-4:] == b"ping"
    assert (reply[ICMP].type if family == 4 else reply.payload.payload.type) == (0 if family == 4 else 129)


def test_echo_to_a_vip_without_its_lease_is_not(gateway: g.Gateway) -> None:
    gateway.put_address(VIP4, VIP_HELD, -1)
    assert gateway.run(bytes(echo(4)))[0] == Verdict.DROP
    assert gateway.run(bytes(echo(6)))[0] == Verdict.PASS


def test_a_frame_flooded_for_another_gateway_is_not_handled(gateway: g.Gateway, namespace: dict[str, int]) -> None:
    """A switch that lost a MAC address shows its frames to all: only their addressee forwards them."""
    backend = g.Backend(1, "198.51.100.1", mac=g.backend_mac(1))
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.DSR, [backend]))
    entry = np.zeros((), layout.INTERFACE_MAC)
    entry["ifindex"], entry["mac"] = namespace["outside"], g.mac_bytes(g.GATEWAY_MAC)
    gateway.maps.interface_macs.set(namespace["outside"] % layout.INTERFACE_COUNT_MAX, entry)
    ours, other = client(4, "A"), client(4, "A")
    other.dst = PEER_MAC
    for _ in range(2):
        assert gateway.run(bytes(other), ifindex=namespace["outside"]) == (Verdict.PASS, bytes(other))
        assert gateway.run(bytes(ours), ifindex=namespace["outside"])[0] == Verdict.REDIRECT
    assert gateway.reason_count("PASS_OTHER_HOST") == 2
    gateway.put_address(VIP4, AddressFlag.VIP)
    assert gateway.run(arp(), ifindex=namespace["outside"])[0] == Verdict.DROP
