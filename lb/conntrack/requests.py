# SPDX-License-Identifier: Apache-2.0
"""Entries to ctnetlink's requests, a whole batch at a time: one template for all that look alike, filled by columns.

What the kernel wants to hear (net/netfilter/nf_conntrack_netlink.c): a translated entry is made from its untranslated
reply and the new addresses, else the kernel does not know that it translates; what changes an entry may not mention
the translation at all. TCP windows are not replicated, so both directions are marked as liberal: the survivor takes
up the windows from the next packets.
"""

import struct
from collections.abc import Iterator
from enum import Enum
from functools import cache
from socket import AF_INET, IPPROTO_TCP
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lb.conntrack.attributes import (
    ATTRIBUTE,
    GENERIC,
    HEADER,
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Cta,
    Info,
    Ip,
    Nat,
    Proto,
    TcpFlag,
    Tuple,
    Type,
)
from lb.conntrack.entries import Entries, Status

_OPTIONS_MASK = TcpFlag.WINDOW_SCALE | TcpFlag.SACK_PERMITTED
_FLAGS_MASK = _OPTIONS_MASK | TcpFlag.BE_LIBERAL
_ANY_STATUS = Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED

Rows = npt.NDArray[np.uint8]
Places = npt.NDArray[np.intp]
Field = tuple[str, str]
Tree = list[tuple[int, "Tree | Field"]]


class Ask(Enum):
    """What the kernel is asked to do with an entry."""

    CREATE = (Type.NEW, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL)
    UPDATE = (Type.NEW, NLM_F_REQUEST)
    DELETE = (Type.DELETE, NLM_F_REQUEST)


class Look(NamedTuple):
    """What decides on the layout of a request."""

    family: int
    is_tcp: bool
    translates_source: bool
    translates_destination: bool
    has_zone: bool


class Template(NamedTuple):
    """A request but for its values; `view` has a field for each of them."""

    image: npt.NDArray[np.uint8]
    view: np.dtype[np.void]


def requests(ask: Ask, entries: Entries) -> Iterator[tuple[Rows, Places]]:
    """Requests for these (well-formed) entries: one a row, as they are sent, and the place of each one's entry.

    A request's sequence number is its entry's place.
    """
    looks = _looks_of(entries)
    for code in np.unique(looks):
        places = np.flatnonzero(looks == code)
        chosen = entries[places]
        first = chosen[0]
        look = Look(int(first["family"]), *(bool(code >> bit & 1) for bit in range(4)))
        yield _fill(template_of(ask, look), chosen, places), places


def _looks_of(entries: Entries) -> npt.NDArray[np.uint8]:
    status = entries["status"]
    looks: npt.NDArray[np.uint8] = (entries["protocol"] == IPPROTO_TCP).astype(np.uint8)
    looks |= ((status & np.uint32(Status.SOURCE_TRANSLATED)) != 0).astype(np.uint8) << 1
    looks |= ((status & np.uint32(Status.DESTINATION_TRANSLATED)) != 0).astype(np.uint8) << 2
    looks |= (entries["zone"] != 0).astype(np.uint8) << 3
    looks |= (entries["family"] == AF_INET).astype(np.uint8) << 4
    return looks


def _fill(template: Template, entries: Entries, places: Places) -> Rows:
    rows = np.empty((len(entries), len(template.image)), np.uint8)
    rows[:] = template.image
    values = rows.view(template.view)[:, 0]
    for name in template.view.names or ():
        column = values[name]
        given = _value(name, entries, places)
        # An IPv4 address is the first four bytes of sixteen.
        column[:] = given[:, : column.shape[1]] if column.ndim == 2 else given
    return rows


def _value(name: str, entries: Entries, places: Places) -> npt.NDArray[np.generic]:
    match name:
        case "sequence":
            return places
        case "status":
            status: npt.NDArray[np.uint32] = entries["status"] & np.uint32(_ANY_STATUS)
            return status | np.uint32(Status.CONFIRMED)
        case "tcp_flags" | "reply_tcp_flags":
            flags = (entries[name] & np.uint8(_OPTIONS_MASK)) | np.uint8(TcpFlag.BE_LIBERAL)
            return np.stack([flags, np.full(len(flags), _FLAGS_MASK, np.uint8)], axis=1)
    # The same value may be wanted in several places: "source_port.2" is another "source_port".
    column: npt.NDArray[np.generic] = entries[name.partition(".")[0]]
    return column


@cache
def template_of(ask: Ask, look: Look) -> Template:
    """The template for one kind of request and one look of entries."""
    kind, flags = ask.value
    tree: Tree = [(Cta.TUPLE_ORIG, _tuple(look, "source", "destination", "source_port", "destination_port"))]
    if look.has_zone:
        tree.append((Cta.ZONE, ("zone", ">u2")))
    if ask is Ask.CREATE:
        # The inverse of the original: what is translated is said apart.
        reply = _tuple(look, "destination.2", "source.2", "destination_port.2", "source_port.2")
        tree.append((Cta.TUPLE_REPLY, reply))
        if look.translates_source:
            tree.append((Cta.NAT_SRC, _translation(look, "reply_destination")))
        if look.translates_destination:
            tree.append((Cta.NAT_DST, _translation(look, "reply_source")))
    if ask is not Ask.DELETE:
        tree += _state(look)
    fields: dict[str, tuple[str, int]] = {}
    body = _write(tree, HEADER.size + GENERIC.size, fields)
    fields["sequence"] = ("=u4", 8)
    image = HEADER.pack(HEADER.size + GENERIC.size + len(body), kind, flags, 0, 0)
    image += GENERIC.pack(look.family, 0, 0) + body
    return Template(
        np.frombuffer(image, np.uint8),
        np.dtype(
            {
                "names": list(fields),
                "formats": [form for form, _ in fields.values()],
                "offsets": [offset for _, offset in fields.values()],
                "itemsize": len(image),
            }
        ),
    )


def _tuple(look: Look, source: str, destination: str, source_port: str, destination_port: str) -> Tree:
    v4 = look.family == AF_INET
    form = "(4,)u1" if v4 else "(16,)u1"
    addresses: Tree = [
        (Ip.V4_SRC if v4 else Ip.V6_SRC, (source, form)),
        (Ip.V4_DST if v4 else Ip.V6_DST, (destination, form)),
    ]
    protocol = "protocol.2" if "." in source else "protocol"
    ports: Tree = [
        (Proto.NUM, (protocol, "u1")),
        (Proto.SRC_PORT, (source_port, ">u2")),
        (Proto.DST_PORT, (destination_port, ">u2")),
    ]
    return [(Tuple.IP, addresses), (Tuple.PROTO, ports)]


def _translation(look: Look, end: str) -> Tree:
    """To exactly this address and port."""
    v4 = look.family == AF_INET
    form = "(4,)u1" if v4 else "(16,)u1"
    return [
        (Nat.V4_MINIP if v4 else Nat.V6_MINIP, (end, form)),
        (Nat.V4_MAXIP if v4 else Nat.V6_MAXIP, (f"{end}.2", form)),
        (Nat.PROTO, [(Nat.PORT_MIN, (f"{end}_port", ">u2")), (Nat.PORT_MAX, (f"{end}_port.2", ">u2"))]),
    ]


def _state(look: Look) -> Tree:
    tree: Tree = [
        (Cta.STATUS, ("status", ">u4")),
        (Cta.TIMEOUT, ("timeout_s", ">u4")),
        (Cta.MARK, ("mark", ">u4")),
    ]
    if look.is_tcp:
        tcp: Tree = [
            (Info.STATE, ("tcp_state", "u1")),
            (Info.WSCALE_ORIGINAL, ("scale", "u1")),
            (Info.WSCALE_REPLY, ("reply_scale", "u1")),
            # Each with the mask of the flags that are meant.
            (Info.FLAGS_ORIGINAL, ("tcp_flags", "(2,)u1")),
            (Info.FLAGS_REPLY, ("reply_tcp_flags", "(2,)u1")),
        ]
        tree.append((Cta.PROTOINFO, [(Info.TCP, tcp)]))
    return tree


def _write(tree: Tree, start: int, fields: dict[str, tuple[str, int]]) -> bytes:
    """The attributes as bytes that begin at `start` of a message; notes where the fields are."""
    written = b""
    for kind, content in tree:
        offset = start + len(written) + ATTRIBUTE.size
        if isinstance(content, list):
            kind |= NLA_F_NESTED
            value = _write(content, offset, fields)
        else:
            name, form = content
            fields[name] = (form, offset)
            value = bytes(np.dtype(form).itemsize)
        written += struct.pack("=HH", ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
    return written
