# SPDX-License-Identifier: Apache-2.0
"""One open map, read and written in bulk.

Keys and values are numpy arrays of the dtypes in layout.py and go through the batch calls of the kernel, which release
the GIL; per-CPU values have shape (entries, CPUs). Errors are OSError.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf import libbpf
from ebpf.map_specs import MapSpec

Array = npt.NDArray[Any]

CHUNK_ENTRIES = 16384
# A bucket that holds more than a whole chunk would stop a dump; the chunk is doubled this often at most.
CHUNK_DOUBLINGS_MAX = 4


def packed_array(data: npt.ArrayLike, dtype: np.dtype[Any]) -> Array:
    """The data one after another, as the kernel reads it."""
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
        packed, value = packed_array(key, self.spec.key), self._values(1)
        found = libbpf.lookup(self.fd, packed.ctypes.data, value.ctypes.data)
        return value[0] if found else None

    def set(self, key: npt.ArrayLike, value: npt.ArrayLike) -> None:
        """Writes one entry."""
        packed, content = packed_array(key, self.spec.key), packed_array(value, self.spec.value)
        libbpf.update(self.fd, packed.ctypes.data, content.ctypes.data)

    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike) -> int:
        """Writes many entries in as few system calls as the kernel allows; returns their number."""
        packed, content = packed_array(keys, self.spec.key), packed_array(values, self.spec.value)
        expected = len(packed) * (self.cpus if self.per_cpu else 1)
        if len(content) != expected:
            raise ValueError(f"map {self.name}: {len(packed)} keys need {expected} values, {len(content)} given")
        if not len(packed):
            return 0
        return libbpf.update_batch(self.fd, packed.ctypes.data, content.ctypes.data, len(packed))

    def delete(self, keys: npt.ArrayLike) -> int:
        """Deletes those of the keys that are present; returns their number."""
        packed = packed_array(keys, self.spec.key)
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
