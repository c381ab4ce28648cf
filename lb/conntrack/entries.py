# SPDX-License-Identifier: Apache-2.0
"""Entries of the kernel's connection tracking as they travel between gateways: pure functions over numpy arrays.

A message is an 8-byte header and records of `ENTRY`. Netlink bytes never leave a gateway: a record has only what a
peer needs to make the entry anew, in one layout on every kernel, and each of its fields is checked before this
gateway's kernel is asked for anything.
"""

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP

import numpy as np
import numpy.typing as npt

from lb.connections.batch import Batch

LAYOUT_VERSION = 1
IPPROTO_UDPLITE = 136
PROTOCOLS = (IPPROTO_TCP, IPPROTO_UDP, IPPROTO_UDPLITE)
# Longer than any of the kernel's defaults (5 days); an entry lives no longer than this without a packet.
TIMEOUT_S_MAX = 30 * 86400

ENTRY = np.dtype(
    [
        # The first 40 bytes are the key.
        ("source", "u1", 16),
        ("destination", "u1", 16),
        ("source_port", "<u2"),
        ("destination_port", "<u2"),
        ("zone", "<u2"),
        ("family", "u1"),
        ("protocol", "u1"),
        # The reply as it comes to the gateway: not the inverse of the above where addresses are translated.
        ("reply_source", "u1", 16),
        ("reply_destination", "u1", 16),
        ("reply_source_port", "<u2"),
        ("reply_destination_port", "<u2"),
        ("kind", "u1"),
        ("tcp_state", "u1"),
        ("scale", "u1"),
        ("reply_scale", "u1"),
        ("status", "<u4"),
        ("timeout_s", "<u4"),
        ("mark", "<u4"),
        ("tcp_flags", "u1"),
        ("reply_tcp_flags", "u1"),
        ("pad", "<u2"),
    ]
)
assert ENTRY.itemsize == 96

Entries = npt.NDArray[np.void]
Hashes = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_KEY_WORDS = 5


class Kind(IntEnum):
    """What a record tells."""

    CHANGED = 1  # the entry has just begun to matter, or has changed
    REFRESHED = 2  # the entry lives on
    DELETED = 3  # somebody has deleted it by hand


class Status(IntFlag):
    """Bits of an entry's status (linux/netfilter/nf_conntrack_common.h) that mean something here."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SOURCE_TRANSLATED = 1 << 4
    DESTINATION_TRANSLATED = 1 << 5
    SEQUENCE_ADJUSTED = 1 << 6


TRANSLATED = Status.SOURCE_TRANSLATED | Status.DESTINATION_TRANSLATED
# What a record says of the status; the kernel sets the rest itself.
TOLD_STATUS = Status.SEEN_REPLY | Status.ASSURED | TRANSLATED


class TcpState(IntEnum):
    """The kernel's states of a TCP connection (linux/netfilter/nf_conntrack_tcp.h) that are told apart here."""

    SYN_SENT = 1
    ESTABLISHED = 3
    TIME_WAIT = 7
    CLOSE = 8


_ENDS = ("source", "destination", "reply_source", "reply_destination")


class EntriesError(ValueError):
    """A peer's message is not what it should be."""


_BATCH = Batch(b"KT", LAYOUT_VERSION, ENTRY, "conntrack entries", "entries", EntriesError)


def pack_entries(entries: Entries) -> bytes:
    """One message with these entries (any stride)."""
    return _BATCH.pack(entries)


def unpack_entries(message: bytes | bytearray | memoryview) -> Entries:
    """The entries of a message, read-only and without a copy. Raises EntriesError with what is wrong."""
    return _BATCH.unpack(message)


def well_formed(entries: Entries) -> Mask:
    """Which entries the kernel may be asked for: known kind, family, protocol, state and status."""
    tcp = entries["protocol"] == IPPROTO_TCP
    state = entries["tcp_state"]
    good: Mask = np.isin(entries["kind"], list(Kind)) & np.isin(entries["protocol"], PROTOCOLS)
    good &= (entries["family"] == AF_INET) | (entries["family"] == AF_INET6)
    # Older kernels do not say in which state what is deleted was.
    least = np.where(entries["kind"] == Kind.DELETED, 0, TcpState.SYN_SENT)
    good &= np.where(tcp, (state >= least) & (state <= TcpState.CLOSE), state == 0)
    good &= (entries["status"] & ~np.uint32(TOLD_STATUS)) == 0
    good &= (entries["timeout_s"] > 0) | (entries["kind"] == Kind.DELETED)
    good &= entries["timeout_s"] <= TIMEOUT_S_MAX
    return good


def to_tell(entries: Entries, own: Hashes) -> Entries:
    """Those of the kernel's entries that peers are to know, as they are told.

    Those it calls assured (a flood of first packets is not), without an address of this gateway alone (`own`, as of
    `hash_addresses`): such a connection dies with the gateway. Sequence numbers that a helper or a SYN proxy shifts
    are known to this kernel alone.
    """
    status = entries["status"]
    wanted: Mask = (status & np.uint32(Status.ASSURED) != 0) & (entries["timeout_s"] > 0)
    wanted |= entries["kind"] == Kind.DELETED
    wanted &= (status & np.uint32(Status.SEQUENCE_ADJUSTED)) == 0
    for end in ("source", "destination"):
        wanted &= ~_of_this_host(entries, end)
    for end in _ENDS if len(own) else ():
        wanted &= ~np.isin(hash_addresses(entries[end]), own)
    told = entries[wanted]
    told["status"] &= np.uint32(TOLD_STATUS)
    return told


def _of_this_host(entries: Entries, end: str) -> Mask:
    """Loopback and link-local addresses."""
    first, second = entries[end][:, 0], entries[end][:, 1]
    v4 = entries["family"] == AF_INET
    local: Mask = v4 & (first == 127)
    local |= ~v4 & (((first == 0xFE) & (second & 0xC0 == 0x80)) | ~entries[end][:, :15].any(axis=1))
    return local


def pack_addresses(addresses: Iterable[IPv4Address | IPv6Address]) -> npt.NDArray[np.uint8]:
    """Addresses as entries have them: IPv4 is the first four bytes of sixteen, the rest zero."""
    return np.frombuffer(b"".join(each.packed.ljust(16, b"\0") for each in addresses), np.uint8).reshape(-1, 16)


def hash_addresses(addresses: npt.NDArray[np.uint8]) -> Hashes:
    """A number for each 16-byte address."""
    words = np.ascontiguousarray(addresses).view(np.uint64).reshape(-1, 2)
    mixed: Hashes = words[:, 0] * np.uint64(0x9E3779B97F4A7C15) + words[:, 1]
    return mixed


class Hasher:
    """64-bit hashes of entries' keys. `seed`: eight random bytes a word, of this process alone, so that nobody who
    opens connections can have two of them taken for one."""

    def __init__(self, seed: bytes) -> None:
        self._factors = np.frombuffer(seed, np.uint64, _KEY_WORDS) | np.uint64(1)

    def __call__(self, entries: Entries) -> Hashes:
        words = np.ascontiguousarray(entries).view(np.uint64).reshape(len(entries), ENTRY.itemsize // 8)
        hashes = np.zeros(len(entries), np.uint64)
        for column, factor in enumerate(self._factors):
            hashes ^= words[:, column]
            hashes *= factor
            hashes ^= hashes >> np.uint64(32)
        return hashes


SEED_BYTES = 8 * _KEY_WORDS


def summaries(entries: Entries) -> npt.NDArray[np.uint32]:
    """What of an entry's state matters to a peer, in one number: status, TCP state, mark."""
    mixed: npt.NDArray[np.uint32] = entries["mark"] * np.uint32(0x9E3779B1)
    mixed ^= entries["status"] & np.uint32(TOLD_STATUS)
    mixed ^= entries["tcp_state"].astype(np.uint32) << np.uint32(24)
    return mixed


def latest(entries: Entries, hashes: Hashes) -> npt.NDArray[np.intp]:
    """The places of the last entry of each key, in order."""
    _, places = np.unique(hashes[::-1], return_index=True)
    return np.sort(len(hashes) - 1 - places)
