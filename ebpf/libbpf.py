# SPDX-License-Identifier: Apache-2.0
"""The few calls of libbpf.so.1 used here, through ctypes: no compiler at run time, and the GIL is released in each.

Every function raises OSError with errno and what was attempted; sizes are bytes, descriptors plain ints.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAP_HASH, MAP_ARRAY, MAP_PROG_ARRAY = 1, 2, 3
MAP_PERCPU_ARRAY, MAP_LRU_HASH, MAP_ARRAY_OF_MAPS, MAP_RINGBUF = 6, 9, 12, 27
XDP_FLAGS_UPDATE_IF_NOEXIST, XDP_FLAGS_SKB, XDP_FLAGS_DRV, XDP_FLAGS_REPLACE = 1, 2, 4, 16

PROGRAM_TRAFFIC_CONTROL, PROGRAM_XDP = 3, 6
_VERIFIER_LOG_BYTES = 1 << 24
_VERIFIER_LOG_LINES = 25
_BPF_FS_MAGIC = 0xCAFE4A11
_CPUS_POSSIBLE = Path("/sys/devices/system/cpu/possible")


class LibbpfMissingError(OSError):
    """libbpf.so.1 cannot be loaded (Debian: package libbpf1)."""


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise LibbpfMissingError(f"libbpf.so.1 cannot be loaded ({error}); install the package libbpf1") from error


_LIB = _load()
# What fails is raised with its reason; libbpf would also write lines of its own to stderr.
_LIB.libbpf_set_print(None)
_LIBC = ctypes.CDLL(None, use_errno=True)


class _MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
        ("rest", ctypes.c_uint8 * 128),
    )


class _TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _XdpAttachOpts(ctypes.Structure):
    _fields_ = (("sz", ctypes.c_size_t), ("old_prog_fd", ctypes.c_int))


class _XdpQueryOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_id", ctypes.c_uint32),
        ("drv_prog_id", ctypes.c_uint32),
        ("hw_prog_id", ctypes.c_uint32),
        ("skb_prog_id", ctypes.c_uint32),
        ("attach_mode", ctypes.c_uint8),
    )


class _ProgramLoadOpts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("unused", ctypes.c_uint32 * 7),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


class VerifierError(OSError):
    """The kernel refuses a program; the text ends with the verifier's last lines."""


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says about a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class TestRun:
    """Result of one test run: the program's verdict, the packet as it left, nanoseconds per repetition."""

    verdict: int
    packet: bytes
    duration_ns: int


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno() or -result
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def call(function: str, *arguments: Any, accept: Collection[int] = ()) -> int:
    """Calls a function of libbpf by name; its result, negative for an errno in ``accept``."""
    result = int(getattr(_LIB, function)(*arguments))
    return result if -result in accept else _check(result, function)


def map_create(
    kind: int, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0, inner_fd: int = 0
) -> int:
    """A new map's descriptor."""
    opts = _MapCreateOpts(sz=ctypes.sizeof(_MapCreateOpts), inner_map_fd=inner_fd, map_flags=flags)
    fd = _LIB.bpf_map_create(kind, name[:15].encode(), key_size, value_size, max_entries, ctypes.byref(opts))
    return _check(fd, f"creating BPF map {name}")


def map_info(fd: int) -> MapInfo:
    """Type, id, sizes and capacity of the map behind a descriptor."""
    info, size = _MapInfo(), ctypes.c_uint32(ctypes.sizeof(_MapInfo))
    _check(_LIB.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "reading BPF map information")
    return MapInfo(info.type, info.id, info.key_size, info.value_size, info.max_entries, info.map_flags)


def object_pin(fd: int, path: Path) -> None:
    """Pins a map or program."""
    _check(_LIB.bpf_obj_pin(fd, os.fsencode(path)), f"pinning {path}")


def object_get(path: Path) -> int:
    """Descriptor of a pinned map or program."""
    return _check(_LIB.bpf_obj_get(os.fsencode(path)), f"opening pin {path}")


def lookup(fd: int, key: int, value: int) -> bool:
    """Copies the value of a key (addresses of buffers); False if absent."""
    result = _LIB.bpf_map_lookup_elem(fd, ctypes.c_void_p(key), ctypes.c_void_p(value))
    if result < 0 and ctypes.get_errno() == 2:
        return False
    _check(result, "map lookup")
    return True


def update(fd: int, key: int, value: int) -> None:
    """Writes one entry (addresses of buffers)."""
    _check(_LIB.bpf_map_update_elem(fd, ctypes.c_void_p(key), ctypes.c_void_p(value), ctypes.c_uint64(0)), "map update")


def delete(fd: int, key: int) -> bool:
    """Deletes one entry; False if absent."""
    result = _LIB.bpf_map_delete_elem(fd, ctypes.c_void_p(key))
    if result < 0 and ctypes.get_errno() == 2:
        return False
    _check(result, "map delete")
    return True


def update_batch(fd: int, keys: int, values: int, count: int) -> int:
    """Writes ``count`` entries from packed buffers; returns how many the kernel took before an error it raises."""
    number = ctypes.c_uint32(count)
    result = _LIB.bpf_map_update_batch(
        fd, ctypes.c_void_p(keys), ctypes.c_void_p(values), ctypes.byref(number), ctypes.c_void_p()
    )
    _check(result, f"batch update after {number.value} of {count} entries")
    return number.value


def delete_batch(fd: int, keys: int, count: int) -> tuple[int, int]:
    """Deletes packed keys; returns (deleted, errno), errno ENOENT when the one after those was absent."""
    number = ctypes.c_uint32(count)
    result = _LIB.bpf_map_delete_batch(fd, ctypes.c_void_p(keys), ctypes.byref(number), ctypes.c_void_p())
    return number.value, (ctypes.get_errno() if result < 0 else 0)


def lookup_batch(
    fd: int, position_in: int | None, position_out: int, keys: int, values: int, count: int
) -> tuple[int, int]:
    """One chunk of a map into packed buffers; returns (entries, errno), errno ENOENT at the end."""
    number = ctypes.c_uint32(count)
    result = _LIB.bpf_map_lookup_batch(
        fd,
        ctypes.c_void_p(position_in),
        ctypes.c_void_p(position_out),
        ctypes.c_void_p(keys),
        ctypes.c_void_p(values),
        ctypes.byref(number),
        ctypes.c_void_p(),
    )
    return number.value, (ctypes.get_errno() if result < 0 else 0)


def test_run(
    program_fd: int, packet: bytes, repeat: int, context: bytes | None, flags: int, batch: int, room: int
) -> TestRun:
    """BPF_PROG_TEST_RUN; ``room`` is the size of the buffer for the packet that comes out."""
    # Live frames have no packet that comes back.
    out = ctypes.create_string_buffer(room) if not flags else None
    source = ctypes.create_string_buffer(packet, len(packet))
    ctx = ctypes.create_string_buffer(context, len(context)) if context else None
    opts = _TestRunOpts(
        sz=ctypes.sizeof(_TestRunOpts),
        data_in=ctypes.addressof(source),
        data_size_in=len(packet),
        data_out=ctypes.addressof(out) if out else None,
        data_size_out=room if out else 0,
        ctx_in=ctypes.addressof(ctx) if ctx else None,
        ctx_size_in=len(context) if context else 0,
        repeat=repeat,
        flags=flags,
        batch_size=batch,
    )
    _check(_LIB.bpf_prog_test_run_opts(program_fd, ctypes.byref(opts)), "BPF test run")
    return TestRun(opts.retval, out.raw[: opts.data_size_out] if out else b"", opts.duration)


def xdp_attach(ifindex: int, program_fd: int, flags: int, old_program_fd: int | None = None) -> None:
    """Attaches (or with program_fd -1 detaches) an XDP program; with the old one's fd only if that is there now."""
    opts = _XdpAttachOpts(sz=ctypes.sizeof(_XdpAttachOpts), old_prog_fd=old_program_fd or 0)
    what = "attaching XDP program" if program_fd >= 0 else "detaching XDP program"
    reference = ctypes.byref(opts) if old_program_fd is not None else None
    _check(_LIB.bpf_xdp_attach(ifindex, program_fd, flags, reference), what)


def xdp_query(ifindex: int) -> tuple[int, int]:
    """(native, generic) program ids on an interface, 0 for none."""
    opts = _XdpQueryOpts(sz=ctypes.sizeof(_XdpQueryOpts))
    _check(_LIB.bpf_xdp_query(ifindex, 0, ctypes.byref(opts)), "reading the XDP program of an interface")
    return opts.drv_prog_id, opts.skb_prog_id


def program_load(name: str, instructions: bytes, kind: int = PROGRAM_XDP) -> int:
    """Descriptor of a new program; raises VerifierError with what the verifier says."""
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    arguments = (kind, name[:15].encode(), b"GPL", buffer, ctypes.c_size_t(len(instructions) // 8))
    fd = _LIB.bpf_prog_load(*arguments, None)
    if fd >= 0:
        return int(fd)
    log = ctypes.create_string_buffer(_VERIFIER_LOG_BYTES)
    opts = _ProgramLoadOpts(sz=ctypes.sizeof(_ProgramLoadOpts), log_level=1, log_size=_VERIFIER_LOG_BYTES)
    opts.log_buf = ctypes.addressof(log)
    fd = _LIB.bpf_prog_load(*arguments, ctypes.byref(opts))
    if fd >= 0:
        return int(fd)
    error = ctypes.get_errno()
    tail = "\n".join(log.value.decode(errors="replace").strip().splitlines()[-_VERIFIER_LOG_LINES:])
    raise VerifierError(error, f"the kernel refuses program {name} ({os.strerror(error)})\n{tail}")


def set_u32(fd: int, key: int, value: int) -> None:
    """Writes one entry of a map of 4-byte keys and values."""
    packed_key, packed_value = ctypes.c_uint32(key), ctypes.c_uint32(value)
    update(fd, ctypes.addressof(packed_key), ctypes.addressof(packed_value))


def program_fd_by_id(program_id: int) -> int:
    """Descriptor of a loaded program."""
    return _check(_LIB.bpf_prog_get_fd_by_id(program_id), f"opening BPF program {program_id}")


def map_fd_by_id(map_id: int) -> int:
    """Descriptor of an existing map."""
    return _check(_LIB.bpf_map_get_fd_by_id(map_id), f"opening BPF map {map_id}")


def program_id(fd: int) -> int:
    """Id of a program: second field of struct bpf_prog_info."""
    info, size = (ctypes.c_uint32 * 64)(), ctypes.c_uint32(256)
    _check(_LIB.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "reading BPF program information")
    return int(info[1])


def program_name(fd: int) -> str:
    """Name of a program (up to 15 characters): 16 bytes at offset 64 of struct bpf_prog_info."""
    info, size = ctypes.create_string_buffer(256), ctypes.c_uint32(256)
    _check(_LIB.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)), "reading BPF program information")
    return info.raw[64:80].split(b"\0")[0].decode(errors="replace")


def mount_bpffs(path: Path) -> None:
    """Mounts a BPF file system; the directory must exist."""
    _check(_LIBC.mount(b"bpf", os.fsencode(path), b"bpf", ctypes.c_ulong(0), b"mode=0750"), f"mounting bpffs on {path}")


def unmount(path: Path) -> None:
    """Unmounts a file system."""
    _check(_LIBC.umount2(os.fsencode(path), 2), f"unmounting {path}")


def is_bpffs(path: Path) -> bool:
    """Whether a path lies on a BPF file system."""
    buffer = (ctypes.c_long * 32)()
    return _LIBC.statfs(os.fsencode(path), ctypes.byref(buffer)) == 0 and buffer[0] == _BPF_FS_MAGIC


def cpu_count_possible() -> int:
    """CPUs the kernel reserves per-CPU memory for: the second dimension of per-CPU values."""
    last = _CPUS_POSSIBLE.read_text().strip().split(",")[-1].split("-")[-1]
    return int(last) + 1
