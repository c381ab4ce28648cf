# SPDX-License-Identifier: Apache-2.0
"""The few rtnetlink requests a gateway needs while packets wait: links, addresses, neighbours, one route look-up.

A general netlink library costs the daemon 22 MB of resident memory and a request through it close to a millisecond;
what is needed here is one message layout (RFC 3549; linux/netlink.h, rtnetlink.h) and five message types.

Everything acts on the network namespace the process (or thread) was in when the socket was made.
"""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface

REPLY_TIMEOUT_S = 2.0
RECEIVE_BYTES_MAX = 1 << 18
MONITOR_BUFFER_BYTES = 1 << 20
# More messages than this in one read of a monitor are left for the next one, so that the caller's loop goes on.
MONITOR_BATCH_MAX = 1024

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_REPLACE, _NLM_F_DUMP, _NLM_F_CREATE = 0x1, 0x4, 0x100, 0x300, 0x400
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30
_GROUP_LINK, _GROUP_NEIGH, _GROUP_IPV4_ADDR, _GROUP_IPV6_ADDR = 0x1, 0x4, 0x10, 0x100

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_OPERSTATE, _IFLA_AF_SPEC = 1, 3, 4, 16, 26
_IFLA_INET_CONF = 1
_DEVCONF_RP_FILTER, _DEVCONF_ARP_ANNOUNCE, _DEVCONF_ARP_IGNORE, _DEVCONF_ACCEPT_LOCAL = 8, 18, 19, 23
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS = 1, 2, 6, 8
_NDA_DST, _NDA_LLADDR = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_RT_TABLE_LOCAL, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 254, 2
# Who made a route: a number that no routing daemon has (iproute2's rt_protos).
_RTPROT_RAINLB = 208
# The kernel gives the loopback interface this number in every network namespace.
_LOOPBACK = 1
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12

_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_IFA_F_NODAD = 0x02
# A lifetime in seconds that does not end.
FOREVER = 0xFFFFFFFF

NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x02, 0x04, 0x08, 0x10
NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x20, 0x40, 0x80
NUD_USABLE = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT


class NetlinkError(OSError):
    """The kernel refused a request; errno says why, the text what was asked."""


@dataclass(frozen=True, slots=True)
class Link:
    """One network interface. `up` means administratively up and with carrier."""

    index: int
    name: str
    up: bool
    mac: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class Address:
    """An address on an interface."""

    index: int
    interface: IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A next hop's entry in the neighbour table; `mac` is empty while unresolved."""

    index: int
    address: IPv4Address | IPv6Address
    mac: bytes
    state: int

    @property
    def usable(self) -> bool:
        """Whether packets may be sent to `mac`."""
        return bool(self.mac) and bool(self.state & NUD_USABLE)


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's answer to 'how would a packet go there'; `gateway` is None on a connected network."""

    index: int
    gateway: IPv4Address | IPv6Address | None
    source: IPv4Address | IPv6Address | None


@dataclass(frozen=True, slots=True)
class Change:
    """One notification of a monitor: the object as it is now, or as it was when it went (`gone`)."""

    object: Link | Address | Neighbour
    gone: bool


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """(type, sequence, body) of each netlink message in a datagram."""
    view = memoryview(data)
    offset = 0
    while offset + _HEADER.size <= len(view):
        length, kind, _, sequence, _ = _HEADER.unpack_from(view, offset)
        if length < _HEADER.size or offset + length > len(view):
            return
        yield kind, sequence, view[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _parse_link(body: memoryview) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = dict(_attributes(body[_LINK.size :]))
    name = bytes(found.get(_IFLA_IFNAME, b"")).rstrip(b"\0").decode(errors="replace")
    mtu = int.from_bytes(found.get(_IFLA_MTU, b""), "little")
    up = flags & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP
    return Link(index, name, up, bytes(found.get(_IFLA_ADDRESS, b"")), mtu)


def _parse_address(body: memoryview) -> Address | None:
    _, prefix, _, _, index = _ADDRESS.unpack_from(body)
    found = dict(_attributes(body[_ADDRESS.size :]))
    # On point-to-point links IFA_ADDRESS is the far end; IFA_LOCAL is ours wherever it is given.
    raw = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if raw is None:
        return None
    return Address(index, ip_interface(f"{ip_address(bytes(raw))}/{prefix}"))


def _parse_neighbour(body: memoryview) -> Neighbour | None:
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    found = dict(_attributes(body[_NEIGHBOUR.size :]))
    if family not in (socket.AF_INET, socket.AF_INET6) or _NDA_DST not in found:
        return None
    return Neighbour(index, ip_address(bytes(found[_NDA_DST])), bytes(found.get(_NDA_LLADDR, b"")), state)


def _parse_route(body: memoryview) -> Route:
    found = dict(_attributes(body[_ROUTE.size :]))
    gateway, source = found.get(_RTA_GATEWAY), found.get(_RTA_PREFSRC)
    return Route(
        int.from_bytes(found.get(_RTA_OIF, b""), "little"),
        ip_address(bytes(gateway)) if gateway is not None else None,
        ip_address(bytes(source)) if source is not None else None,
    )


def _family(address: IPv4Address | IPv6Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address_body(index: int, address: IPv4Address | IPv6Address, prefix: int, seconds: int = FOREVER) -> bytes:
    body = _ADDRESS.pack(_family(address), prefix, 0, 0, index)
    body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
    if address.version == 6:
        # No kernel duplicate detection: it would hold the address back for a second, in the middle of a takeover.
        body += _attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
    # IPv6: deprecated from the start, so that the gateway's own traffic never leaves with a virtual source.
    preferred = seconds if address.version == 4 else 0
    return body + _attribute(_IFA_CACHEINFO, struct.pack("=IIII", preferred, seconds, 0, 0))


def _local_route(address: IPv4Address | IPv6Address) -> bytes:
    fields = (address.max_prefixlen, 0, 0, _RT_TABLE_LOCAL, _RTPROT_RAINLB, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    body = _ROUTE.pack(_family(address), *fields)
    return body + _attribute(_RTA_DST, address.packed) + _attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))


def _parse_local_route(body: memoryview) -> IPv4Address | IPv6Address | None:
    _, _, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    destination = dict(_attributes(body[_ROUTE.size :])).get(_RTA_DST)
    if (table, protocol, kind) != (_RT_TABLE_LOCAL, _RTPROT_RAINLB, _RTN_LOCAL) or destination is None:
        return None
    return ip_address(bytes(destination))


class Netlink:
    """Synchronous requests, each answered by the kernel in tens of microseconds. One thread at a time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(REPLY_TIMEOUT_S)
        self._sequence = 0

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def links(self) -> list[Link]:
        """All interfaces of the namespace."""
        return [_parse_link(body) for body in self._dump(_RTM_GETLINK, _RTM_NEWLINK, _LINK.pack(0, 0, 0, 0, 0))]

    def addresses(self) -> list[Address]:
        """All addresses, both families."""
        bodies = self._dump(_RTM_GETADDR, _RTM_NEWADDR, _ADDRESS.pack(0, 0, 0, 0, 0))
        return [address for body in bodies if (address := _parse_address(body)) is not None]

    def neighbours(self) -> list[Neighbour]:
        """The neighbour tables of both families."""
        bodies = self._dump(_RTM_GETNEIGH, _RTM_NEWNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0))
        return [entry for body in bodies if (entry := _parse_neighbour(body)) is not None]

    def route_to(self, address: IPv4Address | IPv6Address) -> Route:
        """How the kernel would route a packet to `address`. NetlinkError when it has no route."""
        bits = address.max_prefixlen
        body = _ROUTE.pack(_family(address), bits, 0, 0, 0, 0, 0, 0, 0) + _attribute(_RTA_DST, address.packed)
        replies = self._request(_RTM_GETROUTE, 0, body, f"route to {address}")
        if not replies:
            raise NetlinkError(errno.ENETUNREACH, f"route to {address}: the kernel gave no answer")
        return _parse_route(replies[0])

    def add_address(self, index: int, interface: IPv4Interface | IPv6Interface) -> bool:
        """Put an address on interface `index`, usable at once. False when it was there already."""
        body = _address_body(index, interface.ip, interface.network.prefixlen)
        try:
            self._request(_RTM_NEWADDR, _NLM_F_CREATE, body, f"add {interface} to interface {index}")
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def lend_address(self, index: int, interface: IPv4Interface | IPv6Interface, seconds: int) -> None:
        """Put an address on interface `index` that the kernel takes off again after that time, or prolong its stay."""
        body = _address_body(index, interface.ip, interface.network.prefixlen, seconds)
        flags = _NLM_F_CREATE | _NLM_F_REPLACE
        self._request(_RTM_NEWADDR, flags, body, f"lend {interface} to interface {index}")

    def delete_address(self, index: int, interface: IPv4Interface | IPv6Interface) -> bool:
        """Take an address from interface `index`. False when it was not there (or the interface is gone)."""
        body = _address_body(index, interface.ip, interface.network.prefixlen)
        try:
            self._request(_RTM_DELADDR, 0, body, f"delete {interface} from interface {index}")
        except NetlinkError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise
            return False
        return True

    def solicit(self, index: int, address: IPv4Address | IPv6Address) -> None:
        """Ask the kernel to resolve (or confirm) a neighbour now, as a packet to it would."""
        body = _NEIGHBOUR.pack(_family(address), index, NUD_PROBE, 0, 0) + _attribute(_NDA_DST, address.packed)
        # NTF_USE: let the kernel's own state machine do it, without forcing a state.
        body = body[:10] + b"\x01" + body[11:]
        self._request(_RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, body, f"resolve {address} on interface {index}")

    def accept_own_sources(self, index: int, *, loosely: bool) -> None:
        """Let the kernel forward IPv4 packets that come in on interface `index` from an address of this host.

        `loosely`: also take the strict reverse path filter off. As sysctls these would be `accept_local = 1` and
        `rp_filter = 2`; over netlink they need no writable /proc/sys.
        """
        settings = {_DEVCONF_ACCEPT_LOCAL: 1} | ({_DEVCONF_RP_FILTER: 2} if loosely else {})
        self._configure(index, settings, f"accept own sources on interface {index}")

    def keep_arp_apart(self, index: int, *, ignore: int) -> None:
        """No ARP on interface `index` for, or in the name of, an address that is not on it.

        As sysctls these would be `arp_ignore = 1` (or another value that does this and more) and `arp_announce = 2`.
        """
        settings = {_DEVCONF_ARP_IGNORE: ignore, _DEVCONF_ARP_ANNOUNCE: 2}
        self._configure(index, settings, f"keep ARP apart on interface {index}")

    def _configure(self, index: int, settings: Mapping[int, int], what: str) -> None:
        values = b"".join(_attribute(setting, struct.pack("=I", value)) for setting, value in settings.items())
        family = _attribute(socket.AF_INET, _attribute(_IFLA_INET_CONF, values))
        self._request(_RTM_SETLINK, 0, _LINK.pack(0, 0, index, 0, 0) + _attribute(_IFLA_AF_SPEC, family), what)

    def deliver_locally(self, address: IPv4Address | IPv6Address) -> None:
        """Have the kernel take packets to `address` for its own, without the address being on any interface."""
        try:
            self._request(_RTM_NEWROUTE, _NLM_F_CREATE, _local_route(address), f"deliver {address} locally")
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def deliver_no_longer(self, address: IPv4Address | IPv6Address) -> None:
        """Undo `deliver_locally`."""
        try:
            self._request(_RTM_DELROUTE, 0, _local_route(address), f"deliver {address} no longer")
        except NetlinkError as error:
            if error.errno != errno.ESRCH:
                raise

    def delivered_locally(self) -> set[IPv4Address | IPv6Address]:
        """The addresses of `deliver_locally`, also of an earlier process."""
        found: set[IPv4Address | IPv6Address] = set()
        # Strict: the kernel itself picks these few out of what may be a whole Internet's routes.
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                wanted = _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_LOCAL, _RTPROT_RAINLB, 0, _RTN_LOCAL, 0)
                bodies = self._dump(_RTM_GETROUTE, _RTM_NEWROUTE, wanted)
                found |= {address for body in bodies if (address := _parse_local_route(body)) is not None}
        finally:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 0)
        return found

    def _dump(self, kind: int, wanted: int, body: bytes) -> list[memoryview]:
        return self._exchange(kind, _NLM_F_DUMP, body, "dump", wanted)

    def _request(self, kind: int, flags: int, body: bytes, what: str) -> list[memoryview]:
        return self._exchange(kind, flags | _NLM_F_ACK, body, what, None)

    def _exchange(self, kind: int, flags: int, body: bytes, what: str, wanted: int | None) -> list[memoryview]:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        header = _HEADER.pack(_HEADER.size + len(body), kind, flags | _NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        replies: list[memoryview] = []
        while True:
            for reply, sequence, content in _messages(self._socket.recv(RECEIVE_BYTES_MAX)):
                if sequence != self._sequence:
                    continue  # the late answer to a request that timed out
                if reply == _NLMSG_DONE:
                    return replies
                if reply == _NLMSG_ERROR:
                    code = -int.from_bytes(content[:4], "little", signed=True)
                    if code:
                        raise NetlinkError(code, f"netlink: {what}: {os.strerror(code)}")
                    return replies
                if wanted is None or reply == wanted:
                    replies.append(content)


_PARSERS = {
    _RTM_NEWLINK: (_parse_link, False),
    _RTM_DELLINK: (_parse_link, True),
    _RTM_NEWADDR: (_parse_address, False),
    _RTM_DELADDR: (_parse_address, True),
    _RTM_NEWNEIGH: (_parse_neighbour, False),
    _RTM_DELNEIGH: (_parse_neighbour, True),
}


class Monitor:
    """Notifications of changes to links, addresses and neighbours; non-blocking, for an event loop's reader.

    `lost` counts the times the kernel dropped notifications because nobody read them in time: dump again then.
    """

    def __init__(self, *, links: bool = False, addresses: bool = False, neighbours: bool = False) -> None:
        groups = links * _GROUP_LINK | neighbours * _GROUP_NEIGH
        groups |= addresses * (_GROUP_IPV4_ADDR | _GROUP_IPV6_ADDR)
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MONITOR_BUFFER_BYTES)
        self._socket.bind((0, groups))
        self.lost = 0

    def fileno(self) -> int:
        """For `loop.add_reader`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def read(self) -> list[Change]:
        """What has changed since the last read, oldest first; empty when nothing has."""
        changes: list[Change] = []
        while len(changes) < MONITOR_BATCH_MAX:
            try:
                data = self._socket.recv(RECEIVE_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            for kind, _, body in _messages(data):
                if kind in _PARSERS:
                    parse, gone = _PARSERS[kind]
                    found = parse(body)
                    if found is not None:
                        changes.append(Change(found, gone))
        return changes

    def wait(self, timeout_s: float) -> bool:
        """Block until something can be read or the time is over; for threads, not for an event loop."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])
