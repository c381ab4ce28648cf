# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: the frame of its messages and attributes, requests and dumps (RFC 3549; linux/netlink.h)."""

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

REPLY_TIMEOUT_S: Final = 2.0
BUFFER_BYTES: Final = 1 << 18

REQUEST: Final = 0x1
ACK: Final = 0x4
DUMP: Final = 0x300
ERROR: Final = 2
DONE: Final = 3

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_KIND_MASK: Final = 0x3FFF  # two bits above say that the value is nested, or in network byte order


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One request."""
    return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, sequence, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """(kind, sequence, body) of each message in what was received."""
    view, at = memoryview(data), 0
    while at + _HEADER.size <= len(view):
        length, kind, _, sequence, _ = _HEADER.unpack_from(view, at)
        if length < _HEADER.size or at + length > len(view):
            return
        yield kind, sequence, view[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(kind, value) of each attribute behind a message's fixed part."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & _KIND_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3


def open_socket(groups: int = 0) -> socket.socket:
    """A socket for requests, or for what the kernel tells these groups."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    opened.settimeout(REPLY_TIMEOUT_S)
    opened.bind((0, groups))
    return opened


def exchange(
    netlink: socket.socket, kind: int, flags: int, sequence: int, body: bytes
) -> tuple[int, list[tuple[int, memoryview]]]:
    """(errno of a refusal or 0, kind and body of each answer) to a DUMP, or to what is to be acknowledged (ACK).

    What answers an earlier request, one that timed out, is left out.
    """
    netlink.send(message(kind, flags, sequence, body))
    answers: list[tuple[int, memoryview]] = []
    while True:
        for answered, about, content in messages(netlink.recv(BUFFER_BYTES)):
            if about != sequence:
                continue
            if answered == DONE:
                return 0, answers
            if answered == ERROR:
                return -int.from_bytes(content[:4], "little", signed=True), answers
            answers.append((answered, content))


def request(netlink: socket.socket, kind: int, body: bytes) -> memoryview:
    """The body of the answer, empty for a mere acknowledgement. Raises the OSError of a refusal."""
    answers = _bodies(netlink, kind, ACK, body)
    return answers[0] if answers else memoryview(b"")


def dump(netlink: socket.socket, kind: int, body: bytes) -> list[memoryview]:
    """The bodies of everything of a kind. Raises OSError."""
    return _bodies(netlink, kind, DUMP, body)


def told(netlink: socket.socket, overrun: Callable[[], None]) -> Iterator[bytes]:
    """What has been told to a socket's groups until now, a datagram at a time. `overrun()`: some of it was dropped,
    because nobody read it in time."""
    while True:
        try:
            data = netlink.recv(BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            overrun()
            continue
        yield data


def _bodies(netlink: socket.socket, kind: int, flags: int, body: bytes) -> list[memoryview]:
    code, answers = exchange(netlink, kind, flags, kind, body)
    if code:
        raise OSError(code, os.strerror(code))
    return [content for _, content in answers]
