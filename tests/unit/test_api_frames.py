# SPDX-License-Identifier: Apache-2.0
"""Frames made for `where` and read for people, against scapy's idea of the same."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from lb.api import frames

MAC = bytes.fromhex("020000000002")
INNER = IPv6(src="2001:db8::1", dst="2001:db8::2")
PORTS = st.integers(0, 65535)


@pytest.mark.parametrize(("source", "destination"), [("192.0.2.1", "10.0.1.100"), ("2001:db8::1", "2001:db8:1::100")])
@pytest.mark.parametrize("protocol", [frames.TCP, frames.UDP])
def test_built_frames_are_what_scapy_builds(source: str, destination: str, protocol: int) -> None:
    frame = frames.build(ip_address(source), 1234, ip_address(destination), 80, protocol, ["syn", "ack"], MAC)
    head = Ether(frame)
    network = IPv6 if ":" in source else IP
    transport = TCP if protocol == frames.TCP else UDP
    rebuilt = head.copy()
    for layer, fields in ((network, ("chksum", "len", "plen")), (transport, ("chksum", "len"))):
        for field in fields:
            if field in rebuilt[layer].fields:
                del rebuilt[layer].fields[field]
    assert bytes(rebuilt) == frame, "checksums or lengths are wrong"
    assert head.dst == "02:00:00:00:00:02"
    if protocol == frames.TCP:
        assert str(head[TCP].flags) == "SA"


def test_families_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="different families"):
        frames.build(ip_address("192.0.2.1"), 1, ip_address("::1"), 2, frames.TCP, [], MAC)


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (
            Ether() / IP(src="192.0.2.1", dst="10.0.0.1", ttl=9) / TCP(sport=5, dport=80, flags="FA"),
            ["IPv4 192.0.2.1:5 → 10.0.0.1:80 TCP [FIN ACK] ttl 9"],
        ),
        (
            Ether() / Dot1AD(vlan=3) / Dot1Q(vlan=4) / INNER / UDP(sport=5, dport=6),
            ["IPv6 [2001:db8::1]:5 → [2001:db8::2]:6 UDP ttl 64"],
        ),
        (
            Ether() / IP(src="1.1.1.1", dst="2.2.2.2") / INNER / UDP(sport=1, dport=2),
            ["IPv4 1.1.1.1 → 2.2.2.2 IP6-in-IP ttl 64", "IPv6 [2001:db8::1]:1 → [2001:db8::2]:2 UDP ttl 64"],
        ),
        (Ether(type=0x0806) / (b"\0" * 28), []),
    ],
)  # fmt: skip
def test_frames_are_put_into_words(packet: Ether, words: list[str]) -> None:
    assert [str(layer) for layer in frames.layers(bytes(packet))] == words


@given(st.binary(max_size=200))
def test_no_bytes_stop_the_reader(data: bytes) -> None:
    assert isinstance(frames.describe(data), str)


@given(PORTS, PORTS, st.sampled_from([frames.TCP, frames.UDP]))
def test_what_is_built_is_read_back(source_port: int, destination_port: int, protocol: int) -> None:
    source, destination = ip_address("192.0.2.1"), ip_address("10.0.1.100")
    frame = frames.build(source, source_port, destination, destination_port, protocol, ["rst"], MAC)
    (layer,) = frames.layers(frame)
    assert (layer.source, layer.source_port) == (source, source_port)
    assert (layer.destination, layer.destination_port) == (destination, destination_port)
    assert layer.protocol == protocol
