# SPDX-License-Identifier: Apache-2.0
"""The pinned maps of the packet path: what they are, and typed access to them in bulk.

Any process may open the pins. Reads and writes are numpy arrays of the dtypes in layout.py and go through the batch
calls of the kernel, which release the GIL; per-CPU values have shape (entries, CPUs). Errors are OSError, except
for maps that do not fit this version's layout (LayoutMismatchError) or are not there (MapsMissingError).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf import layout, libbpf

Array = npt.NDArray[Any]

CHUNK_ENTRIES = 16384
# A bucket that holds more than a whole chunk would stop a dump; the chunk is doubled this often at most.
CHUNK_DOUBLINGS_MAX = 4


class LayoutMismatchError(Exception):
    """Pinned maps come from another version; the text says how to get on."""


class MapsMissingError(Exception):
    """No pinned maps where they should be."""


@dataclass(frozen=True)
class MapSpec:
    """One pinned map; ``max_entries`` is a default where the loader takes sizes."""

    kind: int
    key: np.dtype[Any]
    value: np.dtype[Any]
    max_entries: int
    purpose: str
    flags: int = 0


_HASH, _ARRAY, _LRU = libbpf.MAP_HASH, libbpf.MAP_ARRAY, libbpf.MAP_LRU_HASH
_PERCPU, _RING = libbpf.MAP_PERCPU_ARRAY, libbpf.MAP_RINGBUF
_L = layout

SPECS: Mapping[str, MapSpec] = {
    "settings": MapSpec(_ARRAY, _L.U32, _L.SETTINGS, 1, "what holds for the whole gateway; read for every packet"),
    "services": MapSpec(_HASH, _L.ENDPOINT, _L.U32, _L.SERVICE_COUNT_MAX, "address, port, protocol to service id"),
    "service_table": MapSpec(_ARRAY, _L.U32, _L.SERVICE, _L.SERVICE_COUNT_MAX, "services by id"),
    "targets": MapSpec(_ARRAY, _L.U32, _L.TARGET, _L.TARGET_COUNT_MAX, "backends of services by target id"),
    "tables": MapSpec(
        libbpf.MAP_ARRAY_OF_MAPS,
        _L.U32,
        _L.U32,
        _L.SERVICE_COUNT_MAX,
        "lookup table of each service; index 0 is the steering table",
    ),
    "nat_return": MapSpec(_HASH, _L.ENDPOINT, _L.U32, _L.TARGET_COUNT_MAX, "nat backend to its (first) target id"),
    "claims": MapSpec(_ARRAY, _L.U32, _L.U64, _L.CLAIM_WORDS, "endpoints of the two above as bits: no bit, nobody's"),
    "connections": MapSpec(_LRU, _L.FLOW_KEY, _L.CONNECTION, 1 << 20, "connections that are more than a first packet"),
    "half_open": MapSpec(_LRU, _L.FLOW_KEY, _L.CONNECTION, 1 << 16, "first packets whose target must be remembered"),
    "fragments": MapSpec(_LRU, _L.FRAGMENT_KEY, _L.FRAGMENT, 1 << 13, "ports of fragmented packets"),
    "persistence": MapSpec(_LRU, _L.PERSISTENCE_KEY, _L.PERSISTENCE, 1 << 16, "client and service to target"),
    "addresses": MapSpec(_HASH, _L.ADDRESS_KEY, _L.ADDRESS_ENTRY, 4096, "VIPs and own addresses"),
    "lease": MapSpec(_ARRAY, _L.U32, _L.U64, 1, "until when this node may answer for the VIPs it holds, ns"),
    "nodes": MapSpec(_ARRAY, _L.U32, _L.NODE_ENTRY, _L.NODE_COUNT_MAX, "gateways of the cluster by node id"),
    "node_paths": MapSpec(_HASH, _L.NODE_PATH_KEY, _L.NODE_PATH, 4096, "interface and node to its MAC address there"),
    "interface_macs": MapSpec(
        _ARRAY, _L.U32, _L.INTERFACE_MAC, _L.INTERFACE_COUNT_MAX, "own MAC address by interface index modulo the size"
    ),
    "peer_macs": MapSpec(_HASH, _L.MAC_KEY, _L.U32, 4096, "MAC address to the peer that has it"),
    "peer_addresses": MapSpec(_HASH, _L.ADDRESS_KEY, _L.U32, 1024, "tunnel source to the peer that has it"),
    "target_load": MapSpec(_ARRAY, _L.U32, _L.TARGET_LOAD, _L.TARGET_COUNT_MAX, "active connections, where counted"),
    "target_counters": MapSpec(_PERCPU, _L.U32, _L.TARGET_COUNTER, _L.TARGET_COUNT_MAX, "traffic per target"),
    "service_counters": MapSpec(_PERCPU, _L.U32, _L.SERVICE_COUNTER, _L.SERVICE_COUNT_MAX, "events per service"),
    "reason_counters": MapSpec(_PERCPU, _L.U32, _L.REASON_COUNTER, 64, "packets per reason"),
    "records": MapSpec(_RING, _L.U32, _L.RECORD, 1 << 22, "replication records"),
    "capture_control": MapSpec(_ARRAY, _L.U32, _L.CAPTURE_CONTROL, 1, "turns the mirror on for a while"),
    "explain": MapSpec(_ARRAY, _L.U32, _L.EXPLAIN, 1, "what lb_where found out last"),
    "captures": MapSpec(_RING, _L.U32, _L.CAPTURE, 1 << 20, "mirrored packets, while asked for"),
}


def create(spec: MapSpec, name: str, max_entries: int) -> int:
    """A new unpinned map; returns its descriptor."""
    if spec.kind == libbpf.MAP_RINGBUF:
        return libbpf.map_create(spec.kind, name, 0, 0, max_entries)
    if spec.kind == libbpf.MAP_ARRAY_OF_MAPS:
        template = create_table()
        try:
            return libbpf.map_create(spec.kind, name, spec.key.itemsize, 4, max_entries, inner_fd=template)
        finally:
            os.close(template)
    return libbpf.map_create(spec.kind, name, spec.key.itemsize, spec.value.itemsize, max_entries, spec.flags)


def create_table() -> int:
    """An empty lookup table for one slot of ``tables``."""
    return libbpf.map_create(libbpf.MAP_ARRAY, "table", 4, layout.TABLE_LINE.itemsize, layout.TABLE_LINES)


def _packed(data: npt.ArrayLike, dtype: np.dtype[Any]) -> Array:
    return np.ascontiguousarray(data, dtype).reshape(-1)


@dataclass
class Map:
    """One open map. Keys and values are packed numpy arrays of ``spec.key`` and ``spec.value``."""

    name: str
    spec: MapSpec
    fd: int
    capacity: int
    cpus: int = field(default_factory=libbpf.cpu_count_possible)

    @property
    def per_cpu(self) -> bool:
        """Whether values have one element per CPU."""
        return self.spec.kind == libbpf.MAP_PERCPU_ARRAY

    @property
    def is_array(self) -> bool:
        """Whether every index exists always."""
        return self.spec.kind in (libbpf.MAP_ARRAY, libbpf.MAP_PERCPU_ARRAY)

    def _values(self, count: int) -> Array:
        shape = (count, self.cpus) if self.per_cpu else (count,)
        return np.zeros(shape, self.spec.value)

    def get(self, key: npt.ArrayLike) -> Array | None:
        """The value of one key, shape () or (CPUs,); None if absent."""
        packed, value = _packed(key, self.spec.key), self._values(1)
        found = libbpf.lookup(self.fd, packed.ctypes.data, value.ctypes.data)
        return value[0] if found else None

    def set(self, key: npt.ArrayLike, value: npt.ArrayLike) -> None:
        """Writes one entry."""
        packed, content = _packed(key, self.spec.key), _packed(value, self.spec.value)
        libbpf.update(self.fd, packed.ctypes.data, content.ctypes.data)

    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike) -> int:
        """Writes many entries in as few system calls as the kernel allows; returns their number."""
        packed, content = _packed(keys, self.spec.key), _packed(values, self.spec.value)
        expected = len(packed) * (self.cpus if self.per_cpu else 1)
        if len(content) != expected:
            raise ValueError(f"map {self.name}: {len(packed)} keys need {expected} values, {len(content)} given")
        if not len(packed):
            return 0
        return libbpf.update_batch(self.fd, packed.ctypes.data, content.ctypes.data, len(packed))

    def delete(self, keys: npt.ArrayLike) -> int:
        """Deletes those of the keys that are present; returns their number."""
        packed = _packed(keys, self.spec.key)
        deleted, position = 0, 0
        while position < len(packed):
            rest = packed[position:]
            count, error = libbpf.delete_batch(self.fd, rest.ctypes.data, len(rest))
            deleted += count
            if error and error != errno.ENOENT:
                raise OSError(error, f"map {self.name}: batch delete: {os.strerror(error)}")
            position += count + (1 if error else 0)
        return deleted

    def head(self, count: int) -> Array:
        """The first values of an array, without reading the rest of it."""
        _, values = next(self.chunks(count))
        return values

    def chunks(self, entries: int = CHUNK_ENTRIES) -> Iterator[tuple[Array, Array]]:
        """The whole map, chunk by chunk, as (keys, values); copies, so each chunk is the caller's own.

        Entries that come or go meanwhile may or may not be seen; one that stays is seen once at least.
        """
        position = np.zeros(max(self.spec.key.itemsize, 4), np.uint8)
        follow = np.zeros_like(position)
        started, doublings = False, 0
        while True:
            keys, values = np.zeros(entries, self.spec.key), self._values(entries)
            count, error = libbpf.lookup_batch(
                self.fd,
                position.ctypes.data if started else None,
                follow.ctypes.data,
                keys.ctypes.data,
                values.ctypes.data,
                entries,
            )
            if error == errno.ENOSPC and doublings < CHUNK_DOUBLINGS_MAX:
                entries, doublings = entries * 2, doublings + 1
                continue
            if error and error != errno.ENOENT:
                raise OSError(error, f"map {self.name}: batch lookup: {os.strerror(error)}")
            if count:
                yield keys[:count], values[:count]
            if error == errno.ENOENT:
                return
            position[:], started = follow, True

    def dump(self) -> tuple[Array, Array]:
        """Everything at once: (keys, values). For a million connections use ``chunks``."""
        parts = list(self.chunks(self.capacity if self.is_array else CHUNK_ENTRIES))
        if not parts:
            return np.zeros(0, self.spec.key), self._values(0)
        return np.concatenate([keys for keys, _ in parts]), np.concatenate([values for _, values in parts])

    def clear(self) -> int:
        """Deletes every entry of a hash map; returns their number."""
        return sum(self.delete(keys) for keys, _ in list(self.chunks()))

    def close(self) -> None:
        """Closes the descriptor; the pin keeps the map."""
        os.close(self.fd)


@dataclass
class ClaimingMap(Map):
    """A map whose keys are endpoints that packets are matched with: each has its bit in ``claims`` while it is there.

    The bit comes before the entry and goes after it, so that the path never overlooks one. One writer at a time.
    """

    claims: Claims | None = None

    def set(self, key: npt.ArrayLike, value: npt.ArrayLike) -> None:
        """Claims and writes one entry."""
        assert self.claims is not None
        self.claims.add(_packed(key, self.spec.key))
        super().set(key, value)

    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike) -> int:
        """Claims and writes many entries."""
        assert self.claims is not None
        self.claims.add(_packed(keys, self.spec.key))
        return super().update(keys, values)

    def delete(self, keys: npt.ArrayLike) -> int:
        """Deletes entries and takes back the bits that no other needs."""
        assert self.claims is not None
        deleted = super().delete(keys)
        self.claims.rebuild()
        return deleted


CLAIMANTS = ("services", "nat_return")


class Claims:
    """The bits of ``claims``, as many words of 64."""

    def __init__(self, words: Map, claimants: Sequence[Map]) -> None:
        self._words, self._claimants = words, claimants

    def add(self, endpoints: Array) -> None:
        """Sets the bits of packed endpoints."""
        self._write(self._words.dump()[1] | _words_of(endpoints))

    def rebuild(self) -> None:
        """Exactly the bits of what the claimants hold."""
        held = [_words_of(claimant.dump()[0]) for claimant in self._claimants]
        self._write(np.bitwise_or.reduce(held))

    def _write(self, words: Array) -> None:
        self._words.update(np.arange(layout.CLAIM_WORDS, dtype=np.uint32), words)


def _words_of(endpoints: Array) -> Array:
    bits = np.zeros(1 << layout.CLAIM_BITS_LOG2, np.uint8)
    bits[layout.claim_bits(endpoints)] = 1
    return np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)


class Maps:
    """All maps of a gateway, opened from their pins; attributes by name: ``maps.connections``."""

    def __init__(self, maps: Mapping[str, Map]) -> None:
        self._maps = dict(maps)

    @classmethod
    def open(cls, directory: Path) -> Maps:
        """Opens ``<directory>/<name>`` for every map (``<bpffs>/<node>/maps``).

        Raises MapsMissingError if there are none, LayoutMismatchError if they are not of this version.
        """
        opened: dict[str, Map] = {}
        try:
            for name, spec in SPECS.items():
                opened[name] = open_map(directory / name, name, spec)
        except BaseException:
            for each in opened.values():
                each.close()
            raise
        claimants = [each for each in opened.values() if isinstance(each, ClaimingMap)]
        claims = Claims(opened["claims"], claimants)
        for each in claimants:
            each.claims = claims
        return cls(opened)

    def __getattr__(self, name: str) -> Map:
        try:
            return self._maps[name]
        except KeyError:
            raise AttributeError(name) from None

    def __iter__(self) -> Iterator[Map]:
        return iter(self._maps.values())

    def rebuild_claims(self) -> None:
        """Gives every endpoint its bit: entries of a version before this one have none."""
        Claims(self.claims, [getattr(self, name) for name in CLAIMANTS]).rebuild()

    def replace_table(self, table: int, slots: npt.NDArray[np.uint16]) -> None:
        """Swaps the lookup table of a service (or STEERING_TABLE) at once: packets see the old or the new one."""
        fd = create_table()
        try:
            lines = layout.table_lines(slots)
            keys = np.arange(layout.TABLE_LINES, dtype=np.uint32)
            libbpf.update_batch(fd, keys.ctypes.data, lines.ctypes.data, len(lines))
            self.tables.set(table, fd)
        finally:
            os.close(fd)

    def read_table(self, table: int) -> npt.NDArray[np.uint16] | None:
        """The lookup table of a service: all slots there is room for, with their marks; None if it has none."""
        found = self.tables.get(table)
        if found is None:
            return None
        fd = libbpf.map_fd_by_id(int(found))
        try:
            keys = np.zeros(layout.TABLE_LINES, np.uint32)
            lines = np.zeros(layout.TABLE_LINES, layout.TABLE_LINE)
            follow = np.zeros(1, np.uint32)
            libbpf.lookup_batch(fd, None, follow.ctypes.data, keys.ctypes.data, lines.ctypes.data, len(lines))
            return lines.view(np.uint16)
        finally:
            os.close(fd)

    def change_settings(self, **fields: Any) -> None:
        """Sets fields of ``settings`` and moves the epoch on, so that no short-cut outlives the change."""
        settings = self.settings.get(0)
        assert settings is not None
        for name, value in fields.items():
            settings[name] = value
        settings["epoch"] += np.uint64(1)
        self.settings.set(0, settings)

    def close(self) -> None:
        """Closes every descriptor."""
        for each in self._maps.values():
            each.close()


def open_map(path: Path, name: str, spec: MapSpec) -> Map:
    """Opens one pin and compares it with what this version expects."""
    try:
        fd = libbpf.object_get(path)
    except FileNotFoundError:
        raise MapsMissingError(f"no map at {path}: is the packet path loaded for this node?") from None
    info = libbpf.map_info(fd)
    sizes = (0, 0) if spec.kind == libbpf.MAP_RINGBUF else (spec.key.itemsize, spec.value.itemsize)
    if (info.type, info.key_size, info.value_size) != (spec.kind, *sizes):
        os.close(fd)
        raise LayoutMismatchError(
            f"map {path} has type {info.type}, key {info.key_size} and value {info.value_size} bytes; this version "
            f"needs type {spec.kind}, {sizes[0]} and {sizes[1]}: detach the packet path (it is rebuilt at next start)"
        )
    return (ClaimingMap if name in CLAIMANTS else Map)(name, spec, fd, info.max_entries)


_KIND_NAMES = {
    libbpf.MAP_HASH: "hash",
    libbpf.MAP_ARRAY: "array",
    libbpf.MAP_LRU_HASH: "LRU hash",
    libbpf.MAP_PERCPU_ARRAY: "array per CPU",
    libbpf.MAP_ARRAY_OF_MAPS: "array of arrays",
    libbpf.MAP_RINGBUF: "ring buffer",
}


def markdown() -> str:
    """The table of docs/packet-path.md."""
    head = "| map | kind | entries (default) | what for |\n|---|---|---|---|\n"
    rows = (
        f"| `{name}` | {_KIND_NAMES[spec.kind]} | {spec.max_entries} | {spec.purpose} |\n"
        for name, spec in SPECS.items()
    )
    return head + "".join(rows)
