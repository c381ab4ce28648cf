# SPDX-License-Identifier: Apache-2.0
"""What the path changes in a frame it sends on: link header, tunnel header, translated addresses and ports."""

import struct
from dataclasses import dataclass

from tests.packet.oracle.headers import MAPPED, TCP, UDP, Packet, changed, checksum, u16
from tests.packet.oracle.world import World

TUNNEL_HOPS = 64


@dataclass(slots=True)
class Change:
    """An address and port and what they become; in the source or in the destination."""

    in_source: bool
    old: bytes
    new: bytes
    old_port: int
    new_port: int

    def covered(self) -> tuple[bytes, bytes]:
        """What transport checksums cover, before and after."""
        return self.old + self.old_port.to_bytes(2, "big"), self.new + self.new_port.to_bytes(2, "big")


@dataclass(slots=True)
class Quote:
    """The packet that an ICMP error quotes; offsets are those in the frame."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int
    l3: int
    l4: int


def link(mac: bytes, source_mac: bytes, vlan: int, kind: int) -> bytes:
    tag = struct.pack("!HH", 0x8100, vlan) if vlan else b""
    return mac + source_mac + tag + kind.to_bytes(2, "big")


def relink(packet: Packet, mac: bytes, source_mac: bytes, vlan: int) -> bytes:
    """The same packet with another link header."""
    return link(mac, source_mac, vlan, 0x86DD if packet.v6 else 0x0800) + packet.frame[packet.l3 :]


def varied(address: bytes, value: int, mask: int) -> bytes:
    """`address` with the bits of `mask` (of its last word) changed by the flow's hash, byte by byte in memory."""
    word = int.from_bytes(address[-4:], "little")
    mask_in_memory = int.from_bytes(mask.to_bytes(4, "big"), "little")
    return address[:-4] + (word ^ (value >> 16 & 0xFFFFFFFF & mask_in_memory)).to_bytes(4, "little")


def outer_source(world: World, destination: bytes, value: int) -> bytes:
    """The tunnel source of a flow, as long as its IP version's addresses are."""
    if destination.startswith(MAPPED):
        return varied(world.tunnel_source4, value, world.tunnel_vary4)
    return varied(world.tunnel_source6, value, world.tunnel_vary6)


def tunnel(
    packet: Packet, source: bytes, destination: bytes, value: int, mac: bytes, source_mac: bytes, vlan: int
) -> bytes:
    """The IP packet (and whatever padding follows it) inside another one."""
    inner = packet.frame[packet.l3 :]
    protocol = 41 if packet.v6 else 4
    if destination.startswith(MAPPED):
        head = struct.pack("!BBHHHBBH", 0x45, 0, packet.ip_length + 20, 0, 0x4000, TUNNEL_HOPS, protocol, 0)
        head += source + destination[12:]
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        return link(mac, source_mac, vlan, 0x0800) + head + inner
    head = struct.pack("!IHBB", 0x60000000 | value >> 12 & 0xFFFFF, packet.ip_length, protocol, TUNNEL_HOPS)
    return link(mac, source_mac, vlan, 0x86DD) + head + source + destination + inner


def hops(packet: Packet) -> int:
    return packet.frame[packet.l3 + (7 if packet.v6 else 8)]


def _put(frame: bytearray, at: int, value: bytes) -> None:
    frame[at : at + len(value)] = value


def _translate_network(frame: bytearray, l3: int, v6: bool, change: Change, decrement: bool) -> None:
    if v6:
        frame[l3 + 7] -= decrement
        _put(frame, l3 + (8 if change.in_source else 24), change.new)
        return
    old, new = change.old[12:], change.new[12:]
    if decrement:
        before = bytes(frame[l3 + 8 : l3 + 10])
        frame[l3 + 8] -= 1
        old, new = old + before, new + bytes(frame[l3 + 8 : l3 + 10])
    _put(frame, l3 + 10, changed(u16(frame, l3 + 10), old, new).to_bytes(2, "big"))
    _put(frame, l3 + (12 if change.in_source else 16), change.new[12:])


def _transport_check(check: int, protocol: int, change: Change) -> int:
    if protocol == UDP and not check:
        return 0  # not in use
    value = changed(check, *change.covered())
    return value or 0xFFFF if protocol == UDP else value


def translate(packet: Packet, change: Change, *, decrement: bool) -> bytes:
    """The frame with `change` made, one hop less, and checksums that fit if they fitted before."""
    frame = bytearray(packet.frame)
    _translate_network(frame, packet.l3, packet.v6, change, decrement)
    if not packet.later_fragment:
        at = packet.l4 + (16 if packet.protocol == TCP else 6)
        _put(frame, at, _transport_check(u16(frame, at), packet.protocol, change).to_bytes(2, "big"))
        _put(frame, packet.l4 + (0 if change.in_source else 2), change.new_port.to_bytes(2, "big"))
    return bytes(frame)


def parse_quote(packet: Packet) -> Quote | None:
    """What an ICMP error quotes, if it is the start of a TCP or UDP packet."""
    frame, l3 = packet.frame, packet.l4 + 8
    if packet.v6:
        if len(frame) < l3 + 40 or frame[l3] >> 4 != 6:
            return None
        protocol, l4 = frame[l3 + 6], l3 + 40
        source, destination = frame[l3 + 8 : l3 + 24], frame[l3 + 24 : l3 + 40]
    else:
        if len(frame) < l3 + 20 or frame[l3] >> 4 != 4 or frame[l3] & 15 < 5 or u16(frame, l3 + 6) & 0x1FFF:
            return None
        protocol, l4 = frame[l3 + 9], l3 + (frame[l3] & 15) * 4
        source, destination = MAPPED + frame[l3 + 12 : l3 + 16], MAPPED + frame[l3 + 16 : l3 + 20]
    if protocol not in (TCP, UDP) or packet.end < l4 + 4:  # what follows the packet in the frame is padding
        return None
    return Quote(source, destination, protocol, u16(frame, l4), u16(frame, l4 + 2), l3, l4)


def translate_error(packet: Packet, quote: Quote, change: Change, *, decrement: bool) -> bytes:
    """An ICMP error with the quoted packet translated the other way round, and its own checksum made to fit.

    Towards the client the outer source is translated only if the backend itself has sent the error.
    """
    frame = bytearray(packet.frame)
    inner = Change(not change.in_source, change.old, change.new, change.old_port, change.new_port)
    quoted_end = quote.l4 + (18 if quote.protocol == TCP else 8)
    before = bytes(frame)
    _translate_network(frame, quote.l3, packet.v6, inner, False)
    _put(frame, quote.l4 + (0 if inner.in_source else 2), change.new_port.to_bytes(2, "big"))
    if packet.end >= quoted_end:  # what follows the packet in the frame is padding
        check = _transport_check(u16(frame, quoted_end - 2), quote.protocol, change)
        _put(frame, quoted_end - 2, check.to_bytes(2, "big"))
    quoted_end = min(quoted_end, packet.end)
    old, new = before[quote.l3 : quoted_end], bytes(frame[quote.l3 : quoted_end])
    if len(old) % 2:
        old, new = old + b"\0", new + b"\0"
    outer = _outer_change(packet, change)
    if packet.v6:  # ICMPv6 covers the addresses, too
        old, new = old + outer.old, new + outer.new
    at = packet.l4 + 2
    _put(frame, at, changed(u16(frame, at), old, new).to_bytes(2, "big"))
    _translate_network(frame, packet.l3, packet.v6, outer, decrement)
    return bytes(frame)


def _outer_change(packet: Packet, change: Change) -> Change:
    if not change.in_source:
        return change
    l3 = packet.l3
    sender = packet.frame[l3 + 8 : l3 + 24] if packet.v6 else MAPPED + packet.frame[l3 + 12 : l3 + 16]
    return change if sender == change.old else Change(True, sender, sender, 0, 0)
