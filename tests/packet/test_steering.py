# SPDX-License-Identifier: Apache-2.0
"""Connections that belong to one of several gateways: each is handed to its node, once, by MAC address or by tunnel."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig

from ebpf import layout
from ebpf.layout import Method, RecordKind, ServiceFlag
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import (
    CLIENT4,
    CLIENT_PORT,
    ICMP,
    IP,
    PORT,
    TCP,
    VIP4,
    VIP6,
    Ether,
    Raw,
    assert_valid,
    client,
    link,
    network,
)
from tests.packet.peers import OWN_TUNNEL, PEER, PEER_MAC, PEER_TUNNEL, from_peer, serve_nat, set_member, steer_all_to

KEY = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.TCP)


@pytest.mark.parametrize("flags", ["S", "A", "FA"])
def test_a_new_connection_goes_to_its_node_by_mac(cluster: g.Gateway, flags: str) -> None:
    packet = client(4, flags)
    expected = Ether(src=g.GATEWAY_MAC, dst=PEER_MAC) / packet.payload
    for _ in range(3):
        assert cluster.run(bytes(packet)) == (Verdict.TX, bytes(expected))
    assert cluster.reasons() == {"SENT_STEERED": 3}
    assert len(cluster.maps.connections.dump()[0]) == 0


@pytest.mark.parametrize("flags", ["S", "A"])
def test_what_a_peer_sent_is_never_steered_again(cluster: g.Gateway, flags: str) -> None:
    """Even with a table that says another node: wrong tables make no loops."""
    frame = from_peer(client(4, flags))
    assert cluster.run(frame) == (Verdict.PASS, frame)
    assert cluster.reasons() == {"NOTE_NOT_STEERED_TWICE": 1, "PASS_LOCAL": 1}


def test_an_existing_connection_stays_whatever_the_table_says(cluster: g.Gateway) -> None:
    steer_all_to(cluster, g.NODE)
    packet = bytes(client(4, "A"))
    assert cluster.run(packet)[0] == Verdict.PASS
    steer_all_to(cluster, PEER)
    assert [cluster.run(packet)[0] for _ in range(3)] == [Verdict.PASS] * 3


def test_a_connection_of_a_peer_stays_with_it_while_it_is_a_member(cluster: g.Gateway) -> None:
    cluster.put_connection(KEY, 1, 0, owner=PEER)
    steer_all_to(cluster, g.NODE)
    packet = bytes(client(4, "A"))
    assert Ether(cluster.run(packet)[1]).dst == PEER_MAC
    set_member(cluster, PEER, False)
    assert cluster.run(packet)[0] == Verdict.PASS
    entry = cluster.connection(KEY)
    assert entry is not None
    assert (int(entry["owner"]), int(entry["origin"])) == (g.NODE, PEER)
    assert [int(record["kind"]) for record in cluster.drain()] == [RecordKind.MOVED]
    assert cluster.reason_count("NOTE_TAKEN_OVER") == 1


def test_nodes_without_a_common_segment_use_a_tunnel(cluster: g.Gateway, namespace: dict[str, int]) -> None:
    packet = client(4, "S")
    verdict, out = cluster.run(bytes(packet), ifindex=namespace["outside"])
    assert verdict == Verdict.REDIRECT
    assert_valid(out)
    wrapped = Ether(out)
    assert (wrapped[IP].src, wrapped[IP].dst, wrapped[IP].proto) == (OWN_TUNNEL, PEER_TUNNEL, 4)
    assert bytes(wrapped[IP].payload) == bytes(packet.payload)
    assert cluster.reasons() == {"SENT_STEERED_TUNNEL": 1}


def test_a_node_that_cannot_be_reached_is_an_alarm(cluster: g.Gateway) -> None:
    cluster.maps.node_paths.clear()
    set_member(cluster, PEER, True)
    assert cluster.run(bytes(client(4, "S")))[0] == Verdict.DROP
    assert cluster.reasons() == {"DROP_NODE_UNREACHABLE": 1}


@pytest.mark.parametrize("router", ["another", "the peer itself, on a segment that both share"])
@pytest.mark.parametrize("family", [4, 6])
def test_a_peers_tunnel_is_unwrapped_and_not_steered_again(cluster: g.Gateway, family: int, router: str) -> None:
    if family == 6:
        cluster.put_service(g.Service(2, VIP6, PORT, g.TCP, Method.LOCAL, flags=ServiceFlag.STEERED))
    inner = client(family, "S").payload
    wrapped = link() / IP(src=PEER_TUNNEL, dst=OWN_TUNNEL, proto=4 if family == 4 else 41) / inner
    verdict, out = cluster.run(bytes(wrapped) if router == "another" else from_peer(wrapped))
    assert verdict == Verdict.PASS
    assert bytes(Ether(out).payload) == bytes(inner)
    assert cluster.reasons() == {"NOTE_NOT_STEERED_TWICE": 1, "PASS_LOCAL": 1}


def test_an_inner_tunnel_is_not_unwrapped_twice(cluster: g.Gateway) -> None:
    inner = IP(src=PEER_TUNNEL, dst=OWN_TUNNEL, proto=4) / client(4, "S").payload
    wrapped = link() / IP(src=PEER_TUNNEL, dst=OWN_TUNNEL, proto=4) / inner
    verdict, out = cluster.run(bytes(wrapped))
    assert (verdict, bytes(Ether(out).payload)) == (Verdict.PASS, bytes(inner))
    assert cluster.reasons() == {"PASS_PROTOCOL": 1}


NOT_FOR_US = {
    "to another gateway, by way of this one": IP(src=PEER_TUNNEL, dst="198.51.100.3", proto=4),
    "from a stranger": IP(src="198.51.100.77", dst=OWN_TUNNEL, proto=4),
    "the first part of it": IP(src=PEER_TUNNEL, dst=OWN_TUNNEL, proto=4, flags="MF"),
    "a later part of it": IP(src=PEER_TUNNEL, dst=OWN_TUNNEL, proto=4, frag=100),
}


@pytest.mark.parametrize("what", NOT_FOR_US)
def test_other_tunnels_are_left_to_the_kernel(cluster: g.Gateway, what: str) -> None:
    frame = bytes(link() / NOT_FOR_US[what] / client(4, "S").payload)
    assert cluster.run(frame) == (Verdict.PASS, frame)
    assert cluster.reasons() == {"PASS_PROTOCOL": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_too_big_for_the_tunnel_to_its_node_is_told_to_the_sender(
    cluster: g.Gateway, namespace: dict[str, int], family: int
) -> None:
    cluster.put_service(g.Service(2, VIP6, PORT, g.TCP, Method.LOCAL, flags=ServiceFlag.STEERED))
    room = 1500 - 20
    fits = client(family, "A") / Raw(bytes(room - len(client(family, "A").payload)))
    if family == 4:
        fits[IP].flags = "DF"
    assert cluster.run(bytes(fits), ifindex=namespace["outside"])[0] == Verdict.REDIRECT
    verdict, out = cluster.run(bytes(fits / Raw(b"x")), ifindex=namespace["outside"])
    assert verdict == Verdict.TX
    assert_valid(out)
    error = Ether(out)[ICMP] if family == 4 else Ether(out)[ICMPv6PacketTooBig]
    assert (error.nexthopmtu if family == 4 else error.mtu) == room
    assert cluster.reasons() == {"SENT_STEERED_TUNNEL": 1, "SENT_TOO_BIG": 1}


def test_where_the_next_hop_to_its_node_is_unknown_the_kernel_sends_it(
    cluster: g.Gateway, namespace: dict[str, int]
) -> None:
    set_member(cluster, PEER, True, "198.51.100.66")
    packet = client(4, "S")
    verdict, out = cluster.run(bytes(packet), ifindex=namespace["outside"])
    assert verdict == Verdict.PASS
    assert_valid(out)
    wrapped = Ether(out)
    assert (wrapped.src, wrapped.dst) == (packet.src, packet.dst)
    assert (wrapped[IP].src, wrapped[IP].dst, bytes(wrapped[IP].payload)) == (
        OWN_TUNNEL,
        "198.51.100.66",
        bytes(packet.payload),
    )
    assert cluster.reasons() == {"PASS_NEIGHBOUR_UNKNOWN": 1}


def test_tunnel_ends_of_different_ip_versions_do_not_meet(cluster: g.Gateway, namespace: dict[str, int]) -> None:
    set_member(cluster, PEER, True, "2001:db8:eeee::2")
    assert cluster.run(bytes(client(4, "S")), ifindex=namespace["outside"])[0] == Verdict.DROP
    assert cluster.reasons() == {"DROP_NODE_UNREACHABLE": 1}


def test_icmp_errors_about_a_local_connection_go_to_its_node(cluster: g.Gateway) -> None:
    cluster.put_connection(KEY, 1, 0, owner=PEER)
    quoted = IP(src=VIP4, dst=CLIENT4) / TCP(sport=PORT, dport=CLIENT_PORT)
    error = link() / IP(src="192.0.2.1", dst=VIP4) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted
    verdict, out = cluster.run(bytes(error))
    assert (verdict, Ether(out).dst) == (Verdict.TX, PEER_MAC)
    frame = from_peer(error)
    assert cluster.run(frame) == (Verdict.PASS, frame)


def test_a_repeated_first_packet_follows_the_new_table(cluster: g.Gateway) -> None:
    """What the old table left half open here must not keep it here: the answers go by the new one."""
    serve_nat(cluster)
    steer_all_to(cluster, g.NODE)
    first = link() / network(4) / TCP(sport=2000, dport=81, flags="S")
    assert Ether(cluster.run(bytes(first))[1]).dst == g.backend_mac(1)
    steer_all_to(cluster, PEER)
    assert Ether(cluster.run(bytes(first))[1]).dst == PEER_MAC


def test_the_short_way_of_steering_knows_a_peer_too(cluster: g.Gateway) -> None:
    packet = client(4, "A")
    assert [cluster.run(bytes(packet))[0] for _ in range(2)] == [Verdict.TX] * 2
    assert cluster.run(from_peer(packet))[0] == Verdict.PASS
    counter = cluster.maps.service_counters.get(1)
    assert counter is not None
    assert int(counter["steered"].sum()) == 2
