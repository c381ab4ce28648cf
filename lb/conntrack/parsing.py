# SPDX-License-Identifier: Apache-2.0
"""ctnetlink's messages to entries, a whole batch at a time.

A message is a tree of attributes whose order and presence is up to the kernel. But messages with the same attributes
in the same order have every value in the same place, and there are only a few such shapes: TCP and UDP, IPv4 and IPv6,
marked or not. So the tree of one message is walked to learn its shape; from then on whatever agrees with it in all
attribute headers is read by columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, IPPROTO_TCP

import numpy as np
import numpy.typing as npt

from lb.conntrack.attributes import (
    ATTRIBUTE,
    BODY,
    HEADER,
    NLA_F_NESTED,
    NLA_TYPE_MASK,
    Cta,
    Info,
    Ip,
    Proto,
    Tuple,
    Type,
)
from lb.conntrack.entries import ENTRY, PROTOCOLS, TIMEOUT_S_MAX, Entries, Kind

Rows = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.intp]
Path = tuple[int, ...]

# Shapes known at once; the kernel makes about ten.
SHAPES_MAX = 256
# Shapes learnt from one batch: each costs about as much as a hundred entries read.
LEARNT_PER_BATCH_MAX = 32
DEPTH_MAX = 4


def _tuple_fields(tuple_of: Cta, prefix: str) -> dict[Path, tuple[str, str]]:
    return {
        (tuple_of, Tuple.IP, Ip.V4_SRC): (f"{prefix}source", "(4,)u1"),
        (tuple_of, Tuple.IP, Ip.V4_DST): (f"{prefix}destination", "(4,)u1"),
        (tuple_of, Tuple.IP, Ip.V6_SRC): (f"{prefix}source", "(16,)u1"),
        (tuple_of, Tuple.IP, Ip.V6_DST): (f"{prefix}destination", "(16,)u1"),
        (tuple_of, Tuple.PROTO, Proto.SRC_PORT): (f"{prefix}source_port", ">u2"),
        (tuple_of, Tuple.PROTO, Proto.DST_PORT): (f"{prefix}destination_port", ">u2"),
    }


# Where in the tree which field of an entry is, and how it is written there.
_FIELDS: dict[Path, tuple[str, str]] = {
    **_tuple_fields(Cta.TUPLE_ORIG, ""),
    **_tuple_fields(Cta.TUPLE_REPLY, "reply_"),
    (Cta.STATUS,): ("status", ">u4"),
    (Cta.TIMEOUT,): ("timeout_s", ">u4"),
    (Cta.MARK,): ("mark", ">u4"),
    (Cta.ZONE,): ("zone", ">u2"),
    (Cta.PROTOINFO, Info.TCP, Info.STATE): ("tcp_state", "u1"),
    (Cta.PROTOINFO, Info.TCP, Info.WSCALE_ORIGINAL): ("scale", "u1"),
    (Cta.PROTOINFO, Info.TCP, Info.WSCALE_REPLY): ("reply_scale", "u1"),
    (Cta.PROTOINFO, Info.TCP, Info.FLAGS_ORIGINAL): ("tcp_flags", "u1"),
    (Cta.PROTOINFO, Info.TCP, Info.FLAGS_REPLY): ("reply_tcp_flags", "u1"),
}
_PROTOCOL: Path = (Cta.TUPLE_ORIG, Tuple.PROTO, Proto.NUM)
_NESTS: frozenset[Path] = frozenset(path[:length] for path in _FIELDS for length in range(1, len(path)))
# Zones of one direction each are not told.
_FOREIGN: frozenset[Path] = frozenset((tuple_of, Tuple.ZONE) for tuple_of in (Cta.TUPLE_ORIG, Cta.TUPLE_REPLY))
_KEY_FIELDS = frozenset(name for path, (name, _) in _FIELDS.items() if path[0] in (Cta.TUPLE_ORIG, Cta.TUPLE_REPLY))
_KINDS = {Type.NEW: Kind.CHANGED, Type.DELETE: Kind.DELETED}


class ParseError(ValueError):
    """A message is no message of ctnetlink."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Messages alike. `want` is what they have where `mask` has ones; `view` reads the fields, and is None when
    messages of this shape are of no use to peers."""

    mask: Words
    want: Words
    view: np.dtype[np.void] | None
    family: int = 0
    protocol: int = 0
    kind: int = 0

    def read(self, rows: Rows) -> Entries:
        """The entries in messages of this shape."""
        assert self.view is not None
        entries = np.zeros(len(rows), ENTRY)
        values = rows.view(self.view)[:, 0]
        for name in self.view.names or ():
            column = values[name]
            if column.ndim == 2:
                entries[name][:, : column.shape[1]] = column
            else:
                entries[name] = column
        entries["family"], entries["protocol"], entries["kind"] = self.family, self.protocol, self.kind
        np.minimum(entries["timeout_s"], TIMEOUT_S_MAX, out=entries["timeout_s"])
        return entries


def attributes_of(message: bytes, start: int, end: int, path: Path = ()) -> Iterator[tuple[Path, int, int]]:
    """Path, offset and length of every attribute, nested ones of interest included. Raises ParseError."""
    while start < end:
        if end - start < ATTRIBUTE.size:
            raise ParseError("an attribute is cut short")
        length, kind = ATTRIBUTE.unpack_from(message, start)
        if length < ATTRIBUTE.size or start + length > end:
            raise ParseError(f"an attribute of {length} bytes where {end - start} are left")
        here = (*path, kind & NLA_TYPE_MASK)
        yield here, start, length
        if kind & NLA_F_NESTED and here in _NESTS and len(here) < DEPTH_MAX:
            yield from attributes_of(message, start + ATTRIBUTE.size, start + length, here)
        start += (length + 3) & ~3


def learn(message: bytes, width: int) -> Shape:
    """The shape of a message that is `width` (a multiple of 8) bytes wide with its padding. Raises ParseError."""
    length, kind = HEADER.unpack_from(message)[:2]
    if not BODY <= length <= width:
        raise ParseError(f"a message of {length} bytes in {width}")
    family = message[HEADER.size]
    mask = bytearray(width)
    # Length and type of the message, and the family: the first byte after its header.
    for place in (*range(6), HEADER.size):
        mask[place] = 0xFF
    fields: dict[str, tuple[str, int]] = {}
    protocol, useful = 0, kind in _KINDS and family in (AF_INET, AF_INET6)
    for path, start, size in attributes_of(message, BODY, length):
        value = start + ATTRIBUTE.size
        mask[start:value] = b"\xff" * ATTRIBUTE.size
        if path == _PROTOCOL and start + size > value:
            mask[value], protocol = 0xFF, message[value]
        if path in _FOREIGN:
            useful = False
        if path in _FIELDS:
            name, form = _FIELDS[path]
            if start + size < value + np.dtype(form).itemsize:
                raise ParseError(f"attribute {path} is {size} bytes long")
            fields[name] = (form, value)
    useful = useful and protocol in PROTOCOLS and fields.keys() >= _needed(kind, protocol)
    mask_words = np.frombuffer(bytes(mask), np.uint64)
    want = np.frombuffer(message, np.uint64) & mask_words
    view = _view(fields, width) if useful else None
    return Shape(mask_words, want, view, family, protocol, _KINDS[Type(kind)] if useful else 0)


def _needed(kind: int, protocol: int) -> frozenset[str]:
    if kind == Type.DELETE:
        return _KEY_FIELDS
    return _KEY_FIELDS | {"status", "timeout_s"} | ({"tcp_state"} if protocol == IPPROTO_TCP else set())


def _view(fields: dict[str, tuple[str, int]], width: int) -> np.dtype[np.void]:
    return np.dtype(
        {
            "names": list(fields),
            "formats": [form for form, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": width,
        }
    )


class Parser:
    """Reads batches of messages. `unread` counts those that could not be."""

    def __init__(self) -> None:
        self._shapes: dict[int, list[Shape]] = {}
        self._known = 0
        self.unread = 0

    def read(self, buffer: Rows, starts: Places, lengths: Places) -> Entries:
        """The entries in the messages at these places, in their order. `buffer` is one-dimensional and goes on for
        another 8 bytes after the last message."""
        widths = (lengths + 7) & ~7
        found: list[tuple[Entries, Places]] = []
        for width in np.unique(widths):
            places = np.flatnonzero(widths == width)
            rows = np.lib.stride_tricks.sliding_window_view(buffer, int(width))[starts[places]]
            self._read_alike(rows.view(np.uint64), places, found)
        if not found:
            return np.zeros(0, ENTRY)
        if len(found) == 1:
            return found[0][0]
        order = np.argsort(np.concatenate([places for _, places in found]))
        together: Entries = np.concatenate([entries for entries, _ in found])[order]
        return together

    def _read_alike(self, words: Words, places: Places, found: list[tuple[Entries, Places]]) -> None:
        """Messages of one width."""
        width = words.shape[1] * 8
        for shape in self._shapes.get(width, ()):
            words, places = _take(shape, words, places, found)
            if not len(words):
                return
        for _ in range(LEARNT_PER_BATCH_MAX):
            if not len(words):
                return
            try:
                shape = learn(words[0].tobytes(), width)
            except ParseError:
                self.unread += 1
                words, places = words[1:], places[1:]
                continue
            self._keep(width, shape)
            words, places = _take(shape, words, places, found)
        self.unread += len(words)

    def _keep(self, width: int, shape: Shape) -> None:
        if self._known >= SHAPES_MAX:
            self._shapes.clear()
            self._known = 0
        self._shapes.setdefault(width, []).append(shape)
        self._known += 1


def _take(shape: Shape, words: Words, places: Places, found: list[tuple[Entries, Places]]) -> tuple[Words, Places]:
    """Reads what has this shape; the rest."""
    same = ((words & shape.mask) == shape.want).all(axis=1)
    if not same.any():
        return words, places
    if shape.view is not None:
        found.append((shape.read(words[same].view(np.uint8)), places[same]))
    return words[~same], places[~same]
