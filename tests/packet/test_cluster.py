# SPDX-License-Identifier: Apache-2.0
"""What a gateway does as one of several: leases, echo, steering, symmetric routing, ownership."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, ICMPv6PacketTooBig
from scapy.layers.l2 import ARP
from scapy.packet import Packet

from ebpf import layout
from ebpf.layout import AddressFlag, Method, NodeFlag, RecordKind, ServiceFlag, Setting
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import (
    CLIENT4,
    CLIENT6,
    CLIENT_PORT,
    ICMP,
    IP,
    PORT,
    TCP,
    UDP,
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

PEER, PEER_MAC = 2, "02:00:00:00:00:02"
OWN_TUNNEL, PEER_TUNNEL = "198.51.100.254", "198.51.100.2"
LOCAL = g.Service(1, VIP4, PORT, g.TCP, Method.LOCAL, flags=ServiceFlag.STEERED)
KEY = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.TCP)
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


@pytest.fixture
def cluster(gateway: g.Gateway) -> g.Gateway:
    """Two members; every new connection belongs to the peer by the table."""
    gateway.flags(Setting.STEERING)
    for node, end in ((g.NODE, OWN_TUNNEL), (PEER, PEER_TUNNEL)):
        set_member(gateway, node, True, end)
    path, key = np.zeros((), layout.NODE_PATH), np.zeros((), layout.NODE_PATH_KEY)
    path["mac"], path["source_mac"] = g.mac_bytes(PEER_MAC), g.mac_bytes(g.GATEWAY_MAC)
    key["ifindex"], key["node"] = g.LOOPBACK, PEER
    gateway.maps.node_paths.set(key, path)
    mac = np.zeros((), layout.MAC_KEY)
    mac["mac"] = g.mac_bytes(PEER_MAC)
    gateway.maps.peer_macs.set(mac, PEER)
    gateway.maps.peer_addresses.set(layout.pack_address(PEER_TUNNEL).view(layout.ADDRESS_KEY), PEER)
    steer_all_to(gateway, PEER)
    gateway.put_service(LOCAL)
    return gateway


def steer_all_to(gateway: g.Gateway, node: int) -> None:
    gateway.maps.replace_table(layout.STEERING_TABLE, np.full(layout.TABLE_SLOTS_DEFAULT, node, np.uint16))
    gateway.settings()


def set_member(gateway: g.Gateway, node: int, member: bool, tunnel_end: str = "") -> None:
    entry = np.zeros((), layout.NODE_ENTRY)
    entry["flags"] = int(NodeFlag.MEMBER) if member else 0
    if tunnel_end:
        entry["address"] = layout.pack_address(tunnel_end)
    gateway.maps.nodes.set(node, entry)


def from_peer(packet: Packet) -> bytes:
    copy = packet.copy()
    copy.src = PEER_MAC
    return bytes(copy)


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
    assert int(entry["owner"]) == g.NODE
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


def serve_nat(gateway: g.Gateway) -> None:
    backend = g.Backend(1, "198.51.100.1", 8080, g.backend_mac(1))
    flags = ServiceFlag.REMEMBER_NEW | ServiceFlag.STEERED
    gateway.put_service(g.Service(3, VIP4, 81, g.TCP, Method.NAT, [backend], flags=flags))


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


def steer_half(gateway: g.Gateway) -> None:
    slots = np.resize(np.array([g.NODE, PEER], np.uint16), layout.TABLE_SLOTS_DEFAULT)
    gateway.maps.replace_table(layout.STEERING_TABLE, slots)
    gateway.settings()


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


def test_icmp_errors_about_a_local_connection_go_to_its_node(cluster: g.Gateway) -> None:
    cluster.put_connection(KEY, 1, 0, owner=PEER)
    quoted = IP(src=VIP4, dst=CLIENT4) / TCP(sport=PORT, dport=CLIENT_PORT)
    error = link() / IP(src="192.0.2.1", dst=VIP4) / ICMP(type=3, code=4, nexthopmtu=1400) / quoted
    verdict, out = cluster.run(bytes(error))
    assert (verdict, Ether(out).dst) == (Verdict.TX, PEER_MAC)
    frame = from_peer(error)
    assert cluster.run(frame) == (Verdict.PASS, frame)


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
