# SPDX-License-Identifier: Apache-2.0
"""The packet path of this gateway as the API sees it: counters and connections from the pinned maps.

Everything here blocks and runs in threads; the batch calls of the kernel release the GIL. The pins are opened when
first needed and again when the packet path was loaded anew.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf import libbpf
from ebpf.layout import FLOW_KEY, SERVICE_COUNT_MAX, TARGET_COUNT_MAX, State
from ebpf.map_access import Map
from ebpf.maps import LayoutMismatchError, Maps, MapsMissingError
from ebpf.reasons import REASONS
from lb.api import connection_table
from lb.api.capture import mirror
from lb.api.connection_table import Piece
from lb.api.datapath import Counters, DataPathAway, Names, ReasonCount, Traffic
from lb.api.shapes import CaptureRequest, ConnectionQuery, TopQuery, WhereRequest
from lb.api.where import trace

MAPS_DIRECTORY = "maps"
PIECE_ENTRIES = 1 << 15
#: A hash bucket may hold more than a piece only if the hash is under attack; beyond this the dump gives up.
PIECE_ENTRIES_MAX = 1 << 19


#: The table is counted again after this many times the time that took.
RECOUNT_PAUSE = 20
OPEN_STATES = [int(s) for s in State if s not in (State.CLOSING, State.RESET)]


@dataclass(frozen=True)
class OpenConnections:
    """Connections that this gateway handles, by target id and by service id."""

    by_target: npt.NDArray[np.int64]
    by_service: npt.NDArray[np.int64]


def count_open(pieces: Iterator[tuple[Any, Any]], node: int) -> OpenConnections:
    """Open connections whose owner is node, from pieces of (keys, values) of the connection table."""
    by_target, by_service = np.zeros(TARGET_COUNT_MAX, np.int64), np.zeros(SERVICE_COUNT_MAX, np.int64)
    for _, values in pieces:
        mine = values[(values["owner"] == node) & np.isin(values["state"], OPEN_STATES)]
        by_target += np.bincount(mine["target"], minlength=TARGET_COUNT_MAX)[:TARGET_COUNT_MAX]
        by_service += np.bincount(mine["service"], minlength=SERVICE_COUNT_MAX)[:SERVICE_COUNT_MAX]
    return OpenConnections(by_target, by_service)


def monotonic_s() -> int:
    """The clock of last_seen_s."""
    return int(time.monotonic())


# What the packet path counts per target and people see.
COUNTED = ("packets", "bytes", "opened", "refused", "unreachable")


class PinnedDataPath:
    """Implements lb.api.datapath.DataPath over the pins below directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._maps: Maps | None = None
        self._inode = 0
        self._counting = threading.Lock()
        self._open: OpenConnections | None = None
        self._recount_at = 0.0

    def counters(self) -> Counters:
        with self._using() as maps:
            targets = maps.target_counters.dump()[1]
            services = maps.service_counters.dump()[1]
            owners = maps.targets.dump()[1]["service"]
            reasons = maps.reason_counters.dump()[1]
            open_now = self._open_connections(maps)
        per_target = {name: targets[name].sum(axis=1) for name in COUNTED}
        per_target["active"] = open_now.by_target
        return Counters(
            services=_service_traffic(per_target, owners, services["opened"].sum(axis=1), open_now.by_service),
            backends=_target_traffic(per_target),
            reasons=_reason_counts(reasons),
        )

    def _open_connections(self, maps: Maps) -> "OpenConnections":
        """Counted anew when the last count is old in proportion to what it took: at most 5 % of a core, any table."""
        with self._counting:
            begin = time.monotonic()
            if self._open is None or begin >= self._recount_at:
                settings = maps.settings.get(0)
                node = 0 if settings is None else int(settings["node"])
                self._open = count_open(maps.connections.chunks(PIECE_ENTRIES), node)
                end = time.monotonic()
                self._recount_at = end + RECOUNT_PAUSE * (end - begin)
            return self._open

    def connections(self, query: ConnectionQuery, names: Names) -> dict[str, Any]:
        condition = connection_table.condition_of(query, names)
        start, _, skip = (query.cursor or "").partition(".")
        with self._using() as maps:
            pieces = pieces_of(maps.connections, start or None)
            return connection_table.page(pieces, int(skip or 0), query.limit, condition, names, monotonic_s())

    def top(self, query: TopQuery, names: Names) -> dict[str, Any]:
        fields = connection_table.group_fields(query.by)
        condition = connection_table.condition_of(query, names)
        with self._using() as maps:
            pieces = pieces_of(maps.connections, None)
            return connection_table.top(pieces, fields, query.limit, condition, names, monotonic_s())

    def where(self, request: WhereRequest, names: Names) -> dict[str, Any]:
        with self._using() as maps:
            return trace(self._directory, maps, request, names)

    def capture(self, request: CaptureRequest, names: Names, stop: Callable[[], bool]) -> Iterator[bytes]:
        with self._using() as maps:
            yield from mirror(maps, request, names, stop)

    @contextlib.contextmanager
    def _using(self) -> Iterator[Maps]:
        try:
            yield self._opened()
        except (MapsMissingError, LayoutMismatchError) as error:
            raise DataPathAway(str(error)) from error
        except OSError as error:
            raise DataPathAway(f"{self._directory}: {error.strerror or error}") from error

    def _opened(self) -> Maps:
        """The maps behind the pins as they are now; old descriptors stay open until nobody uses them."""
        directory = self._directory / MAPS_DIRECTORY
        with self._lock:
            try:
                inode = (directory / "settings").stat().st_ino
            except FileNotFoundError:
                raise MapsMissingError(f"nothing is pinned at {directory}") from None
            if self._maps is None or inode != self._inode:
                self._maps, self._inode = Maps.open(directory), inode
            return self._maps


def pieces_of(table: Map, start: str | None, entries: int = PIECE_ENTRIES) -> Iterator[Piece]:
    """The table from a cursor (hexadecimal, of a Piece) or the beginning on. Raises OSError."""
    position = np.zeros(FLOW_KEY.itemsize, np.uint8)
    if start:
        position[:4] = np.frombuffer(int(start, 16).to_bytes(4, "little"), np.uint8)
    cursor: str | None = start
    while True:
        keys, values, follow, done, entries = _look_up(table, position if cursor else None, entries)
        after = None if done else follow[:4].tobytes()[::-1].hex()
        yield Piece(cursor or "0", after, keys, values)
        if after is None:
            return
        position, cursor = follow, after


def _look_up(table: Map, position: Any, entries: int) -> tuple[Any, Any, Any, bool, int]:
    """One batch, with more room if a hash bucket needs it."""
    follow = np.zeros(FLOW_KEY.itemsize, np.uint8)
    while True:
        keys, values = np.zeros(entries, table.spec.key), np.zeros(entries, table.spec.value)
        start = None if position is None else position.ctypes.data
        count, error = libbpf.lookup_batch(
            table.fd, start, follow.ctypes.data, keys.ctypes.data, values.ctypes.data, entries
        )
        if error == errno.ENOSPC and entries < PIECE_ENTRIES_MAX:
            entries *= 2
            continue
        if error and error != errno.ENOENT:
            raise OSError(error, os.strerror(error))
        return keys[:count], values[:count], follow, error == errno.ENOENT, entries


def _target_traffic(per_target: dict[str, Any]) -> dict[int, Traffic]:
    used = np.flatnonzero(sum(per_target[name] for name in COUNTED) + per_target["active"].astype(np.uint64))
    return {int(number): _traffic(per_target, number) for number in used}


def _traffic(columns: dict[str, Any], number: Any) -> Traffic:
    names = ("packets", "bytes", "opened", "active", "refused", "unreachable")
    return Traffic(*(int(columns[name][number]) for name in names))


def _service_traffic(per_target: dict[str, Any], owners: Any, opened: Any, active: Any) -> dict[int, Traffic]:
    """Traffic of a service is that of its targets; one without targets (local) still counts connections."""
    size = max(int(owners.max(initial=0)) + 1, len(opened))
    sums = {name: np.bincount(owners, weights=column, minlength=size) for name, column in per_target.items()}
    sums["opened"][: len(opened)] = np.maximum(sums["opened"][: len(opened)], opened)
    sums["active"] = np.zeros(size, np.int64)
    sums["active"][: len(active)] = active
    used = np.flatnonzero(sums["packets"] + sums["opened"] + sums["active"])
    return {int(number): _traffic(sums, number) for number in used if number}


def _reason_counts(values: Any) -> tuple[ReasonCount, ...]:
    packets, octets = values["packets"].sum(axis=1), values["bytes"].sum(axis=1)
    return tuple(
        ReasonCount(row.name.lower(), row.kind, row.meaning, int(packets[row.number]), int(octets[row.number]))
        for row in REASONS[1:]
    )
