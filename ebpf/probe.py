# SPDX-License-Identifier: Apache-2.0
"""What this host can do for the packet path, and what it lacks: tried, not guessed from version numbers.

Leaves nothing behind: maps made for a try are closed at once and nothing is pinned or attached. Each check names the
remedy, in the words of an administrator.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import importlib.util
import os
import platform
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

KERNEL_NEEDED = (5, 15)
UAPI_HEADER = Path("/usr/include/linux/bpf.h")
CLOCK_OFFSETS = Path("/proc/self/timens_offsets")
CLOCK_REMEDY = "run lbd outside of the time namespace it is in: leases are counted on the kernel's clock"
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_DRVINFO_BYTES = 196


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``required``: without it the packet path cannot run here."""

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str | None = None


def probe(interfaces: Sequence[str] = ()) -> list[Check]:
    """Every check, most basic first; ``interfaces`` are those the gateway is to use."""
    tried = [_guarded(check) for check in (_root, _kernel, _clock, _libbpf, _bcc, _headers)]
    if all(check.ok for check in tried if check.name in ("privileges", "libbpf")):
        tried += [_guarded(check) for check in (_maps, _batches, _ring_buffer, _bpffs)]
    return tried + [_guarded(functools.partial(_interface, name)) for name in interfaces]


def _guarded(check: Callable[[], Check]) -> Check:
    """A try that fails in an unforeseen way is a finding, not a crash."""
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "interface").strip("_")
        return Check(name, False, True, f"{type(error).__name__}: {error}", "please report this with lbctl report")


def _root() -> Check:
    capable = os.geteuid() == 0
    detail = "root" if capable else f"user id {os.geteuid()}"
    return Check("privileges", capable, True, detail, None if capable else "run as root: sudo lbctl doctor")


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of a kernel release such as 6.1.0-13-amd64; (0, 0) for something else."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _kernel() -> Check:
    release = platform.release()
    new_enough = kernel_version(release) >= KERNEL_NEEDED
    remedy = None if new_enough else "Linux 5.15 or newer is needed: Debian 12, Ubuntu 22.04 or later"
    return Check("kernel", new_enough, True, release, remedy)


def clock_offset_s() -> int:
    """How far this process's monotonic clock is off the kernel's, in seconds; see time_namespaces(7)."""
    try:
        rows = [line.split() for line in CLOCK_OFFSETS.read_text().splitlines()]
    except FileNotFoundError:
        return 0
    return next((int(row[1]) for row in rows if row[0] == "monotonic"), 0)


def _clock() -> Check:
    offset = clock_offset_s()
    detail = f"monotonic clock {offset} s off the kernel's" if offset else "the kernel's"
    return Check("clock", not offset, True, detail, CLOCK_REMEDY if offset else None)


def _libbpf() -> Check:
    try:
        from ebpf import libbpf
    except OSError as error:
        return Check("libbpf", False, True, str(error), "apt-get install libbpf1")
    return Check("libbpf", True, True, f"libbpf.so.1, {libbpf.cpu_count_possible()} possible CPUs")


def _bcc() -> Check:
    found = importlib.util.find_spec("bcc")
    if found is None:
        return Check("BCC", False, True, "not importable", "apt-get install python3-bpfcc (never pip's bcc)")
    genuine = bool(found.origin) and (Path(str(found.origin)).parent / "libbcc.py").exists()
    remedy = "that is pip's bcc, another program: pip uninstall bcc; apt-get install python3-bpfcc"
    return Check("BCC", genuine, True, str(found.origin), None if genuine else remedy)


def _headers() -> Check:
    there = UAPI_HEADER.exists()
    detail = str(UAPI_HEADER) if there else f"no {UAPI_HEADER}"
    return Check("kernel UAPI headers", there, True, detail, None if there else "apt-get install linux-libc-dev")


def _maps() -> Check:
    from ebpf import libbpf

    kinds = {"LRU hash": libbpf.MAP_LRU_HASH, "per-CPU array": libbpf.MAP_PERCPU_ARRAY, "hash": libbpf.MAP_HASH}
    refused = []
    for name, kind in kinds.items():
        try:
            os.close(libbpf.map_create(kind, "probe", 4, 8, 16))
        except OSError as error:
            refused.append(f"{name}: {error.strerror or error}")
    remedy = "a container needs CAP_BPF and CAP_NET_ADMIN; LimitMEMLOCK=infinity on old kernels" if refused else None
    return Check("BPF maps", not refused, True, "; ".join(refused) or ", ".join(kinds), remedy)


def _batches() -> Check:
    import numpy as np

    from ebpf import libbpf

    fd = libbpf.map_create(libbpf.MAP_LRU_HASH, "probe", 4, 8, 64)
    try:
        keys, values = np.arange(8, dtype="u4"), np.arange(8, dtype="u8")
        written = libbpf.update_batch(fd, keys.ctypes.data, values.ctypes.data, len(keys))
    except OSError as error:
        return Check("batch operations", False, True, str(error), "Linux 5.15 or newer is needed")
    finally:
        os.close(fd)
    return Check("batch operations", written == len(keys), True, f"{written} of {len(keys)} entries in one call")


def _ring_buffer() -> Check:
    import mmap

    from ebpf import libbpf

    fd = libbpf.map_create(libbpf.MAP_RINGBUF, "probe", 0, 0, mmap.PAGESIZE)
    try:
        mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0).close()
    except OSError as error:
        return Check("ring buffer", False, True, f"cannot be mapped: {error}", "Linux 5.15 or newer is needed")
    finally:
        os.close(fd)
    return Check("ring buffer", True, True, "can be read in bulk through mmap")


def _bpffs() -> Check:
    known = any(line.split()[-1] == "bpf" for line in Path("/proc/filesystems").read_text().splitlines())
    remedy = None if known else "the kernel needs CONFIG_BPF_SYSCALL"
    return Check("bpf file system", known, True, "can be mounted" if known else "unknown to the kernel", remedy)


def _interface(name: str) -> Check:
    from ebpf import loader

    label = f"interface {name}"
    try:
        present = loader.query(name)
    except loader.LoaderError as error:
        return Check(label, False, True, error.text, error.remedy)
    except OSError as error:
        supported = error.errno not in (errno.EOPNOTSUPP, errno.EINVAL)
        return Check(label, supported, True, f"XDP cannot be asked for: {error}", "the kernel needs XDP support")
    driver = driver_of(name)
    if not present.program:
        return Check(label, True, True, f"driver {driver}, no XDP program")
    running = f"driver {driver}, XDP program {present.program} ({present.mode})"
    if loader.is_packet_path(present):
        return Check(label, True, True, running)
    # Advice only: it may be an interface that the node file does not name.
    return Check(
        label, False, False, f"{running} of somebody else", f"ip link set dev {name} xdp off, if it is to serve"
    )


def driver_of(interface: str) -> str:
    """The driver's name, "virtual" where there is none to ask.

    Asked of the kernel, not of /sys: that shows the interfaces of the network namespace in which it was mounted.
    """
    info = ctypes.create_string_buffer(struct.pack("=I", _ETHTOOL_GDRVINFO), _DRVINFO_BYTES)
    request = struct.pack("16sQ16x", interface.encode()[:15], ctypes.addressof(info))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, _SIOCETHTOOL, request)
        except OSError:
            return "virtual"
    return info.raw[4:36].split(b"\0")[0].decode() or "virtual"
