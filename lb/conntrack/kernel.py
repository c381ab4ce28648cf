# SPDX-License-Identifier: Apache-2.0
"""The sockets to the kernel's connection tracking: its events, its table, and what is written into it.

Everything acts on the network namespace the thread was in when the socket was made. All calls block or may take long:
they belong into worker threads.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lb.conntrack.attributes import (
    ATTRIBUTE,
    BODY,
    GENERIC,
    HEADER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_OVERRUN,
    Cta,
    Group,
    Type,
)
from lb.conntrack.entries import TRANSLATED, Entries, Kind, Status, TcpState
from lb.conntrack.event_filter import event_filter
from lb.conntrack.mailbox import Mailbox
from lb.conntrack.parsing import Parser
from lb.conntrack.requests import Ask, requests

EVENT_BYTES_MAX = 1024
EVENTS_PER_READ_MAX = 512
EVENT_BUFFER_BYTES = 16 << 20
ANSWER_BUFFER_BYTES = 4 << 20
REQUEST_BUFFER_BYTES = 1 << 20
# Requests in one send; an error of each of them fits into the socket's buffer.
REQUESTS_PER_SEND_MAX = 512
DUMP_READ_BYTES = 1 << 16
REPLY_TIMEOUT_S = 5.0
EVENTS_SWITCH = Path("/proc/sys/net/netfilter/nf_conntrack_events")

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NETLINK_CAP_ACK = 270, 1, 10
_SO_ATTACH_FILTER, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 26, 32, 33
_ERROR = struct.Struct("=i")
# An error: its header, the number, the header of the request it is about.
_REFUSAL = np.dtype(
    {"names": ["type", "error", "sequence"], "formats": ["<u2", "<i4", "<u4"], "offsets": [4, 16, 28], "itemsize": 40}
)


class ConntrackUnavailable(OSError):
    """The kernel does not do what is needed; the text has the remedy."""


def _open(receive_bytes: int) -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        opened.bind((0, 0))
        opened.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
        opened.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, REQUEST_BUFFER_BYTES)
    except OSError:
        opened.close()
        raise
    return opened


def check_conntrack() -> str:
    """What the kernel offers, in words. Raises ConntrackUnavailable with what is missing and the remedy."""
    try:
        with _open(DUMP_READ_BYTES) as asking:
            asking.settimeout(REPLY_TIMEOUT_S)
            asking.send(HEADER.pack(BODY, Type.GET_STATS, NLM_F_REQUEST, 1, 0) + GENERIC.pack(0, 0, 0))
            answer = asking.recv(DUMP_READ_BYTES)
    except OSError as error:
        raise ConntrackUnavailable(
            f"ctnetlink cannot be asked ({error.strerror or error}): run lbd with CAP_NET_ADMIN, and "
            "`modprobe nf_conntrack_netlink`"
        ) from None
    if HEADER.unpack_from(answer)[1] == NLMSG_ERROR:
        number = -_ERROR.unpack_from(answer, HEADER.size)[0]
        raise ConntrackUnavailable(
            f"this kernel has no ctnetlink ({os.strerror(number)}): `modprobe nf_conntrack_netlink`, or a kernel with "
            "CONFIG_NF_CT_NETLINK"
        )
    try:
        switched_on = EVENTS_SWITCH.read_text().strip() != "0"
    except FileNotFoundError:
        raise ConntrackUnavailable(
            "this kernel reports no conntrack events: `modprobe nf_conntrack`, or a kernel with "
            "CONFIG_NF_CONNTRACK_EVENTS"
        ) from None
    if not switched_on:
        raise ConntrackUnavailable("conntrack events are switched off: `sysctl -w net.netfilter.nf_conntrack_events=1`")
    return "ctnetlink with events"


class EventsLost(Exception):
    """The kernel had more events than the socket's buffer could hold."""


class EventReader:
    """Events of entries that matter, many with one system call. `own_port`: what that socket writes is not told."""

    def __init__(self, own_port: int) -> None:
        self.parser = Parser()
        self._socket = _open(EVENT_BUFFER_BYTES)
        self._mailbox = Mailbox(self._socket, EVENTS_PER_READ_MAX, EVENT_BYTES_MAX)
        try:
            self._listen(own_port)
        except OSError:
            self._socket.close()
            raise

    def _listen(self, own_port: int) -> None:
        code = event_filter(own_port)
        kept = ctypes.create_string_buffer(code)
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        for group in Group:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[Entries, int]:
        """Entries of the events that are there now, in order, and how many events there were; does not wait. Raises
        EventsLost, once each time."""
        try:
            starts, lengths, count = self._mailbox.receive()
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise EventsLost from None
            raise
        self.parser.unread += count - len(starts)
        return self.parser.read(self._mailbox.buffer, starts, lengths), count

    def close(self) -> None:
        self._socket.close()


def dump_table() -> Generator[Entries, None, None]:
    """The kernel's table in pieces of about a hundred entries, assured ones only where the kernel can choose. Raises
    OSError."""
    mask = struct.pack("!I", Status.ASSURED)
    chosen = b"".join(ATTRIBUTE.pack(ATTRIBUTE.size + len(mask), kind) + mask for kind in (Cta.STATUS, Cta.STATUS_MASK))
    buffer = np.zeros(DUMP_READ_BYTES + 8, np.uint8)
    view, parser = memoryview(buffer.data)[:DUMP_READ_BYTES], Parser()
    with _open(ANSWER_BUFFER_BYTES) as asking:
        asking.settimeout(REPLY_TIMEOUT_S)
        asking.send(HEADER.pack(BODY + len(chosen), Type.GET, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + bytes(4) + chosen)
        while True:
            starts, lengths, over = _split(view, asking.recv_into(view))
            if starts:
                yield parser.read(buffer, np.array(starts, np.intp), np.array(lengths, np.intp))
            if over:
                return


def _split(view: memoryview, size: int) -> tuple[list[int], list[int], bool]:
    """Where the messages of one read begin, their lengths, and whether the dump is over. Raises OSError."""
    starts: list[int] = []
    lengths: list[int] = []
    place, unpack = 0, HEADER.unpack_from
    while place + HEADER.size <= size:
        length, kind, _, _, _ = unpack(view, place)
        if kind == NLMSG_DONE:
            return starts, lengths, True
        if kind in (NLMSG_ERROR, NLMSG_OVERRUN):
            number = -_ERROR.unpack_from(view, place + HEADER.size)[0] if kind == NLMSG_ERROR else errno.EIO
            raise OSError(number, f"the conntrack table cannot be read: {os.strerror(number)}")
        if not HEADER.size <= length <= size - place:
            raise OSError(errno.EBADMSG, f"the conntrack table cannot be read: a message of {length} bytes")
        starts.append(place)
        lengths.append(length)
        place += (length + 3) & ~3
    return starts, lengths, False


@dataclass(slots=True)
class WriteCounts:
    """What has become of entries that were to be written."""

    created: int = 0
    changed: int = 0
    deleted: int = 0
    present: int = 0
    refused: int = 0


class TableWriter:
    """Writes entries of peers into the kernel's table. For one thread."""

    def __init__(self) -> None:
        self._socket = _open(ANSWER_BUFFER_BYTES)
        self._mailbox = Mailbox(self._socket, REQUESTS_PER_SEND_MAX, _REFUSAL.itemsize)
        self.counts = WriteCounts()
        self.refusals: dict[str, int] = {}

    @property
    def port(self) -> int:
        """The number by which the kernel names this socket in events of what it wrote."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._socket.close()

    def fill(self, entries: Entries) -> None:
        """Create what is missing, and bring up to date what is there."""
        refused = self._ask(Ask.CREATE, entries)
        self.counts.created += len(entries) - len(refused)
        self._note(refused, errno.EEXIST)
        present = entries[_where(refused, errno.EEXIST)]
        self.counts.present += len(present)
        self._change(present)

    def apply(self, entries: Entries) -> None:
        """Make the table say what the entries say; one entry a key."""
        kinds = entries["kind"]
        deleted = entries[kinds == Kind.DELETED]
        begun = (kinds == Kind.CHANGED) & _just_begun(entries)
        going = (kinds != Kind.DELETED) & ~begun
        self._delete(deleted)
        self._begin(entries[begun])
        self._go_on(entries[going])

    def _delete(self, entries: Entries) -> None:
        refused = self._ask(Ask.DELETE, entries)
        self.counts.deleted += len(entries) - len(refused)
        self._note(refused, errno.ENOENT)

    def _begin(self, entries: Entries) -> None:
        """Entries that are most likely new here."""
        refused = self._ask(Ask.CREATE, entries)
        self.counts.created += len(entries) - len(refused)
        self._note(refused, errno.EEXIST)
        known = entries[_where(refused, errno.EEXIST)]
        translated = (known["status"] & np.uint32(TRANSLATED)) != 0
        self._change(known[~translated])
        # An old connection with the same ports: no request changes how an entry translates.
        again = known[translated]
        self._delete(again)
        refused = self._ask(Ask.CREATE, again)
        self.counts.created += len(again) - len(refused)
        self._note(refused)

    def _go_on(self, entries: Entries) -> None:
        """Entries that are most likely known here."""
        missing = entries[self._change(entries, errno.ENOENT)]
        state = missing["tcp_state"]
        missing = missing[(state != TcpState.TIME_WAIT) & (state != TcpState.CLOSE)]
        refused = self._ask(Ask.CREATE, missing)
        self.counts.created += len(missing) - len(refused)
        self._note(refused)

    def _change(self, entries: Entries, expected: int = 0) -> npt.NDArray[np.intp]:
        refused = self._ask(Ask.UPDATE, entries)
        self.counts.changed += len(entries) - len(refused)
        self._note(refused, expected)
        return _where(refused, expected)

    def _ask(self, ask: Ask, entries: Entries) -> npt.NDArray[np.void]:
        """Send a request for each entry; refusals, whose sequence number is the entry's place."""
        found: list[npt.NDArray[np.void]] = []
        for rows, _ in requests(ask, entries) if len(entries) else ():
            for first in range(0, len(rows), REQUESTS_PER_SEND_MAX):
                # The kernel has answered when this returns.
                self._socket.send(rows[first : first + REQUESTS_PER_SEND_MAX].data)
                found.append(self._answered())
        return np.concatenate(found) if found else np.zeros(0, _REFUSAL)

    def _answered(self) -> npt.NDArray[np.void]:
        """Refusals of what was sent last; there is room for all of them."""
        starts, _, _ = self._mailbox.receive()
        rows = self._mailbox.buffer[: self._mailbox.count * self._mailbox.size].view(_REFUSAL)
        answers = rows[starts // self._mailbox.size].copy()
        errors: npt.NDArray[np.void] = answers[answers["type"] == NLMSG_ERROR]
        return errors

    def _note(self, refused: npt.NDArray[np.void], *expected: int) -> None:
        """Counts what was refused for another reason than those."""
        others = -refused["error"][~np.isin(-refused["error"], expected)]
        self.counts.refused += len(others)
        for number, count in zip(*np.unique(others, return_counts=True), strict=True):
            name = errno.errorcode.get(int(number), str(number))
            self.refusals[name] = self.refusals.get(name, 0) + int(count)


def _where(refused: npt.NDArray[np.void], number: int) -> npt.NDArray[np.intp]:
    """The places of entries refused for this reason."""
    places: npt.NDArray[np.intp] = refused["sequence"][refused["error"] == -number].astype(np.intp)
    return places


def _just_begun(entries: Entries) -> npt.NDArray[np.bool_]:
    state = entries["tcp_state"]
    begun: npt.NDArray[np.bool_] = (state == 0) | (state == TcpState.ESTABLISHED)
    return begun
