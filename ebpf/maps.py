# SPDX-License-Identifier: Apache-2.0
"""The pinned maps of a gateway's packet path, opened together. Any process may open the pins.

What they are is in map_specs.py, how one is read and written in map_access.py. Errors are OSError, except for maps that
do not fit this version's layout (LayoutMismatchError) or are not there (MapsMissingError).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf import layout, libbpf
from ebpf.claims import CLAIMANTS, ClaimingMap, Claims
from ebpf.map_access import Map
from ebpf.map_specs import SPECS, MapSpec, create_table


class LayoutMismatchError(Exception):
    """Pinned maps come from another version; the text says how to get on."""


class MapsMissingError(Exception):
    """No pinned maps where they should be."""


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
