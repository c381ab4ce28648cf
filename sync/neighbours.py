# SPDX-License-Identifier: Apache-2.0
"""Has the kernel ask anew for a neighbour it has asked for in vain.

While a cable is out, ARP and ND requests go nowhere, and Linux repeats them only after a second (`retrans_time_ms`),
though the cable may be back after a tenth of one. Until then it keeps or drops what is sent there: a way that carries
one direction only. Shortening that time for an interface would also shorten the patience with everybody else on it, so
the one entry is set back to its beginning instead, and asks at once. Entries that are resolved stay as they are.

A few requests over rtnetlink (linux/neighbour.h). The kernel may serve them late while an interface is being changed,
so they are made in a thread.
"""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Final

from sync import rtnetlink
from sync.sockets import SocketAddress, family_of
from sync.subscriptions import log

_NEWNEIGH, _GETNEIGH, _GETROUTE = 28, 30, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _NDA_DST = 1, 4, 5, 1
_INCOMPLETE, _FAILED = 0x01, 0x20
_USE: Final = 0x01  # NTF_USE: as if there were something to send

_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")


class Search:
    """Looks for silent peers in one of the loop's worker threads at a time; never again without the permission."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        self._wanted: dict[SocketAddress, None] = {}
        """In order; no more than the peers have addresses."""
        self._under_way = False
        self._permitted = True

    def begin(self, loop: asyncio.AbstractEventLoop, address: SocketAddress) -> None:
        """Have the next hop towards this address asked for anew, if it is unresolved."""
        if self._permitted:
            self._wanted[address] = None
            if not self._under_way:
                self._next(loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        addresses, self._wanted = list(self._wanted), {}
        self._under_way = True
        loop.run_in_executor(None, _ask_for_all, addresses).add_done_callback(partial(self._ended, loop))

    def _ended(self, loop: asyncio.AbstractEventLoop, asked: asyncio.Future[Counter[str]]) -> None:
        self._under_way = False
        if asked.cancelled():
            return
        self._counters.update(asked.result())
        if asked.result()["neighbours_not_permitted"]:
            self._permitted = False
            log.warning(
                "no permission to have neighbours asked for anew: the way to a peer may stay closed for a second "
                "after its cable is back; grant CAP_NET_ADMIN"
            )
        elif self._wanted:
            self._next(loop)


def _ask_for_all(addresses: Sequence[SocketAddress]) -> Counter[str]:
    """How it went, as counters."""
    counts: Counter[str] = Counter()
    for address in addresses:
        try:
            counts["neighbours_asked_again"] += ask_again(address)
        except PermissionError:
            counts["neighbours_not_permitted"] += 1
            break
        except OSError:
            counts["neighbours_without_route"] += 1
    return counts


def ask_again(address: SocketAddress) -> bool:
    """True when the next hop towards this address was unresolved and has been asked for anew.

    Raises PermissionError without CAP_NET_ADMIN, other OSErrors when there is no way there at all.
    """
    with rtnetlink.open_socket() as netlink:
        index, hop = _next_hop(netlink, address)
        family = family_of(address)
        try:
            reply = rtnetlink.request(netlink, _GETNEIGH, _neighbour(family, index, 0, hop))
        except FileNotFoundError:
            return False  # nobody has asked yet: the next datagram will
        _, _, state, _, _ = _NEIGHBOUR.unpack_from(reply)
        if not state & (_INCOMPLETE | _FAILED):
            return False
        for flags in (0, _USE):  # to the state of an entry nobody has used yet, and from there on; its queue stays
            rtnetlink.request(netlink, _NEWNEIGH, _neighbour(family, index, flags, hop))
        return True


def _next_hop(netlink: socket.socket, address: SocketAddress) -> tuple[int, bytes]:
    """(interface, address to resolve on it) by the kernel's routes."""
    packed = socket.inet_pton(family_of(address), address[0].partition("%")[0])
    if len(address) == 4 and address[3]:
        return address[3], packed  # link-local: the interface is part of the address
    bits = 8 * len(packed)
    route = _ROUTE.pack(family_of(address), bits, 0, 0, 0, 0, 0, 0, 0) + rtnetlink.attribute(_RTA_DST, packed)
    reply = rtnetlink.request(netlink, _GETROUTE, route)
    found = dict(rtnetlink.attributes(reply[_ROUTE.size :]))
    return int.from_bytes(found[_RTA_OIF], "little"), bytes(found.get(_RTA_GATEWAY, packed))


def _neighbour(family: int, index: int, flags: int, hop: bytes) -> bytes:
    return _NEIGHBOUR.pack(family, index, 0, flags, 0) + rtnetlink.attribute(_NDA_DST, hop)
