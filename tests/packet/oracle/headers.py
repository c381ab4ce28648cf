# SPDX-License-Identifier: Apache-2.0
"""Frames to fields and back: what the oracle knows of Ethernet, IP, TCP, UDP and ICMP (RFC 791, 8200, 9293, 768)."""

import struct
from dataclasses import dataclass

ETHERNET = 14
VLANS = (0x8100, 0x88A8)
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
TCP, UDP, ICMP, ICMPV6, IPIP, IN6 = 6, 17, 1, 58, 4, 41
HOP_BY_HOP, ROUTING, FRAGMENT, AUTH, DESTINATION = 0, 43, 44, 51, 60
# Headers beyond this offset are not followed.
OFFSET_MAX = 511
EXTENSIONS_MAX = 6
MAPPED = bytes(10) + b"\xff\xff"


class Refused(Exception):
    """A frame the path drops while parsing; the argument is the reason's name."""


@dataclass(slots=True)
class Fragment:
    id: bytes
    later: bool
    protocol: int


@dataclass(slots=True)
class Packet:
    """Where things are in a frame. Addresses are 16 bytes; `end` is the offset after the IP packet."""

    frame: bytes
    l3: int = 0
    ethertype: int = 0
    v6: bool = False
    source: bytes = b""
    destination: bytes = b""
    protocol: int = 0
    l4: int = 0
    end: int = 0
    fragment: Fragment | None = None
    source_port: int = 0
    destination_port: int = 0
    tcp_flags: int = 0
    payload: int = 0

    @property
    def later_fragment(self) -> bool:
        return self.fragment is not None and self.fragment.later

    @property
    def ip_length(self) -> int:
        return self.end - self.l3


def u16(data: bytes | bytearray, at: int) -> int:
    return int(data[at] << 8 | data[at + 1])


def parse_link(frame: bytes) -> Packet:
    """Ethernet and at most two tags. ethertype 0: cut short."""
    packet = Packet(frame)
    if len(frame) < ETHERNET:
        return packet
    kind, at = u16(frame, 12), ETHERNET
    for _ in range(2):
        if kind not in VLANS:
            break
        if len(frame) < at + 4:
            return packet
        kind, at = u16(frame, at + 2), at + 4
    packet.ethertype, packet.l3 = kind, at
    return packet


def parse_ipv4(packet: Packet) -> None:
    frame, l3 = packet.frame, packet.l3
    if len(frame) < l3 + 20:
        raise Refused("DROP_MALFORMED_IPV4")
    header, total = (frame[l3] & 15) * 4, u16(frame, l3 + 2)
    if frame[l3] >> 4 != 4 or header < 20 or total < header or l3 + total > len(frame):
        raise Refused("DROP_MALFORMED_IPV4")
    packet.source, packet.destination = MAPPED + frame[l3 + 12 : l3 + 16], MAPPED + frame[l3 + 16 : l3 + 20]
    packet.protocol, packet.l4, packet.end = frame[l3 + 9], l3 + header, l3 + total
    packet.payload = total - header
    field = u16(frame, l3 + 6)
    if field & 0x3FFF:
        packet.fragment = Fragment(bytes(2) + frame[l3 + 4 : l3 + 6], bool(field & 0x1FFF), packet.protocol)


def parse_ipv6(packet: Packet) -> None:
    frame, l3 = packet.frame, packet.l3
    if len(frame) < l3 + 40:
        raise Refused("DROP_MALFORMED_IPV6")
    end = l3 + 40 + u16(frame, l3 + 4)
    if frame[l3] >> 4 != 6 or end > len(frame):
        raise Refused("DROP_MALFORMED_IPV6")
    packet.v6, packet.end = True, end
    packet.source, packet.destination = frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40]
    _walk_extensions(packet, frame[l3 + 6], l3 + 40)
    if packet.l4 > end:
        raise Refused("DROP_MALFORMED_IPV6")
    packet.payload = end - packet.l4


def _walk_extensions(packet: Packet, kind: int, at: int) -> None:
    frame = packet.frame
    for _ in range(EXTENSIONS_MAX):
        if kind in (HOP_BY_HOP, ROUTING, DESTINATION, AUTH):
            _need(frame, at + 2)
            length = (frame[at + 1] + 2) * 4 if kind == AUTH else (frame[at + 1] + 1) * 8
        elif kind == FRAGMENT:
            _need(frame, at + 8)
            field, length = u16(frame, at + 2), 8
            if field >> 3 or field & 1:
                packet.fragment = Fragment(frame[at + 4 : at + 8], bool(field >> 3), frame[at])
        else:
            break
        kind, at = frame[at], at + length
        if at > OFFSET_MAX:
            raise Refused("DROP_EXTENSION_HEADERS")
        if packet.later_fragment:
            break
    packet.protocol, packet.l4 = kind, at


def _need(frame: bytes, end: int) -> None:
    if len(frame) < end:
        raise Refused("DROP_MALFORMED_IPV6")


def parse_transport(packet: Packet) -> bool:
    """Ports, TCP flags and payload bytes; False where the frame or the packet ends inside the header."""
    size = 20 if packet.protocol == TCP else 8
    if packet.payload < size or len(packet.frame) < packet.l4 + size:
        return False
    packet.source_port, packet.destination_port = struct.unpack_from("!HH", packet.frame, packet.l4)
    if packet.protocol == TCP:
        packet.tcp_flags = packet.frame[packet.l4 + 13]
        size = (packet.frame[packet.l4 + 12] >> 4) * 4
    packet.payload = max(0, packet.payload - size)
    return True


def fold(total: int) -> int:
    """A sum as 16 bits, one's complement; 0 only for 0."""
    return total % 0xFFFF or (0xFFFF if total else 0)


def add_words(data: bytes) -> int:
    """Sum of 16-bit words, the last one padded (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def checksum(data: bytes) -> int:
    return ~fold(add_words(data)) & 0xFFFF


def changed(check: int, old: bytes, new: bytes) -> int:
    """A checksum after `old` has become `new` in what it covers (RFC 1624, equation 3)."""
    removed = sum(0xFFFF - word for word in struct.unpack(f"!{len(old) // 2}H", old))
    return ~fold((~check & 0xFFFF) + removed + add_words(new)) & 0xFFFF


def pseudo_header(source: bytes, destination: bytes, length: int, protocol: int) -> bytes:
    if source.startswith(MAPPED) and destination.startswith(MAPPED):
        return source[12:] + destination[12:] + struct.pack("!BBH", 0, protocol, length)
    return source + destination + struct.pack("!II", length, protocol)
