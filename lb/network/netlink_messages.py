# SPDX-License-Identifier: Apache-2.0
"""The messages of rtnetlink that a gateway sends and reads, as bytes and as plain values. Nothing here does I/O.

One message layout (`sync.rtnetlink`) and five kinds of object (linux/rtnetlink.h): links, addresses, neighbours,
routes, and settings of an interface.
"""

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from lb.configuration.fields import IpAddress
from sync.rtnetlink import attribute, attributes

IpInterface = IPv4Interface | IPv6Interface

NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
GROUP_LINK, GROUP_NEIGH, GROUP_IPV4_ADDR, GROUP_IPV6_ADDR = 0x1, 0x4, 0x10, 0x100

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ROUTE = struct.Struct("=BBBBBBBBI")

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_AF_SPEC = 1, 3, 4, 26
_IFLA_INET_CONF = 1
DEVCONF_RP_FILTER, DEVCONF_ARP_ANNOUNCE, DEVCONF_ARP_IGNORE, DEVCONF_ACCEPT_LOCAL = 8, 18, 19, 23
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_USE = 0x01
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 4, 5, 7
_RT_TABLE_LOCAL, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 254, 2
# Who made a route or an address: a number that no routing daemon has (iproute2's rt_protos).
MADE_BY_RAINLB = 208
# The kernel gives the loopback interface this number in every network namespace.
_LOOPBACK = 1
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12

_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000
_IFA_F_NODAD = 0x02
# A lifetime in seconds that does not end.
FOREVER = 0xFFFFFFFF

NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x02, 0x04, 0x08, 0x10
NUD_FAILED, NUD_NOARP, NUD_PERMANENT = 0x20, 0x40, 0x80
NUD_USABLE = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT


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
    """An address on an interface. `maker`: who put it there, 0 where that is not known."""

    index: int
    interface: IpInterface
    maker: int = 0

    @property
    def is_ours(self) -> bool:
        """Whether rainlb has put it there, in this life of the daemon or in an earlier one."""
        return self.maker == MADE_BY_RAINLB


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A next hop's entry in the neighbour table; `mac` is empty while unresolved."""

    index: int
    address: IpAddress
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
    gateway: IpAddress | None
    source: IpAddress | None


@dataclass(frozen=True, slots=True)
class Change:
    """One notification of a monitor: the object as it is now, or as it was when it went (`gone`)."""

    object: Link | Address | Neighbour
    gone: bool


def parse_link(body: memoryview) -> Link:
    """The interface a link message is about. Like all of these it raises struct.error for a body that is cut short."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = dict(attributes(body[_LINK.size :]))
    name = bytes(found.get(_IFLA_IFNAME, b"")).rstrip(b"\0").decode(errors="replace")
    mtu = int.from_bytes(found.get(_IFLA_MTU, b""), "little")
    up = flags & (_IFF_UP | _IFF_LOWER_UP) == _IFF_UP | _IFF_LOWER_UP
    return Link(index, name, up, bytes(found.get(_IFLA_ADDRESS, b"")), mtu)


def parse_address(body: memoryview) -> Address | None:
    """The address an address message is about; None if it names none."""
    _, prefix, _, _, index = _ADDRESS.unpack_from(body)
    found = dict(attributes(body[_ADDRESS.size :]))
    # On point-to-point links _IFA_ADDRESS is the far end; _IFA_LOCAL is ours wherever it is given.
    raw = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))
    if raw is None:
        return None
    maker = int.from_bytes(found.get(_IFA_PROTO, b""), "little")
    return Address(index, ip_interface(f"{ip_address(bytes(raw))}/{prefix}"), maker)


def parse_neighbour(body: memoryview) -> Neighbour | None:
    """The entry a neighbour message is about; None for those of a bridge or a multicast route."""
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    found = dict(attributes(body[_NEIGHBOUR.size :]))
    if family not in (socket.AF_INET, socket.AF_INET6) or _NDA_DST not in found:
        return None
    return Neighbour(index, ip_address(bytes(found[_NDA_DST])), bytes(found.get(_NDA_LLADDR, b"")), state)


def parse_route(body: memoryview) -> Route:
    """The answer to `way_to`."""
    found = dict(attributes(body[_ROUTE.size :]))
    gateway, source = found.get(_RTA_GATEWAY), found.get(_RTA_PREFSRC)
    return Route(
        int.from_bytes(found.get(_RTA_OIF, b""), "little"),
        ip_address(bytes(gateway)) if gateway is not None else None,
        ip_address(bytes(source)) if source is not None else None,
    )


def parse_local_route(body: memoryview) -> IpAddress | None:
    """The address of a route as `local_route` makes them; None for any other route."""
    _, _, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    destination = dict(attributes(body[_ROUTE.size :])).get(_RTA_DST)
    if (table, protocol, kind) != (_RT_TABLE_LOCAL, MADE_BY_RAINLB, _RTN_LOCAL) or destination is None:
        return None
    return ip_address(bytes(destination))


_PARSERS = {
    RTM_NEWLINK: (parse_link, False),
    RTM_DELLINK: (parse_link, True),
    RTM_NEWADDR: (parse_address, False),
    RTM_DELADDR: (parse_address, True),
    RTM_NEWNEIGH: (parse_neighbour, False),
    RTM_DELNEIGH: (parse_neighbour, True),
}


def parse_change(kind: int, body: memoryview) -> Change | None:
    """What a notification says; None for kinds that nobody here wants to know of."""
    if kind not in _PARSERS:
        return None
    parse, gone = _PARSERS[kind]
    found = parse(body)
    return Change(found, gone) if found is not None else None


# Dumps without a filter.
ALL_LINKS = _LINK.pack(0, 0, 0, 0, 0)
ALL_ADDRESSES = _ADDRESS.pack(0, 0, 0, 0, 0)
ALL_NEIGHBOURS = _NEIGHBOUR.pack(0, 0, 0, 0, 0)


def _family(address: IpAddress) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def address_body(index: int, address: IpAddress, prefix: int, seconds: int = FOREVER) -> bytes:
    """An address on interface `index`, usable at once and for that time, marked as ours (kernels before 5.18 take no
    such mark)."""
    body = _ADDRESS.pack(_family(address), prefix, 0, 0, index)
    body += attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    body += attribute(_IFA_PROTO, bytes([MADE_BY_RAINLB]))
    if address.version == 6:
        # No kernel duplicate detection: it would hold the address back for a second, in the middle of a takeover.
        body += attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
    # IPv6: deprecated from the start, so that the gateway's own traffic never leaves with a virtual source.
    preferred = seconds if address.version == 4 else 0
    return body + attribute(_IFA_CACHEINFO, struct.pack("=IIII", preferred, seconds, 0, 0))


def neighbour_in_use(index: int, address: IpAddress) -> bytes:
    """An entry that the kernel is to resolve or confirm by its own state machine (NTF_USE), without a forced state."""
    body = _NEIGHBOUR.pack(_family(address), index, NUD_PROBE, _NTF_USE, 0)
    return body + attribute(_NDA_DST, address.packed)


def inet_settings(index: int, settings: Mapping[int, int]) -> bytes:
    """IPv4 settings (DEVCONF_*) of an interface."""
    values = b"".join(attribute(setting, struct.pack("=I", value)) for setting, value in settings.items())
    family = attribute(socket.AF_INET, attribute(_IFLA_INET_CONF, values))
    return _LINK.pack(0, 0, index, 0, 0) + attribute(_IFLA_AF_SPEC, family)


def way_to(address: IpAddress) -> bytes:
    """The question how a packet would go there."""
    bits = address.max_prefixlen
    return _ROUTE.pack(_family(address), bits, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address.packed)


def local_route(address: IpAddress) -> bytes:
    """A route that has the kernel take packets to `address` for its own."""
    fields = (address.max_prefixlen, 0, 0, _RT_TABLE_LOCAL, MADE_BY_RAINLB, _RT_SCOPE_HOST, _RTN_LOCAL, 0)
    body = _ROUTE.pack(_family(address), *fields)
    return body + attribute(_RTA_DST, address.packed) + attribute(_RTA_OIF, struct.pack("=I", _LOOPBACK))


def own_local_routes(family: int) -> bytes:
    """A dump of nothing but routes as `local_route` makes them."""
    return _ROUTE.pack(family, 0, 0, 0, _RT_TABLE_LOCAL, MADE_BY_RAINLB, 0, _RTN_LOCAL, 0)
