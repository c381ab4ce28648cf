# SPDX-License-Identifier: Apache-2.0
"""Telling a segment that a virtual address has moved here, and noticing strangers that claim it too.

Gratuitous ARP goes out in both forms, because stacks differ in which one they believe: as a request (sender = target,
RFC 5227 section 2.3) and as a reply. IPv6 gets the unsolicited neighbour advertisement with the override and router
flags (RFC 4861 section 7.2.6). Deviation from RFC 5227: an address is used before its probe is answered, since a
takeover must not wait a second; the probe runs beside it and a foreign answer is reported.
"""

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from lb.configuration.fields import IpAddress

# Seconds after the takeover at which it is said again: dense while a burst may be lost, then for late listeners.
REPEAT_AFTER_S = (0.0, 0.02, 0.1, 0.4, 1.5, 5.0, 15.0)
PROBE_AFTER_S = (0.05, 1.0)
# More addresses on one interface than this are announced all the same, but strangers claiming the rest go unnoticed.
WATCHED_ADDRESSES_MAX = 200
CLAIMS_PER_READ_MAX = 64

_BROADCAST = b"\xff" * 6
_NO_MAC = bytes(6)
_ARP_REQUEST, _ARP_REPLY = 1, 2
_ETH_ARP, _ETH_IPV6, _ETH_ALL = 0x0806, 0x86DD, 0x0003
_ICMPV6, _ICMPV6_SOLICITATION, _ICMPV6_ADVERTISEMENT = 58, 135, 136
_NA_ROUTER_OVERRIDE = 0xA0000000
_SO_ATTACH_FILTER = 26
_ALL_NODES = IPv6Address("ff02::1")


def _ethernet(target: bytes, source: bytes, kind: int) -> bytes:
    return target + source + kind.to_bytes(2, "big")


def _arp(kind: int, mac: bytes, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, kind)
    return _ethernet(_BROADCAST, mac, _ETH_ARP) + header + mac + sender + target_mac + target


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _icmpv6(mac: bytes, source: IPv6Address, target: IPv6Address, target_mac: bytes, body: bytes) -> bytes:
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + _checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    # Hop limit 255 proves to the receiver that no router has passed it on.
    header = struct.pack("!IHBB", 0x60000000, len(body), _ICMPV6, 255) + source.packed + target.packed
    return _ethernet(target_mac, mac, _ETH_IPV6) + header + body


def _multicast_mac(address: IPv6Address) -> bytes:
    return b"\x33\x33" + address.packed[12:]


def announcement(mac: bytes, address: IpAddress) -> list[bytes]:
    """The frames that tell everybody on the segment that `address` is at `mac` now."""
    if isinstance(address, IPv4Address):
        own = address.packed
        return [_arp(_ARP_REQUEST, mac, own, _NO_MAC, own), _arp(_ARP_REPLY, mac, own, _BROADCAST, own)]
    body = struct.pack("!BBHI", _ICMPV6_ADVERTISEMENT, 0, 0, _NA_ROUTER_OVERRIDE) + address.packed
    body += b"\x02\x01" + mac  # target link-layer address
    return [_icmpv6(mac, address, _ALL_NODES, _multicast_mac(_ALL_NODES), body)]


def probe(mac: bytes, address: IpAddress) -> bytes:
    """The frame that makes a foreign holder of `address` answer, without touching anybody's neighbour table."""
    if isinstance(address, IPv4Address):
        return _arp(_ARP_REQUEST, mac, bytes(4), _NO_MAC, address.packed)
    group = IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:])
    body = struct.pack("!BBHI", _ICMPV6_SOLICITATION, 0, 0, 0) + address.packed
    return _icmpv6(mac, IPv6Address("::"), group, _multicast_mac(group), body)


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody on the segment says that `address` is at `mac`."""

    address: IpAddress
    mac: bytes


def read_claim(frame: bytes) -> Claim | None:
    """What an ARP packet or neighbour advertisement claims; None for everything else and for ARP probes."""
    if len(frame) >= 42 and frame[12:14] == b"\x08\x06":
        sender = IPv4Address(frame[28:32])
        return None if sender == IPv4Address(0) else Claim(sender, frame[22:28])
    if len(frame) >= 78 and frame[12:14] == b"\x86\xdd" and frame[20] == _ICMPV6 and frame[54] == _ICMPV6_ADVERTISEMENT:
        has_option = len(frame) >= 86 and frame[78:80] == b"\x02\x01"
        return Claim(IPv6Address(frame[62:78]), frame[80:86] if has_option else frame[6:12])
    return None


def claim_filter(addresses: Iterable[IpAddress]) -> bytes:
    """Classic BPF that lets through claims to these addresses alone (IPv6: by the last 32 bits).

    Without it the daemon would wake up for every ARP packet of a large segment.
    """
    four = sorted({int(a) for a in addresses if a.version == 4})[:WATCHED_ADDRESSES_MAX]
    six = sorted({int(a) & 0xFFFFFFFF for a in addresses if a.version == 6})[:WATCHED_ADDRESSES_MAX]
    load_half, load_byte, load_word, equal, give = 0x28, 0x30, 0x20, 0x15, 0x06

    def any_of(offset: int, values: list[int]) -> list[tuple[int, int, int, int]]:
        compare = [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
        return [(load_word, 0, 0, offset), *compare, (give, 0, 0, 0), (give, 0, 0, 0xFFFF)]

    arp, advertisement = any_of(28, four), any_of(74, six)
    code = [(load_half, 0, 0, 12), (equal, 0, len(arp), _ETH_ARP), *arp]
    # The jump above skips the ARP part; accumulator still holds the EtherType there.
    drop = (give, 0, 0, 0)
    code += [(equal, 1, 0, _ETH_IPV6), drop, (load_byte, 0, 0, 20), (equal, 1, 0, _ICMPV6), drop]
    code += [(load_byte, 0, 0, 54), (equal, 1, 0, _ICMPV6_ADVERTISEMENT), drop, *advertisement]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


class Segment:
    """One Ethernet interface seen through a packet socket: sends announcements, reads claims.

    `mac` is the address announced; by default the interface's own.
    """

    def __init__(self, interface: str, mac: bytes | None = None) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self.interface = interface
        self.unsent = 0
        # Protocol 0 receives nothing until there is a filter to watch with.
        self._socket = socket.socket(socket.AF_PACKET, kind, 0)
        self._socket.bind((interface, 0))
        self.mac: bytes = mac or self._socket.getsockname()[4]

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def fileno(self) -> int:
        """For `loop.add_reader`."""
        return self._socket.fileno()

    def send(self, frames: Iterable[bytes]) -> None:
        """Send frames; what a full queue or a link that is down refuses is counted, the schedule repeats it."""
        for frame in frames:
            try:
                self._socket.send(frame)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO):
                    raise
                self.unsent += 1

    def watch(self, addresses: Sequence[IpAddress]) -> None:
        """From now on `claims` reports who claims one of these addresses."""
        code = claim_filter(addresses)
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        self._socket.bind((self.interface, _ETH_ALL))

    def claims(self) -> list[Claim]:
        """Claims by others since the last call, bounded; our own frames are not among them."""
        found: list[Claim] = []
        for _ in range(CLAIMS_PER_READ_MAX):
            try:
                frame, source = self._socket.recvfrom(128)
            except OSError:
                break
            claim = read_claim(frame) if source[2] != socket.PACKET_OUTGOING else None
            if claim is not None and claim.mac != self.mac:
                found.append(claim)
        return found


OnConflict = Callable[[str, Claim], None]


class Announcer:
    """Announces addresses over their interfaces with the repetition schedule, and watches for other claimants.

    Runs on the event loop's thread. `on_conflict(interface, claim)` is called for each foreign claim that is read.
    `entitled()` is asked before each repetition: whoever may not answer for its addresses any more must not go on
    announcing them either, for somebody else may have begun to.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_conflict: OnConflict, entitled: Callable[[], bool] = lambda: True
    ) -> None:
        self._loop = loop
        self._entitled = entitled
        self._on_conflict = on_conflict
        self._segments: dict[str, Segment] = {}
        self._timers: dict[tuple[str, str], list[asyncio.TimerHandle]] = {}

    def close(self) -> None:
        """Stop everything and give the sockets back."""
        for key in list(self._timers):
            self._cancel(key)
        for name in list(self._segments):
            self._forget(name)

    @property
    def unsent(self) -> int:
        """Frames that an interface did not take."""
        return sum(segment.unsent for segment in self._segments.values())

    def start(self, interface: str, mac: bytes, address: str) -> None:
        """Announce `address` at once and then on schedule; a running schedule begins anew."""
        segment = self._segment(interface, mac)
        parsed = ip_address(address)
        frames, question = announcement(mac, parsed), probe(mac, parsed)
        self._cancel((interface, address))
        segment.send(frames)
        later = [(delay, frames) for delay in REPEAT_AFTER_S if delay > 0]
        later += [(delay, [question]) for delay in PROBE_AFTER_S]
        self._timers[interface, address] = [
            self._loop.call_later(delay, self._repeat, segment, payload) for delay, payload in later
        ]
        self._watch(interface)

    def question(self, interface: str, address: str) -> None:
        """Ask once more whether somebody else has an address that was announced here."""
        segment = self._segments.get(interface)
        if segment is not None and (interface, address) in self._timers:
            frames = [probe(segment.mac, ip_address(address))]
            timers = [self._loop.call_later(delay, self._repeat, segment, frames) for delay in PROBE_AFTER_S]
            self._timers[interface, address] += timers

    def stop(self, interface: str, address: str) -> None:
        """Say nothing more about `address`."""
        if (interface, address) in self._timers:
            self._cancel((interface, address))
            self._watch(interface)

    def _repeat(self, segment: Segment, frames: Sequence[bytes]) -> None:
        if self._entitled():
            segment.send(frames)

    def _segment(self, interface: str, mac: bytes) -> Segment:
        known = self._segments.get(interface)
        if known is not None and known.mac == mac:
            return known
        if known is not None:
            self._forget(interface)
        segment = self._segments[interface] = Segment(interface, mac)
        self._loop.add_reader(segment.fileno(), self._read, segment)
        return segment

    def _forget(self, interface: str) -> None:
        segment = self._segments.pop(interface)
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(segment.fileno())
        segment.close()

    def _watch(self, interface: str) -> None:
        self._segments[interface].watch([ip_address(address) for name, address in self._timers if name == interface])

    def _read(self, segment: Segment) -> None:
        for claim in segment.claims():
            self._on_conflict(segment.interface, claim)

    def _cancel(self, key: tuple[str, str]) -> None:
        for timer in self._timers.pop(key, []):
            timer.cancel()
