# SPDX-License-Identifier: Apache-2.0
"""Notices that a link has lost its carrier: nobody has to wait for an acknowledgement to find out.

The kernel tells of every change of an interface (RTMGRP_LINK). What happens to interfaces behind a switch, it does not.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from sync import rtnetlink
from sync.sockets import SocketAddress, family_of

_RTMGRP_LINK: Final = 1
_NEWLINK, _GETADDR = 16, 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_RUNNING: Final = 0x40

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")


class Carrier:
    """Watches the interfaces that have the addresses of our links; `fileno` is readable when there may be news."""

    def __init__(self, local: Sequence[SocketAddress]) -> None:
        """Raises OSError where rtnetlink is not to be had."""
        self._interfaces = interfaces_of(local)
        self._lost: set[int] = set()
        self._socket = rtnetlink.open_socket(_RTMGRP_LINK)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def lost(self) -> list[int]:
        """The links that have lost their carrier since this was last asked."""
        gone: list[int] = []
        for index, flags in self._news():
            links = [link for link, interface in enumerate(self._interfaces) if interface == index]
            if not flags & _IFF_RUNNING:
                gone += (link for link in links if link not in self._lost)
                self._lost.update(links)
            else:
                self._lost.difference_update(links)
        return gone

    def _news(self) -> Iterator[tuple[int, int]]:
        """(interface, flags), oldest first. What the kernel had no room for is lost: the ring does without."""
        for data in rtnetlink.told(self._socket, lambda: None):
            for kind, _, body in rtnetlink.messages(data):
                if kind == _NEWLINK:
                    _, _, index, flags, _ = _LINK.unpack_from(body)
                    yield index, flags


def interfaces_of(local: Sequence[SocketAddress]) -> list[int]:
    """The index of the interface that has each of these addresses, 0 for one that none has (any address, say)."""
    by_address: dict[tuple[int, bytes], int] = {}
    with rtnetlink.open_socket() as netlink:
        for body in rtnetlink.dump(netlink, _GETADDR, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            family, _, _, _, index = _ADDRESS.unpack_from(body)
            found = dict(rtnetlink.attributes(body[_ADDRESS.size :]))
            packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
            if packed is not None:
                by_address.setdefault((family, bytes(packed)), index)
    return [_index_of(address, by_address) for address in local]


def _index_of(address: SocketAddress, by_address: dict[tuple[int, bytes], int]) -> int:
    if len(address) == 4 and address[3]:
        return address[3]  # link-local: the interface is part of the address
    family = family_of(address)
    return by_address.get((family, socket.inet_pton(family, address[0].partition("%")[0])), 0)
