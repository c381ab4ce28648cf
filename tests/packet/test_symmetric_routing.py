# SPDX-License-Identifier: Apache-2.0
"""Both directions of a connection meet on one gateway: routed traffic, and the answers of `nat` backends."""

from __future__ import annotations

import pytest
from scapy.packet import Packet

from ebpf import layout
from ebpf.layout import AddressFlag, Method, ServiceFlag, Setting
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import CLIENT4, IP, TCP, UDP, VIP4, Ether, link, network
from tests.packet.peers import PEER, PEER_MAC, serve_nat, steer_all_to, steer_half


def test_early_answers_of_nat_backends_follow_the_client_to_its_node(cluster: g.Gateway) -> None:
    """First packet and first answer arrive at different gateways: both are handed to the same node."""
    serve_nat(cluster)
    steer_half(cluster)
    for port in range(2000, 2064):
        there = link() / network(4) / TCP(sport=port, dport=81, flags="S")
        back = link() / IP(src="198.51.100.1", dst=CLIENT4) / TCP(sport=8080, dport=port, flags="SA")
        cluster.maps.half_open.clear()
        answered = cluster.run(bytes(back))
        asked = cluster.run(bytes(there))
        assert (Ether(asked[1]).dst == PEER_MAC) == (Ether(answered[1]).dst == PEER_MAC)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_both_directions_of_routed_traffic_meet(cluster: g.Gateway, family: int, transport: Packet) -> None:
    """One entry, one node, whichever side speaks first."""
    routed = g.Service(9, "::", 0, 0, Method.LOCAL, flags=ServiceFlag.STEERED)
    cluster.put_service(routed)
    cluster.maps.services.set(layout.ROUTED_ENDPOINT, 9)
    cluster.flags(Setting.ROUTED)
    steer_half(cluster)
    inside, outside = ("10.5.0.1", "192.0.2.9") if family == 4 else ("fd05::1", "2001:db8::9")
    here = 0
    for port in range(3000, 3064):
        one = link() / network(family, inside, outside) / transport(sport=port, dport=443)
        two = link() / network(family, outside, inside) / transport(sport=443, dport=port)
        if transport is TCP:
            one[TCP].flags, two[TCP].flags = "A", "A"
        verdicts = {cluster.run(bytes(packet))[0] for packet in (one, two, one, two)}
        assert len(verdicts) == 1
        here += verdicts == {Verdict.PASS}
    assert 16 <= here <= 48
    # A first datagram is remembered in the cache of recent flows alone, where another flow may take its place.
    held = len(cluster.maps.connections.dump()[0])
    assert held == here if transport is TCP else here - 3 <= held <= here


@pytest.mark.parametrize(
    ("what", "source", "destination", "reason"),
    [
        ("to the gateway itself", "192.0.2.9", "192.0.2.254", "PASS_OWN_ADDRESS"),
        ("from the gateway itself", "192.0.2.254", "192.0.2.9", "PASS_OWN_ADDRESS"),
        ("to a group", "192.0.2.9", "224.0.0.5", "PASS_NOT_OURS"),
        ("link-local", "169.254.1.1", "192.0.2.9", "PASS_NOT_OURS"),
        ("IPv6 group", "2001:db8::9", "ff05::2", "PASS_NOT_OURS"),
        ("IPv6 link-local", "fe80::1", "2001:db8::9", "PASS_NOT_OURS"),
    ],
)
def test_routed_leaves_alone(cluster: g.Gateway, what: str, source: str, destination: str, reason: str) -> None:
    cluster.put_service(g.Service(9, "::", 0, 0, Method.LOCAL, flags=ServiceFlag.STEERED))
    cluster.maps.services.set(layout.ROUTED_ENDPOINT, 9)
    cluster.flags(Setting.ROUTED)
    cluster.put_address("192.0.2.254", AddressFlag.OWN)
    header = network(6 if ":" in source else 4, source, destination)
    packet = bytes(link() / header / TCP(sport=1, dport=22, flags="S"))
    assert cluster.run(packet) == (Verdict.PASS, packet), what
    assert cluster.reasons() == {reason: 1}


def routed_cluster(gateway: g.Gateway) -> None:
    serve_nat(gateway)
    gateway.put_service(g.Service(9, "::", 0, 0, Method.LOCAL, flags=ServiceFlag.STEERED))
    gateway.maps.services.set(layout.ROUTED_ENDPOINT, 9)
    gateway.flags(Setting.ROUTED)


def backend_answer(port: int, flags: str = "SA") -> Packet:
    back = IP(src="198.51.100.1", dst=CLIENT4) / TCP(sport=8080, dport=port, flags=flags)
    return Ether(src=g.backend_mac(1), dst=g.GATEWAY_MAC) / back


@pytest.mark.parametrize("flags", ["SA", "A", "PA", "FA", "RA"])
def test_an_answer_of_an_unknown_connection_says_itself_which_it_is(cluster: g.Gateway, flags: str) -> None:
    """Made through a gateway that died before it could tell: untranslated the answer would make the client reset."""
    routed_cluster(cluster)
    steer_all_to(cluster, g.NODE)
    _, out = cluster.run(bytes(backend_answer(2000, flags)))
    assert (Ether(out)[IP].src, Ether(out)[TCP].sport) == (VIP4, 81)
    key = layout.flow_key(CLIENT4, 2000, VIP4, 81, g.TCP)
    assert (cluster.connection(key) is not None) == (flags in ("A", "PA"))


@pytest.mark.parametrize("owner", [g.NODE, PEER])
@pytest.mark.parametrize("flags", ["SA", "A", "FA", "RA"])
def test_what_a_backend_says_to_the_gateway_itself_is_no_answer(cluster: g.Gateway, flags: str, owner: int) -> None:
    """A health check's connection, from an address that no client has: neither steered nor translated."""
    routed_cluster(cluster)
    steer_all_to(cluster, owner)
    cluster.put_address(CLIENT4, AddressFlag.OWN)
    sent = bytes(backend_answer(2000, flags))
    assert cluster.run(sent) == (Verdict.PASS, sent)
    assert cluster.reasons() == {"PASS_OWN_ADDRESS": 1}


def test_a_late_answer_of_another_backend_is_dropped(cluster: g.Gateway) -> None:
    """The client's port has gone on to another connection."""
    routed_cluster(cluster)
    steer_all_to(cluster, g.NODE)
    cluster.put_connection(layout.flow_key(CLIENT4, 2000, VIP4, 81, g.TCP), 3, 2)
    assert cluster.run(bytes(backend_answer(2000, "A")))[0] == Verdict.DROP
    assert cluster.reasons() == {"DROP_ANSWER_EARLY": 1}


def test_direct_connections_to_a_backend_meet_on_one_node_and_stay_untranslated(cluster: g.Gateway) -> None:
    routed_cluster(cluster)
    steer_half(cluster)
    here = 0
    for port in range(2000, 2064):
        there = link() / network(4, destination="198.51.100.1") / TCP(sport=port, dport=8080, flags="S")
        asked, answered = cluster.run(bytes(there)), cluster.run(bytes(backend_answer(port)))
        assert asked[0] == answered[0]
        here += asked[0] == Verdict.PASS
        if asked[0] == Verdict.PASS:
            assert answered[1] == bytes(backend_answer(port))
    assert 16 <= here <= 48
