# SPDX-License-Identifier: Apache-2.0
"""Compiled programs as plain data: what the compile step hands over, what a cache keeps, what is loaded.

Instructions refer to maps by name here and get the descriptors when they are loaded, so compiled code serves any node
and outlives the compiler. A cache is used only if it belongs to root and nobody else may write to it: what it holds
runs in the kernel.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ebpf import libbpf

CACHE = Path("/var/cache/rainlb")
CACHED_MAX = 8
STEPS = "steps"
_INSTRUCTION_BYTES = 8
_LOAD_64 = 0x18
_FROM_MAP_FD = 1


class BytecodeError(ValueError):
    """Data that is not compiled code of this format."""


@dataclass(frozen=True)
class OwnMap:
    """A map that belongs to one version of the programs: made anew with them."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class Module:
    """Programs by name, entry first; for each the instructions (base64) and the maps they name by instruction."""

    programs: Mapping[str, str]
    references: Mapping[str, Mapping[str, str]]
    own_maps: Mapping[str, OwnMap]

    def to_json(self) -> str:
        """Text for the pipe and the cache."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Module:
        """The inverse; raises BytecodeError."""
        try:
            plain = json.loads(text)
            own = {name: OwnMap(**fields) for name, fields in plain["own_maps"].items()}
            return cls(plain["programs"], plain["references"], own)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BytecodeError(f"not compiled code: {error}") from error


def map_references(instructions: bytes, names: Mapping[int, str]) -> dict[str, str]:
    """Which instruction names which map, read from the descriptors the compiler left in them."""
    found = {}
    for at in range(0, len(instructions), _INSTRUCTION_BYTES):
        code, registers, _, descriptor = struct.unpack_from("<BBhi", instructions, at)
        if code == _LOAD_64 and registers >> 4 == _FROM_MAP_FD:
            found[str(at)] = names[descriptor]
    return found


def _linked(module: Module, name: str, descriptors: Mapping[str, int]) -> bytes:
    instructions = bytearray(base64.b64decode(module.programs[name]))
    for at, map_name in module.references[name].items():
        struct.pack_into("<i", instructions, int(at) + 4, descriptors[map_name])
    return bytes(instructions)


def load(module: Module, maps_directory: Path, programs: Path, kind: int = libbpf.PROGRAM_XDP) -> None:
    """Has the kernel verify every program and pins them in ``programs``; shared maps are opened from their pins."""
    wanted = {name for references in module.references.values() for name in references.values()}
    descriptors: dict[str, int] = {}
    try:
        for name in wanted:
            own = module.own_maps.get(name)
            if own is None:
                descriptors[name] = libbpf.object_get(maps_directory / name)
            else:
                descriptors[name] = libbpf.map_create(
                    own.kind, name, own.key_size, own.value_size, own.max_entries, own.flags
                )
        _load_programs(module, descriptors, programs, kind)
    finally:
        for fd in descriptors.values():
            os.close(fd)


def _load_programs(module: Module, descriptors: Mapping[str, int], programs: Path, kind: int) -> None:
    for index, name in enumerate(module.programs):
        fd = libbpf.program_load(name, _linked(module, name, descriptors), kind)
        if STEPS in descriptors:
            libbpf.set_u32(descriptors[STEPS], index, fd)
        libbpf.object_pin(fd, programs / name)
        os.close(fd)
    if STEPS in descriptors:
        # Tail calls end when the last reference to their table goes: the pin is that reference.
        libbpf.object_pin(descriptors[STEPS], programs / STEPS)


def _is_trusted(path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def read_cache(fingerprint: str, cache: Path = CACHE) -> Module | None:
    """What was compiled before, None if nothing usable."""
    path = cache / f"{fingerprint}.json"
    if not _is_trusted(cache) or not _is_trusted(path):
        return None
    try:
        return Module.from_json(path.read_text())
    except (OSError, BytecodeError):
        return None


def write_cache(fingerprint: str, module: Module, cache: Path = CACHE) -> None:
    """Keeps compiled code, the newest few; a cache that cannot be written only costs time."""
    try:
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = cache / f".{fingerprint}.{os.getpid()}"
        draft.write_text(module.to_json())
        draft.chmod(0o644)
        draft.replace(cache / f"{fingerprint}.json")
        kept = sorted(cache.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-CACHED_MAX]:
            path.unlink(missing_ok=True)
    except OSError:
        return
