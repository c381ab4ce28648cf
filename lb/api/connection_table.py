# SPDX-License-Identifier: Apache-2.0
"""Filtering, paging and grouping of the connection table, piece by piece with numpy.

Pure: pieces of keys and values in (ebpf.layout's FLOW_KEY and CONNECTION), rows out. A table of a million entries is
never held whole; a piece is a few megabytes.
"""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.layout import FLOW_KEY, PROTOCOLS, State, unpack_address
from lb.api.datapath import Names
from lb.api.problems import ApiProblem
from lb.api.shapes import ConnectionFilter

Rows = npt.NDArray[np.void]
Mask = npt.NDArray[np.bool_]

PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
STATE_NAMES = {int(state): state.name.lower() for state in State}
GROUP_FIELDS = (
    "protocol", "source", "source_port", "destination", "destination_port", "service", "backend", "owner", "origin",
    "state",
)  # fmt: skip
_IN_KEY = set(FLOW_KEY.names or ())
_IN_VALUE = {"backend": "target", "service": "service", "owner": "owner", "origin": "origin", "state": "state"}
#: Groups are merged whenever this many have piled up.
GROUPS_PENDING_MAX = 1 << 18


@dataclass(frozen=True)
class Piece:
    """Part of the table. cursor: where this piece was read from; after: where the next one is, None at the end."""

    cursor: str
    after: str | None
    keys: Rows
    values: Rows


@dataclass(frozen=True)
class Condition:
    """A filter resolved to numbers: what each row is compared with."""

    exact_key: tuple[tuple[str, int], ...]
    networks: tuple[tuple[str, npt.NDArray[np.uint8], npt.NDArray[np.uint8]], ...]
    exact_value: tuple[tuple[str, tuple[int, ...]], ...]
    idle_min_s: float | None
    idle_max_s: float | None

    def matches(self, piece: Piece, now_s: int) -> Mask:
        """Which rows of piece fulfil everything. now_s: CLOCK_MONOTONIC in whole seconds."""
        mask = np.ones(len(piece.keys), np.bool_)
        for field, wanted in self.exact_key:
            mask &= piece.keys[field] == wanted
        for field, network, bits in self.networks:
            mask &= ((piece.keys[field] & bits) == network).all(axis=1)
        for field, allowed in self.exact_value:
            mask &= np.isin(piece.values[field], allowed)
        if self.idle_min_s is not None or self.idle_max_s is not None:
            idle = idle_seconds(piece.values, now_s)
            mask &= idle >= (self.idle_min_s or 0)
            mask &= idle <= (np.inf if self.idle_max_s is None else self.idle_max_s)
        return mask


def idle_seconds(values: Rows, now_s: int) -> npt.NDArray[np.int64]:
    """Seconds since the last packet; an entry touched while being read is not in the future."""
    idle: npt.NDArray[np.int64] = np.maximum(now_s - values["last_seen_s"].astype(np.int64), 0)
    return idle


def condition_of(wanted: ConnectionFilter, names: Names) -> Condition:
    """Names looked up. Raises ApiProblem(not_found) for a name nobody has."""
    key: list[tuple[str, int]] = []
    if wanted.protocol:
        key.append(("protocol", PROTOCOLS[wanted.protocol]))
    ports = ((field, getattr(wanted, field)) for field in ("source_port", "destination_port"))
    key += [(field, port) for field, port in ports if port is not None]
    networks = [(f, *_network(getattr(wanted, f))) for f in ("source", "destination") if getattr(wanted, f)]
    return Condition(
        tuple(key), tuple(networks), tuple(_value_conditions(wanted, names)), wanted.idle_min_s, wanted.idle_max_s
    )


def _value_conditions(wanted: ConnectionFilter, names: Names) -> Iterator[tuple[str, tuple[int, ...]]]:
    if wanted.service is not None:
        yield "service", _numbers(names.services, wanted.service, "service")
    if wanted.backend is not None:
        by_backend = {number: backend for number, (_, backend) in names.backends.items()}
        yield "target", _numbers(by_backend, wanted.backend, "backend")
    if wanted.owner is not None:
        yield "owner", _numbers(names.nodes, wanted.owner, "owner")
    if wanted.origin is not None:
        yield "origin", _numbers(names.nodes, wanted.origin, "origin")
    if wanted.state is not None:
        yield "state", (int(State[wanted.state.upper()]),)


def _numbers(table: Any, name: str, field: str) -> tuple[int, ...]:
    found = tuple(number for number, known in table.items() if known == name)
    if not found:
        known = ", ".join(sorted(set(table.values()))[:20]) or "none"
        raise ApiProblem("not_found", f"no {field} is called '{name}'", field=field, remedy=f"known: {known}")
    return found


def _network(text: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Network and mask as 16 bytes each; IPv4 as ::ffff:a.b.c.d."""
    network = ipaddress.ip_network(text)
    mapped = network.version == 4
    head = b"\0" * 10 + b"\xff\xff" if mapped else b""
    address = np.frombuffer(head + network.network_address.packed, np.uint8)
    mask = np.frombuffer((b"\xff" * 12 if mapped else b"") + network.netmask.packed, np.uint8)
    return address, mask


def page(
    pieces: Iterator[Piece], skip: int, limit: int, condition: Condition, names: Names, now_s: int
) -> dict[str, Any]:
    """Up to limit matching rows, from the skip-th match of the first piece on; as of shapes.ConnectionPage."""
    rows: list[dict[str, Any]] = []
    scanned = 0
    for piece in pieces:
        scanned += len(piece.keys)
        found = np.flatnonzero(condition.matches(piece, now_s))[skip:]
        taken = found[: limit - len(rows)]
        rows += described(piece.keys[taken], piece.values[taken], names, now_s)
        if len(taken) < len(found):
            return {"connections": rows, "cursor": f"{piece.cursor}.{skip + len(taken)}", "scanned": scanned}
        skip = 0
        if len(rows) == limit or piece.after is None:
            return {"connections": rows, "cursor": piece.after, "scanned": scanned}
    return {"connections": rows, "cursor": None, "scanned": scanned}


def described(keys: Rows, values: Rows, names: Names, now_s: int) -> list[dict[str, Any]]:
    """As of shapes.Connection."""
    idle = idle_seconds(values, now_s)
    return [
        _row(key, value, int(seconds), names, now_s) for key, value, seconds in zip(keys, values, idle, strict=True)
    ]


def _row(key: Any, value: Any, idle_s: int, names: Names, now_s: int) -> dict[str, Any]:
    service, backend = names.backends.get(int(value["target"]), (None, None))
    return {
        "protocol": field_name("protocol", int(key["protocol"]), names),
        "source": str(unpack_address(key["source"])),
        "source_port": int(key["source_port"]),
        "destination": str(unpack_address(key["destination"])),
        "destination_port": int(key["destination_port"]),
        "service": names.services.get(int(value["service"]), service),
        "backend": backend,
        "target_id": int(value["target"]),
        "owner": names.node(int(value["owner"])),
        "origin": names.node(int(value["origin"])),
        "state": field_name("state", int(value["state"]), names),
        "idle_s": idle_s,
        "age_s": max(now_s - int(value["opened_s"]), 0),
    }


def field_name(field: str, number: int, names: Names) -> str:
    """What the number in a field is called; the number itself if nobody knows."""
    if field == "protocol":
        return PROTOCOL_NAMES.get(number, str(number))
    if field == "state":
        return STATE_NAMES.get(number, str(number))
    if field in ("owner", "origin"):
        return names.node(number) or "none"
    if field == "service":
        return names.services.get(number, str(number))
    if field == "backend":
        return "/".join(names.backends[number]) if number in names.backends else str(number)
    return str(number)


def group_fields(text: str) -> tuple[str, ...]:
    """The fields of `by=a,b`. Raises ApiProblem(invalid)."""
    fields = tuple(part.strip() for part in text.split(","))
    wrong = [field for field in fields if field not in GROUP_FIELDS]
    if wrong or len(set(fields)) != len(fields):
        raise ApiProblem(
            "invalid", f"by: cannot group by {text!r}", field="by", remedy=f"any of: {', '.join(GROUP_FIELDS)}"
        )
    return fields


def columns_of(piece: Piece, fields: tuple[str, ...], mask: Mask) -> npt.NDArray[np.uint8]:
    """The bytes of the chosen fields, one row each; equal rows are the same group."""
    parts = []
    for field in fields:
        column = piece.keys[field] if field in _IN_KEY else piece.values[_IN_VALUE[field]]
        parts.append(np.ascontiguousarray(column[mask]).view(np.uint8).reshape(int(mask.sum()), -1))
    return np.concatenate(parts, axis=1)


class Groups:
    """Counts equal rows of bytes over many pieces; memory is bounded by the number of different rows in the table."""

    def __init__(self) -> None:
        self._rows: list[npt.NDArray[np.uint8]] = []
        self._counts: list[npt.NDArray[np.int64]] = []
        self._pending = 0

    def add(self, rows: npt.NDArray[np.uint8]) -> None:
        self._put(rows, np.ones(len(rows), np.int64))
        if self._pending > GROUPS_PENDING_MAX:
            self._merge()

    def biggest(self, limit: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The rows with the highest counts and these counts; ties in order of the rows' bytes."""
        if not self._rows:
            return np.zeros((0, 0), np.uint8), np.zeros(0, np.int64)
        self._merge()
        rows, counts = self._rows[0], self._counts[0]
        kept = np.argpartition(-counts, limit - 1)[:limit] if limit < len(counts) else np.arange(len(counts))
        order = sorted(kept, key=lambda index: (-int(counts[index]), rows[index].tobytes()))
        return rows[order], counts[order]

    def _put(self, rows: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> None:
        self._rows.append(rows)
        self._counts.append(counts)
        self._pending += len(rows)

    def _merge(self) -> None:
        rows, counts = np.concatenate(self._rows), np.concatenate(self._counts)
        self._rows, self._counts, self._pending = [], [], 0
        _, first, group = np.unique(_fingerprint(rows), return_index=True, return_inverse=True)
        self._put(rows[first], np.bincount(group, weights=counts).astype(np.int64))
        self._pending = 0


def _fingerprint(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """64 bits per row: sorting numbers is ten times faster than sorting bytes; a million rows collide with
    probability 3e-8, and then two groups are shown as one."""
    words = -(-rows.shape[1] // 8)
    padded = np.zeros((len(rows), words * 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    mixed = np.full(len(rows), 0x9E3779B97F4A7C15, np.uint64)
    for column in padded.view(np.uint64).T:
        # splitmix64's finaliser after each word
        mixed ^= column
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def top(
    pieces: Iterator[Piece], fields: tuple[str, ...], limit: int, condition: Condition, names: Names, now_s: int
) -> dict[str, Any]:
    """The biggest groups; as of shapes.ConnectionTop."""
    groups = Groups()
    scanned = matched = 0
    for piece in pieces:
        mask = condition.matches(piece, now_s)
        scanned += len(piece.keys)
        if mask.any():
            matched += int(mask.sum())
            groups.add(columns_of(piece, fields, mask))
    rows, counts = groups.biggest(limit)
    described_rows = [
        {"key": _group_key(row.tobytes(), fields, names), "connections": int(count)}
        for row, count in zip(rows, counts, strict=True)
    ]
    return {"by": list(fields), "rows": described_rows, "matched": matched, "scanned": scanned}


_WIDTH = {"source": 16, "destination": 16, "protocol": 1, "owner": 1, "origin": 1, "state": 1}


def _group_key(data: bytes, fields: tuple[str, ...], names: Names) -> dict[str, Any]:
    key: dict[str, Any] = {}
    for field in fields:
        width = _WIDTH.get(field, 2)
        part, data = data[:width], data[width:]
        if width == 16:
            key[field] = str(unpack_address(part))
        elif field.endswith("_port"):
            key[field] = int.from_bytes(part, "big")
        else:
            key[field] = field_name(field, int.from_bytes(part, "little"), names)
    return key
