# SPDX-License-Identifier: Apache-2.0
"""What the path answers itself: echo replies, "too big", "time exceeded", resets (RFC 792, 4443, 9293)."""

import struct

from tests.packet.oracle.headers import ICMP, ICMPV6, MAPPED, TCP, Packet, changed, checksum, pseudo_header, u16

HOPS = 64
ACK, RST = 16, 4


def _turned_link(packet: Packet) -> bytes:
    frame = packet.frame
    return frame[6:12] + frame[:6] + frame[12 : packet.l3]


def echo(packet: Packet) -> bytes:
    """The same packet the other way, type and hops changed."""
    frame, l3, l4 = bytearray(packet.frame), packet.l3, packet.l4
    old_type = bytes([frame[l4], 0])
    frame[l4] = 129 if packet.v6 else 0
    new_type = bytes([frame[l4], 0])
    frame[l4 + 2 : l4 + 4] = changed(u16(frame, l4 + 2), old_type, new_type).to_bytes(2, "big")
    if packet.v6:
        frame[l3 + 8 : l3 + 40] = frame[l3 + 24 : l3 + 40] + frame[l3 + 8 : l3 + 24]
        frame[l3 + 7] = HOPS
    else:
        frame[l3 + 12 : l3 + 20] = frame[l3 + 16 : l3 + 20] + frame[l3 + 12 : l3 + 16]
        check = changed(u16(frame, l3 + 10), bytes([frame[l3 + 8], 0]), bytes([HOPS, 0]))
        frame[l3 + 8] = HOPS
        frame[l3 + 10 : l3 + 12] = check.to_bytes(2, "big")
    return _turned_link(packet) + bytes(frame[l3:])


def _ip(packet: Packet, protocol: int, body_with_hole: bytes, hole: int, frag: int = 0) -> bytes:
    """An IP packet back to the sender; the 16-bit checksum of the body at `hole` is filled in."""
    source, destination = packet.destination, packet.source
    covered = body_with_hole
    if protocol != ICMP:
        covered = pseudo_header(source, destination, len(body_with_hole), protocol) + body_with_hole
    body = body_with_hole[:hole] + checksum(covered).to_bytes(2, "big") + body_with_hole[hole + 2 :]
    if packet.v6:
        return struct.pack("!IHBB", 0x60000000, len(body), protocol, HOPS) + source + destination + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, frag, HOPS, protocol, 0)
    head += source.removeprefix(MAPPED) + destination.removeprefix(MAPPED)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def error(packet: Packet, what: str, mtu: int) -> bytes | None:
    """An ICMP error with the start of the packet; None where the packet is too short to be quoted."""
    size = 56 if packet.v6 else 28
    quote = packet.frame[packet.l3 : packet.l3 + size]
    if len(quote) < size:
        return None
    kind, code = {(False, True): (3, 4), (True, True): (2, 0), (False, False): (11, 0), (True, False): (3, 0)}[
        packet.v6, what == "too big"
    ]
    body = struct.pack("!BBHI", kind, code, 0, mtu) + quote
    return _turned_link(packet) + _ip(packet, ICMPV6 if packet.v6 else ICMP, body, 2)


def reset(packet: Packet) -> bytes | None:
    """A reset the other side believes: numbered by what it has acknowledged. None where that is not to be had."""
    header = 40 if packet.v6 else 20
    frame, l4 = packet.frame, packet.l4
    if packet.tcp_flags & (ACK | RST) != ACK or packet.fragment or l4 != packet.l3 + header:
        return None
    ports = frame[l4 + 2 : l4 + 4] + frame[l4 : l4 + 2]
    body = ports + frame[l4 + 8 : l4 + 12] + bytes(4) + bytes([0x50, RST]) + bytes(6)
    return _turned_link(packet) + _ip(packet, TCP, body, 16, 0x4000)
