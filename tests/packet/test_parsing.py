# SPDX-License-Identifier: Apache-2.0
"""What is not balanced: malformed, foreign, cut short, fragmented. One table of frames and one of fragments."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q
from scapy.packet import Packet

from ebpf.layout import Method, ServiceFlag
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import IP, PORT, TCP, UDP, VIP4, VIP6, Ether, IPv6, Raw, assert_valid, client, link, network


@pytest.fixture
def serving(gateway: g.Gateway) -> g.Gateway:
    for number, vip in ((1, VIP4), (2, VIP6)):
        address = f"198.51.100.{number}" if number == 1 else "2001:db8:eeee::2"
        gateway.put_service(
            g.Service(number, vip, PORT, g.TCP, Method.DSR, [g.Backend(number, address, mac=g.backend_mac(number))])
        )
        gateway.put_service(
            g.Service(
                10 + number,
                vip,
                PORT,
                g.UDP,
                Method.TUNNEL,
                [g.Backend(10 + number, address, mac=g.backend_mac(number))],
            )
        )
    return gateway


def cut(packet: Packet, length: int) -> bytes:
    return bytes(packet)[:length].ljust(length, b"\0")


def patched(packet: Packet, offset: int, value: bytes) -> bytes:
    frame = bytearray(bytes(packet))
    frame[offset : offset + len(value)] = value
    return bytes(frame)


V4, V6 = client(4, "A", b"x" * 20), client(6, "A", b"x" * 20)
SEGMENT = TCP(sport=1, dport=PORT, flags="A")
HEADERS = IPv6ExtHdrDestOpt()

TABLE: list[tuple[str, bytes, Verdict, str]] = [
    ("LLDP", bytes(link())[:12] + b"\x88\xcc" + bytes(50), Verdict.PASS, "PASS_NOT_IP"),
    ("three VLAN tags", bytes(link() / Dot1AD() / Dot1Q() / Dot1Q() / V4.payload), Verdict.PASS, "PASS_NOT_IP"),
    ("IPv4 version 5", patched(V4, 14, b"\x55"), Verdict.DROP, "DROP_MALFORMED_IPV4"),
    ("IPv4 header of 16 bytes", patched(V4, 14, b"\x44"), Verdict.DROP, "DROP_MALFORMED_IPV4"),
    ("IPv4 longer than the frame", patched(V4, 16, b"\x01\x00"), Verdict.DROP, "DROP_MALFORMED_IPV4"),
    ("IPv4 shorter than its header", patched(V4, 16, b"\x00\x13"), Verdict.DROP, "DROP_MALFORMED_IPV4"),
    ("IPv4 frame that ends in the header", cut(V4, 30), Verdict.DROP, "DROP_MALFORMED_IPV4"),
    ("IPv4 options longer than the packet", patched(V4, 14, b"\x4f"), Verdict.DROP, "DROP_MALFORMED_TRANSPORT"),
    ("IPv6 version 4", patched(V6, 14, b"\x40"), Verdict.DROP, "DROP_MALFORMED_IPV6"),
    ("IPv6 longer than the frame", patched(V6, 18, b"\x01\x00"), Verdict.DROP, "DROP_MALFORMED_IPV6"),
    ("IPv6 frame that ends in the header", cut(V6, 50), Verdict.DROP, "DROP_MALFORMED_IPV6"),
    (
        "IPv6 extension longer than the packet",
        bytes(link() / network(6, nh=60) / Raw(b"\x06\x0a" + bytes(38))),
        Verdict.DROP,
        "DROP_MALFORMED_IPV6",
    ),
    (
        "seven extension headers",
        bytes(link() / network(6) / HEADERS / HEADERS / HEADERS / HEADERS / HEADERS / HEADERS / HEADERS / SEGMENT),
        Verdict.PASS,
        "PASS_PROTOCOL",
    ),
    (
        "extension header beyond what the path looks at",
        bytes(link() / network(6, nh=60) / Raw(b"\x06\x40" + bytes(700))),
        Verdict.DROP,
        "DROP_EXTENSION_HEADERS",
    ),
    (
        "TCP cut short for a VIP",
        bytes(link() / network(4, proto=6) / Raw(bytes(19))),
        Verdict.DROP,
        "DROP_MALFORMED_TRANSPORT",
    ),
    (
        "TCP cut short for somebody else",
        bytes(link() / network(4, destination="10.9.9.9", proto=6) / Raw(bytes(19))),
        Verdict.PASS,
        "PASS_NOT_OURS",
    ),
    (
        "UDP cut short for a VIP",
        bytes(link() / network(6, nh=17) / Raw(bytes(7))),
        Verdict.DROP,
        "DROP_MALFORMED_TRANSPORT",
    ),
    ("another port", bytes(link() / network(4) / TCP(dport=81)), Verdict.PASS, "PASS_NOT_OURS"),
    ("another address", bytes(link() / network(4, destination="10.9.9.9") / SEGMENT), Verdict.PASS, "PASS_NOT_OURS"),
    ("SCTP", bytes(link() / network(4, proto=132) / Raw(bytes(20))), Verdict.PASS, "PASS_PROTOCOL"),
    ("GRE", bytes(link() / network(4, proto=47) / Raw(bytes(20))), Verdict.PASS, "PASS_PROTOCOL"),
    ("IP in IP of no peer", bytes(link() / network(4, proto=4) / IP() / SEGMENT), Verdict.PASS, "PASS_PROTOCOL"),
    ("ESP over IPv6", bytes(link() / network(6, nh=50) / Raw(bytes(20))), Verdict.PASS, "PASS_PROTOCOL"),
]


@pytest.mark.parametrize(("what", "frame", "verdict", "reason"), TABLE, ids=[row[0] for row in TABLE])
def test_table(serving: g.Gateway, what: str, frame: bytes, verdict: Verdict, reason: str) -> None:
    """The frame is left as it is, whatever becomes of it."""
    assert serving.run(frame) == (verdict, frame)
    assert serving.reasons() == {reason: 1}


def test_padding_behind_a_short_packet_is_not_payload(serving: g.Gateway) -> None:
    short = bytes(link() / network(4) / UDP(sport=1, dport=PORT))
    verdict, out = serving.run(short.ljust(60, b"\xaa"))
    assert verdict == Verdict.TX
    assert Ether(out)[IP].len == 20 + 28


@pytest.mark.parametrize("size", range(14, 74))
def test_no_truncation_is_forwarded(serving: g.Gateway, size: int) -> None:
    """A frame cut anywhere in its headers never leaves for a backend."""
    for whole in (V4, V6):
        needed = len(bytes(whole))
        assert size < needed
        assert serving.run(bytes(whole)[:size])[0] in (Verdict.DROP, Verdict.PASS)
    assert "SENT_FORWARDED" not in serving.reasons()


def fragments(family: int, identity: int = 7) -> list[Packet]:
    """A datagram in three."""
    whole = bytes(UDP(sport=5, dport=PORT, len=48, chksum=0x1234) / Raw(bytes(range(40))))
    parts = [whole[0:16], whole[16:32], whole[32:48]]
    out = []
    for number, part in enumerate(parts):
        more = number < 2
        if family == 4:
            header = network(4, proto=17, id=identity, frag=number * 2, flags="MF" if more else 0)
        else:
            header = network(6) / IPv6ExtHdrFragment(id=identity, offset=number * 2, m=more, nh=17)
        out.append(link() / header / Raw(part))
    return out


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_follow_the_first(serving: g.Gateway, family: int) -> None:
    for part in fragments(family):
        verdict, out = serving.run(bytes(part))
        assert verdict == Verdict.TX
        assert bytes(Ether(out).payload.payload) == bytes(part.payload)


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_without_a_first_are_dropped(serving: g.Gateway, family: int) -> None:
    first, second, third = fragments(family)
    assert serving.run(bytes(second))[0] == Verdict.DROP
    assert serving.reasons() == {"DROP_FRAGMENT_UNKNOWN": 1}
    assert serving.run(bytes(first))[0] == Verdict.TX
    assert serving.run(bytes(third))[0] == Verdict.TX
    other = fragments(family, identity=8)[1]
    assert serving.run(bytes(other))[0] == Verdict.DROP


def test_fragments_for_somebody_else_pass(serving: g.Gateway) -> None:
    for part in fragments(4):
        part[IP].dst = "10.9.9.9"
        assert serving.run(bytes(part))[0] == Verdict.PASS
    assert len(serving.maps.fragments.dump()[0]) == 0


def test_fragments_are_translated_as_one_datagram(gateway: g.Gateway) -> None:
    """The checksum stands in the first fragment and covers the addresses of all."""
    backend = g.Backend(1, "198.51.100.1", 5353, g.backend_mac(1))
    gateway.put_service(g.Service(1, VIP4, PORT, g.UDP, Method.NAT, [backend], flags=ServiceFlag.REMEMBER_NEW))
    whole = network(4) / UDP(sport=5, dport=PORT) / Raw(bytes(range(200)))
    payload = bytes(IP(bytes(whole)).payload)
    out = b""
    for at in range(0, len(payload), 64):
        more = at + 64 < len(payload)
        part = network(4, proto=17, id=9, frag=at // 8, flags="MF" if more else 0)
        verdict, frame = gateway.run(bytes(link() / part / Raw(payload[at : at + 64])))
        assert verdict == Verdict.TX
        assert Ether(frame)[IP].dst == "198.51.100.1"
        out += bytes(Ether(frame)[IP].payload)
    assert_valid(bytes(link() / IP(src=whole.src, dst="198.51.100.1", proto=17) / Raw(out)))
    joined = link() / IP(src=whole.src, dst="198.51.100.1") / UDP(out)
    assert joined[UDP].dport == 5353
    assert_valid(bytes(joined))


def test_a_first_fragment_without_its_transport_header_is_dropped(serving: g.Gateway) -> None:
    tiny = link() / network(4, proto=6, flags="MF") / Raw(bytes(8))
    assert serving.run(bytes(tiny))[0] == Verdict.DROP
    assert serving.reasons() == {"DROP_MALFORMED_TRANSPORT": 1}


def test_ipv6_and_ipv4_mapped_addresses_do_not_meet(serving: g.Gateway) -> None:
    """An IPv6 packet that claims mapped addresses must not pass for IPv4."""
    packet = link() / IPv6(src="::ffff:192.0.2.7", dst=f"::ffff:{VIP4}") / SEGMENT
    assert serving.run(bytes(packet)) == (Verdict.PASS, bytes(packet))
