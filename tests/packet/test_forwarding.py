# SPDX-License-Identifier: Apache-2.0
"""`dsr` and `tunnel`: what leaves, byte for byte, on the full path and on the short ways."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet

from ebpf.layout import Method, TargetFlag
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import (
    CLIENT4,
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
    to_backend,
)

VIPS = {4: VIP4, 6: VIP6}
BACKENDS = {4: "198.51.100.1", 6: "2001:db8:eeee::1"}


def serve(gateway: g.Gateway, method: Method, family: int, backend_family: int, **backend: object) -> None:
    options = {"mac": g.backend_mac(1), **backend}
    target = g.Backend(1, BACKENDS[backend_family], **options)  # type: ignore[arg-type]
    for number, protocol in ((1, g.TCP), (2, g.UDP)):
        target = g.Backend(number, BACKENDS[backend_family], **options)  # type: ignore[arg-type]
        gateway.put_service(g.Service(number, VIPS[family], PORT, protocol, method, [target]))


def outer(frame: bytes) -> Packet:
    return Ether(frame).payload


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("backend_family", [4, 6])
def test_tunnel_wraps_the_packet_unchanged(gateway: g.Gateway, family: int, backend_family: int) -> None:
    """All four combinations; first packet, establishing packet and the two short ways alike."""
    serve(gateway, Method.TUNNEL, family, backend_family)
    for flags in ("S", "A", "PA", "A", "FA", "R"):
        packet = client(family, flags, b"hello")
        verdict, out = gateway.run(bytes(packet))
        assert verdict == Verdict.TX
        assert_valid(out)
        header = outer(out)
        assert bytes(header.payload) == bytes(packet.payload)
        assert header.dst == BACKENDS[backend_family]
        assert (header.ttl if backend_family == 4 else header.hlim) == 64
        assert (Ether(out).src, Ether(out).dst) == (g.GATEWAY_MAC, g.backend_mac(1))


def test_tunnel_source_varies_by_flow_and_stays_within_one(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 4, 4)
    sources: list[str] = []
    for port in range(1024, 1088):
        packet = link() / network(4) / TCP(sport=port, dport=PORT, flags="A")
        seen = {outer(gateway.run(bytes(packet))[1]).src for _ in range(3)}
        assert len(seen) == 1
        sources += seen
    assert all(source.startswith("172.16.") for source in sources)
    assert len(set(sources)) > 60


@pytest.mark.parametrize("family", [4, 6])
def test_dsr_changes_the_link_header_only(gateway: g.Gateway, family: int) -> None:
    serve(gateway, Method.DSR, family, family)
    for flags in ("S", "A", "A", "A"):
        packet = client(family, flags, b"x" * 100)
        expected = to_backend(1) / packet.payload
        assert gateway.run(bytes(packet)) == (Verdict.TX, bytes(expected))


def test_dsr_cannot_cross_families(gateway: g.Gateway) -> None:
    serve(gateway, Method.DSR, 6, 4)
    assert gateway.run(bytes(client(6, "A")))[0] == Verdict.DROP
    assert gateway.run(bytes(client(6, "A")))[0] == Verdict.DROP
    assert gateway.reasons() == {"DROP_FAMILY": 2}


@pytest.mark.parametrize(
    ("what", "headers"),
    [
        ("one tag", Dot1Q(vlan=5)),
        ("two tags", Dot1AD(vlan=7) / Dot1Q(vlan=5)),
        ("IP options", None),
    ],
)
def test_tags_and_options_take_the_full_path(gateway: g.Gateway, what: str, headers: Packet | None) -> None:
    serve(gateway, Method.TUNNEL, 4, 4)
    options = [("NOP", None)] if headers is None else []
    inner = (
        network(4, options=[scapy_option() for _ in options]) / TCP(sport=1, dport=PORT, flags="A") / Raw(b"0123456789")
    )
    frame = link() / headers / inner if headers is not None else link() / inner
    for _ in range(3):
        verdict, out = gateway.run(bytes(frame))
        assert verdict == Verdict.TX, what
        assert bytes(outer(out).payload) == bytes(IP(bytes(inner))), what
        assert Ether(out).type == 0x0800


def scapy_option() -> Packet:
    from scapy.layers.inet import IPOption_NOP

    return IPOption_NOP()


def test_extension_headers_lead_to_the_same_connection(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 6, 6)
    segment = TCP(sport=1, dport=PORT, flags="A")
    plain = link() / network(6) / segment
    extended = link() / network(6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / segment
    assert gateway.run(bytes(plain))[0] == Verdict.TX
    verdict, out = gateway.run(bytes(extended))
    assert verdict == Verdict.TX
    assert bytes(outer(out).payload) == bytes(extended.payload)
    assert len(gateway.maps.connections.dump()[0]) == 1


def test_a_backend_on_a_vlan_gets_tagged_frames(gateway: g.Gateway) -> None:
    serve(gateway, Method.DSR, 4, 4, vlan=9)
    packet = client(4, "A")
    expected = to_backend(1) / Dot1Q(vlan=9) / packet.payload
    for _ in range(3):
        assert gateway.run(bytes(packet)) == (Verdict.TX, bytes(expected))


def test_another_interface_is_reached_by_redirect(gateway: g.Gateway) -> None:
    serve(gateway, Method.DSR, 4, 4, ifindex=g.OTHER_INTERFACE)
    for flags in ("S", "A", "A", "A"):
        assert gateway.run(bytes(client(4, flags)))[0] == Verdict.REDIRECT


def test_too_big_for_the_tunnel_is_told_to_an_ipv4_sender(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 4, 4)
    packet = _df(client(4, "A", b"z" * 1441))
    for _ in range(2):
        verdict, out = gateway.run(bytes(packet))
        assert verdict == Verdict.TX
        assert_valid(out)
        answer = Ether(out)
        assert (answer.src, answer.dst) == (g.GATEWAY_MAC, g.CLIENT_MAC)
        assert (answer[IP].src, answer[IP].dst) == (VIP4, CLIENT4)
        assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1480)
        assert bytes(answer[ICMP].payload) == bytes(packet.payload)[:28]
    assert gateway.reason_count("SENT_TOO_BIG") == 2
    assert gateway.run(bytes(_df(client(4, "A", b"z" * 1440))))[0] == Verdict.TX
    assert gateway.reason_count("SENT_TOO_BIG") == 2


def _df(packet: Packet) -> Packet:
    packet[IP].flags = "DF"
    return packet


def test_too_big_without_dont_fragment_is_dropped(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 4, 4)
    assert gateway.run(bytes(client(4, "A", b"z" * 1441)))[0] == Verdict.DROP
    assert gateway.reasons() == {"DROP_TOO_BIG": 1}


def test_too_big_is_told_to_an_ipv6_sender(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 6, 6)
    packet = client(6, "A", b"z" * 1401)
    verdict, out = gateway.run(bytes(packet))
    assert verdict == Verdict.TX
    assert_valid(out)
    answer = Ether(out)
    assert (answer[IPv6].src, answer[IPv6].dst) == (VIP6, packet[IPv6].src)
    assert answer[ICMPv6PacketTooBig].mtu == 1460
    assert bytes(answer[ICMPv6PacketTooBig].payload) == bytes(packet.payload)[:56]


def test_a_reduced_size_comes_back_with_its_tags(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 4, 4)
    packet = link() / Dot1AD(vlan=7) / Dot1Q(vlan=5) / _df(client(4, "A", b"z" * 1441)).payload
    verdict, out = gateway.run(bytes(packet))
    assert verdict == Verdict.TX
    answer = Ether(out)
    assert (answer[Dot1AD].vlan, answer[Dot1Q].vlan, answer[ICMP].code) == (7, 5, 4)
    assert_valid(bytes(Ether(src=answer.src, dst=answer.dst) / answer[IP]))


def test_any_port_service_keeps_exact_ones_first(gateway: g.Gateway) -> None:
    exact = g.Backend(1, "198.51.100.1", mac=g.backend_mac(1))
    any_port = g.Backend(2, "198.51.100.2", mac=g.backend_mac(2))
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.DSR, [exact]))
    gateway.put_service(g.Service(2, VIP4, 0, g.TCP, Method.DSR, [any_port]))
    for port, target in ((PORT, 1), (PORT + 1, 2), (65535, 2)):
        for flags in ("S", "A", "A"):
            packet = link() / network(4) / TCP(sport=5, dport=port, flags=flags)
            assert Ether(gateway.run(bytes(packet))[1]).dst == g.backend_mac(target)


def test_udp_service_leaves_tcp_alone(gateway: g.Gateway) -> None:
    target = g.Backend(1, BACKENDS[4], mac=g.backend_mac(1))
    gateway.put_service(g.Service(1, VIP4, PORT, g.UDP, Method.TUNNEL, [target]))
    packet = client(4, "S")
    assert gateway.run(bytes(packet)) == (Verdict.PASS, bytes(packet))
    assert gateway.reasons() == {"PASS_NOT_OURS": 1}
    datagram = link() / network(4) / UDP(sport=1, dport=PORT) / Raw(b"q")
    assert gateway.run(bytes(datagram))[0] == Verdict.TX


def test_bytes_and_packets_are_counted_per_target_whatever_the_way(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL, 4, 4)
    frames = [bytes(client(4, flags, b"abc")) for flags in ("S", "A", "A", "A", "FA")]
    for frame in frames:
        gateway.run(frame)
    counter = gateway.maps.target_counters.get(1)
    assert counter is not None
    assert int(counter["packets"].sum()) == len(frames)
    assert int(counter["bytes"].sum()) == sum(map(len, frames))
    assert (int(counter["opened"].sum()), int(counter["closed"].sum())) == (1, 1)


def test_an_unresolved_backend_without_a_route_is_dropped_and_counted(gateway: g.Gateway) -> None:
    lost = g.Backend(1, "10.77.0.1")
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.DSR, [lost]))
    assert gateway.run(bytes(client(4, "A")))[0] == Verdict.DROP
    assert set(gateway.reasons()) <= {"DROP_NO_ROUTE", "DROP_NEIGHBOUR_UNKNOWN"}


def test_a_dead_backend_is_not_served_by_the_short_way(gateway: g.Gateway) -> None:
    serve(gateway, Method.DSR, 4, 4)
    for _ in range(3):
        assert gateway.run(bytes(client(4, "A")))[0] == Verdict.TX
    service = g.Service(1, VIP4, PORT, g.TCP, Method.DSR)
    gateway.put_target(service, g.Backend(1, BACKENDS[4], mac=g.backend_mac(1), flags=TargetFlag(0)))
    assert Ether(gateway.run(bytes(client(4, "A")))[1])[TCP].flags == "R"
