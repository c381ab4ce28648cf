# SPDX-License-Identifier: Apache-2.0
"""The few rtnetlink requests a gateway needs while packets wait: links, addresses, neighbours, one route look-up.

A general netlink library costs the daemon 22 MB of resident memory and a request through it close to a millisecond;
what is needed here is in `lb.network.netlink_messages`.

Everything acts on the network namespace the process (or thread) was in when the socket was made.
"""

import errno
import os
import socket
from collections.abc import Mapping

from lb.configuration.fields import IpAddress
from lb.network import netlink_messages as wire
from lb.network.netlink_messages import Address, IpInterface, Link, Neighbour, Route
from sync import rtnetlink


class NetlinkError(OSError):
    """The kernel refused a request; errno says why, the text what was asked."""


class Netlink:
    """Synchronous requests, each answered by the kernel in tens of microseconds. One thread at a time."""

    def __init__(self) -> None:
        self._socket = rtnetlink.open_socket()
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
        return [wire.parse_link(body) for body in self._dump(wire.RTM_GETLINK, wire.RTM_NEWLINK, wire.ALL_LINKS)]

    def addresses(self) -> list[Address]:
        """All addresses, both families."""
        bodies = self._dump(wire.RTM_GETADDR, wire.RTM_NEWADDR, wire.ALL_ADDRESSES)
        return [address for body in bodies if (address := wire.parse_address(body)) is not None]

    def neighbours(self) -> list[Neighbour]:
        """The neighbour tables of both families."""
        bodies = self._dump(wire.RTM_GETNEIGH, wire.RTM_NEWNEIGH, wire.ALL_NEIGHBOURS)
        return [entry for body in bodies if (entry := wire.parse_neighbour(body)) is not None]

    def route_to(self, address: IpAddress) -> Route:
        """How the kernel would route a packet to `address`. NetlinkError when it has no route."""
        replies = self._request(wire.RTM_GETROUTE, 0, wire.way_to(address), f"route to {address}")
        if not replies:
            raise NetlinkError(errno.ENETUNREACH, f"route to {address}: the kernel gave no answer")
        return wire.parse_route(replies[0])

    def add_address(self, index: int, interface: IpInterface) -> bool:
        """Put an address on interface `index`, usable at once. False when it was there already."""
        body = wire.address_body(index, interface.ip, interface.network.prefixlen)
        try:
            self._request(wire.RTM_NEWADDR, wire.NLM_F_CREATE, body, f"add {interface} to interface {index}")
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def lend_address(self, index: int, interface: IpInterface, seconds: int) -> None:
        """Put an address on interface `index` that the kernel takes off again after that time, or prolong its stay."""
        body = wire.address_body(index, interface.ip, interface.network.prefixlen, seconds)
        flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
        self._request(wire.RTM_NEWADDR, flags, body, f"lend {interface} to interface {index}")

    def delete_address(self, index: int, interface: IpInterface) -> bool:
        """Take an address from interface `index`. False when it was not there (or the interface is gone)."""
        body = wire.address_body(index, interface.ip, interface.network.prefixlen)
        try:
            self._request(wire.RTM_DELADDR, 0, body, f"delete {interface} from interface {index}")
        except NetlinkError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise
            return False
        return True

    def solicit(self, index: int, address: IpAddress) -> None:
        """Ask the kernel to resolve (or confirm) a neighbour now, as a packet to it would."""
        body, flags = wire.neighbour_in_use(index, address), wire.NLM_F_CREATE | wire.NLM_F_REPLACE
        self._request(wire.RTM_NEWNEIGH, flags, body, f"resolve {address} on interface {index}")

    def accept_own_sources(self, index: int, *, loosely: bool) -> None:
        """Let the kernel forward IPv4 packets that come in on interface `index` from an address of this host.

        `loosely`: also take the strict reverse path filter off. As sysctls these would be `accept_local = 1` and
        `rp_filter = 2`; over netlink they need no writable /proc/sys.
        """
        settings = {wire.DEVCONF_ACCEPT_LOCAL: 1} | ({wire.DEVCONF_RP_FILTER: 2} if loosely else {})
        self._configure(index, settings, f"accept own sources on interface {index}")

    def keep_arp_apart(self, index: int, *, ignore: int) -> None:
        """No ARP on interface `index` for, or in the name of, an address that is not on it.

        As sysctls these would be `arp_ignore = 1` (or another value that does this and more) and `arp_announce = 2`.
        """
        settings = {wire.DEVCONF_ARP_IGNORE: ignore, wire.DEVCONF_ARP_ANNOUNCE: 2}
        self._configure(index, settings, f"keep ARP apart on interface {index}")

    def _configure(self, index: int, settings: Mapping[int, int], what: str) -> None:
        self._request(wire.RTM_SETLINK, 0, wire.inet_settings(index, settings), what)

    def deliver_locally(self, address: IpAddress) -> None:
        """Have the kernel take packets to `address` for its own, without the address being on any interface."""
        try:
            self._request(wire.RTM_NEWROUTE, wire.NLM_F_CREATE, wire.local_route(address), f"deliver {address} locally")
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def deliver_no_longer(self, address: IpAddress) -> None:
        """Undo `deliver_locally`."""
        try:
            self._request(wire.RTM_DELROUTE, 0, wire.local_route(address), f"deliver {address} no longer")
        except NetlinkError as error:
            if error.errno != errno.ESRCH:
                raise

    def delivered_locally(self) -> set[IpAddress]:
        """The addresses of `deliver_locally`, also of an earlier process."""
        found: set[IpAddress] = set()
        # Strict: the kernel itself picks these few out of what may be a whole Internet's routes.
        self._socket.setsockopt(wire.SOL_NETLINK, wire.NETLINK_GET_STRICT_CHK, 1)
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                bodies = self._dump(wire.RTM_GETROUTE, wire.RTM_NEWROUTE, wire.own_local_routes(family))
                found |= {address for body in bodies if (address := wire.parse_local_route(body)) is not None}
        finally:
            self._socket.setsockopt(wire.SOL_NETLINK, wire.NETLINK_GET_STRICT_CHK, 0)
        return found

    def _dump(self, kind: int, wanted: int, body: bytes) -> list[memoryview]:
        return self._exchange(kind, rtnetlink.DUMP, body, "dump", wanted)

    def _request(self, kind: int, flags: int, body: bytes, what: str) -> list[memoryview]:
        return self._exchange(kind, flags | rtnetlink.ACK, body, what, None)

    def _exchange(self, kind: int, flags: int, body: bytes, what: str, wanted: int | None) -> list[memoryview]:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        code, answers = rtnetlink.exchange(self._socket, kind, flags, self._sequence, body)
        if code:
            raise NetlinkError(code, f"netlink: {what}: {os.strerror(code)}")
        return [content for reply, content in answers if wanted is None or reply == wanted]
