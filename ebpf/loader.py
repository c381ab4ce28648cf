# SPDX-License-Identifier: Apache-2.0
"""Brings the packet path into the kernel and takes it out again.

Everything lives in pins below a directory of the node on a bpffs: ``<node>/maps/<name>`` and one directory of
programs per version, ``<node>/programs-<n>``. Whoever holds no descriptor at all loses nothing: packets go on, and a
new daemon opens the pins. A new version of the program is compiled beside the old one and replaces it on each
interface in one step; maps and connections stay.

Every refusal is a LoaderError with cause and remedy.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from ebpf import bytecode, layout, libbpf, source
from ebpf.map_specs import SPECS, create
from ebpf.maps import LayoutMismatchError, Maps, open_map

COMPILE_TIMEOUT_S = 180
DEFAULT_BPFFS = Path("/run/lb/bpf")
ENTRY = "lb_entry"
_SIOCGIFHWADDR = 0x8927
_PROGRAMS = "programs-"  # a bpffs allows no dot in names


class LoaderError(Exception):
    """The packet path cannot be loaded or attached here. ``cause`` is a short stable name, ``remedy`` what to do."""

    def __init__(self, cause: str, text: str, remedy: str) -> None:
        super().__init__(f"{text}: {remedy}")
        self.cause = cause
        self.text = text
        self.remedy = remedy


class Mode(StrEnum):
    """Where a program hooks in: in the driver, or behind it (slower, on any interface)."""

    AUTO = "auto"
    NATIVE = "native"
    GENERIC = "generic"


_MODE_FLAGS = {Mode.NATIVE: libbpf.XDP_FLAGS_DRV, Mode.GENERIC: libbpf.XDP_FLAGS_SKB}


@dataclass(frozen=True)
class Attachment:
    """What runs on an interface: mode and program id; ``program`` 0 is nothing."""

    interface: str
    mode: Mode
    program: int


def ensure_bpffs(path: Path = DEFAULT_BPFFS) -> None:
    """Mounts a bpffs of our own unless one is there. Not /sys/fs/bpf: entering a namespace hides that one."""
    if os.geteuid() != 0:
        raise LoaderError(
            "not-root", "loading BPF programs needs root", "run as root or with CAP_BPF and CAP_NET_ADMIN"
        )
    path.mkdir(parents=True, exist_ok=True)
    if libbpf.is_bpffs(path):
        return
    try:
        libbpf.mount_bpffs(path)
    except OSError as error:
        remedy = "the kernel needs CONFIG_BPF_SYSCALL and the process CAP_SYS_ADMIN in its mount namespace"
        raise LoaderError("no-bpffs", f"cannot mount a BPF file system on {path} ({error})", remedy) from error


@contextmanager
def mounted_bpffs(path: Path) -> Iterator[Path]:
    """A bpffs that is there for the block; the pins in it go away with it."""
    ensure_bpffs(path)
    try:
        yield path
    finally:
        libbpf.unmount(path)


def create_maps(directory: Path, sizes: Mapping[str, int] | None = None) -> Maps:
    """Opens the pinned maps of a node, making those that are missing; ``sizes`` are capacities by map name.

    Maps that are there keep their size and content. Raises LayoutMismatchError if they are of another version.
    """
    directory.mkdir(parents=True, exist_ok=True)
    wanted = dict(sizes or {})
    unknown = sorted(wanted.keys() - SPECS.keys())
    if unknown:
        raise ValueError(f"no such map: {', '.join(unknown)}")
    for name, spec in SPECS.items():
        path = directory / name
        if path.exists():
            continue
        try:
            fd = create(spec, name, wanted.get(name, spec.max_entries))
        except OSError as error:
            raise _map_refusal(name, error) from error
        libbpf.object_pin(fd, path)
        os.close(fd)
    opened = Maps.open(directory)
    _stamp_layout(opened, directory)
    opened.rebuild_claims()
    return opened


def _map_refusal(name: str, error: OSError) -> LoaderError:
    if error.errno == errno.EPERM:
        remedy = "run as root; on kernels before 5.11 also raise the limit of locked memory (LimitMEMLOCK=infinity)"
        return LoaderError("not-permitted", f"the kernel refuses BPF map {name}", remedy)
    if error.errno == errno.ENOMEM:
        return LoaderError("no-memory", f"no memory for BPF map {name}", "give the map a smaller size in the node file")
    return LoaderError("no-map", f"BPF map {name} cannot be made ({error})", "Linux 5.15 or newer is needed")


def _stamp_layout(opened: Maps, directory: Path) -> None:
    settings = opened.settings.get(0)
    assert settings is not None
    found = int(settings["layout"])
    if found == 0:
        settings["layout"] = layout.LAYOUT_VERSION
        opened.settings.set(0, settings)
    elif found != layout.LAYOUT_VERSION:
        opened.close()
        raise LayoutMismatchError(
            f"the maps in {directory} have layout {found}, this version needs {layout.LAYOUT_VERSION}: "
            "detach the packet path (it is rebuilt at next start)"
        )


def _versions(node_directory: Path) -> list[int]:
    found = (path.name.removeprefix(_PROGRAMS) for path in node_directory.glob(f"{_PROGRAMS}*"))
    return sorted(int(number) for number in found if number.isdigit())


def current_programs(node_directory: Path) -> Path | None:
    """The directory of the newest complete version of the programs, None if nothing is loaded."""
    for number in reversed(_versions(node_directory)):
        directory = node_directory / f"{_PROGRAMS}{number}"
        if (directory / ENTRY).exists() and (directory / "steps").exists():
            return directory
    return None


def load_programs(node_directory: Path) -> Path:
    """Compiles the path in a child against the node's maps and pins it as a new version; returns its directory."""
    versions = _versions(node_directory)
    directory = node_directory / f"{_PROGRAMS}{(versions[-1] if versions else 0) + 1}"
    directory.mkdir(parents=True)
    try:
        compile_source("xdp_lb.c", node_directory / "maps", directory)
    except BaseException:
        shutil.rmtree(directory)
        raise
    return directory


def compile_source(name: str, maps_directory: Path, programs: Path, kind: int = libbpf.PROGRAM_XDP) -> None:
    """Compiles one C file, unless the cache has it, and pins its programs in ``programs``."""
    key = source.fingerprint(name)
    module = bytecode.read_cache(key)
    if module is None:
        module = _run_compiler(name, maps_directory)
        bytecode.write_cache(key, module)
    try:
        bytecode.load(module, maps_directory, programs, kind)
    except libbpf.VerifierError as error:
        remedy = "Linux 5.15 or newer is needed; if it is, report this with `lbctl doctor`"
        raise LoaderError("refused", str(error), remedy) from error


def _run_compiler(name: str, maps_directory: Path) -> bytecode.Module:
    command = [sys.executable, "-m", "ebpf.compile", "--source", name, "--maps", str(maps_directory)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired as error:
        remedy = "the machine may be overloaded: try again"
        raise LoaderError("timeout", f"compiling {name} took over {COMPILE_TIMEOUT_S} s", remedy) from error
    if child.returncode != 0:
        raise _compile_refusal(name, child.stdout, child.stderr)
    return bytecode.Module.from_json(child.stdout)


def _compile_refusal(name: str, stdout: str, stderr: str) -> LoaderError:
    try:
        answer = json.loads(stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"error": "crashed", "text": "no answer"}
    cause, text = str(answer["error"]), str(answer["text"])
    if cause == "bcc-missing":
        return LoaderError(
            cause, f"BCC is missing ({text})", "install the Debian package python3-bpfcc (not pip's bcc)"
        )
    if cause == "environment":
        return LoaderError(cause, text, "see the requirements in README.md")
    tail = "\n".join(stderr.strip().splitlines()[-15:])
    remedy = "Linux 5.15 or newer is needed; if it is, report this with `lbctl doctor`"
    return LoaderError(cause, f"{name} was refused ({text})\n{tail}\n", remedy)


def _ifindex(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        names = ", ".join(name for _, name in socket.if_nameindex())
        text = f"interface {interface} does not exist in this network namespace"
        raise LoaderError("no-interface", text, f"name one of: {names}") from error


def query(interface: str) -> Attachment:
    """The XDP program on an interface now."""
    native, generic = libbpf.xdp_query(_ifindex(interface))
    return Attachment(interface, Mode.NATIVE if native else Mode.GENERIC, native or generic)


def _own_program_ids(node_directory: Path) -> set[int]:
    ids = set()
    for number in _versions(node_directory):
        entry = node_directory / f"{_PROGRAMS}{number}" / ENTRY
        if entry.exists():
            fd = libbpf.object_get(entry)
            ids.add(libbpf.program_id(fd))
            os.close(fd)
    return ids


def _is_ours(present: Attachment, node_directory: Path) -> bool:
    # By name, too: a program can outlive its pins (a bpffs unmounted under it), and must stay replaceable then.
    return present.program in _own_program_ids(node_directory) or is_packet_path(present)


def is_packet_path(present: Attachment) -> bool:
    """Whether what runs on an interface is the packet path of some node, by its name."""
    try:
        fd = libbpf.program_fd_by_id(present.program)
    except OSError:
        return False
    try:
        return libbpf.program_name(fd) == ENTRY
    finally:
        os.close(fd)


def attach(interface: str, node_directory: Path, mode: Mode = Mode.AUTO, *, displace: bool = False) -> Attachment:
    """Puts the newest version on an interface, replacing our own older one without a gap.

    Refuses to displace somebody else's program unless told to. ``AUTO`` is native where the driver can, else generic.
    """
    programs = current_programs(node_directory)
    if programs is None:
        raise LoaderError("not-loaded", f"no programs in {node_directory}", "load them first")
    ifindex, present = _ifindex(interface), query(interface)
    if present.program and not displace and not _is_ours(present, node_directory):
        text = f"interface {interface} already runs XDP program {present.program} of somebody else"
        raise LoaderError("occupied", text, f"remove it (ip link set dev {interface} xdp off) or ask to displace it")
    remember_mac(interface, node_directory)
    entry = libbpf.object_get(programs / ENTRY)
    try:
        if present.program and (mode is Mode.AUTO or mode is present.mode):
            return _replace(interface, ifindex, entry, present)
        if present.program:
            libbpf.xdp_attach(ifindex, -1, _MODE_FLAGS[present.mode])
        return _attach_new(interface, ifindex, entry, mode)
    finally:
        os.close(entry)


def remember_mac(interface: str, node_directory: Path) -> None:
    """Tells the path the interface's own MAC address; call again when it changes. Loopback has none: not checked."""
    entry = np.zeros((), layout.INTERFACE_MAC)
    ifindex = _ifindex(interface)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFHWADDR, struct.pack("256s", interface.encode()[:15]))
    mac = answer[18:24]
    if any(mac):
        entry["ifindex"], entry["mac"] = ifindex, np.frombuffer(mac, np.uint8)
    table = open_map(node_directory / "maps/interface_macs", "interface_macs", SPECS["interface_macs"])
    table.set(ifindex % layout.INTERFACE_COUNT_MAX, entry)
    table.close()


def _replace(interface: str, ifindex: int, entry: int, present: Attachment) -> Attachment:
    old = libbpf.program_fd_by_id(present.program)
    try:
        libbpf.xdp_attach(ifindex, entry, _MODE_FLAGS[present.mode] | libbpf.XDP_FLAGS_REPLACE, old)
    except OSError as error:
        remedy = "another process changes it at the same time: try again"
        raise LoaderError("replace", f"XDP program of {interface} could not be replaced ({error})", remedy) from error
    finally:
        os.close(old)
    return query(interface)


def _attach_new(interface: str, ifindex: int, entry: int, mode: Mode) -> Attachment:
    order = (Mode.NATIVE, Mode.GENERIC) if mode is Mode.AUTO else (mode,)
    problem: OSError | None = None
    for each in order:
        try:
            libbpf.xdp_attach(ifindex, entry, _MODE_FLAGS[each] | libbpf.XDP_FLAGS_UPDATE_IF_NOEXIST)
            return query(interface)
        except OSError as error:
            problem = error
    remedy = "use mode generic" if mode is Mode.NATIVE else "the kernel needs XDP (CONFIG_NET, Linux 5.15 or newer)"
    raise LoaderError("attach", f"{interface} refuses an XDP program in mode {mode} ({problem})", remedy)


def detach(interface: str, node_directory: Path) -> bool:
    """Takes our program off an interface; False if it ran none of ours."""
    present = query(interface)
    if not present.program or not _is_ours(present, node_directory):
        return False
    libbpf.xdp_attach(_ifindex(interface), -1, _MODE_FLAGS[present.mode])
    return True


def drop_old_versions(node_directory: Path) -> int:
    """Unpins every version but the newest, after it is attached everywhere; returns how many went."""
    old = _versions(node_directory)[:-1]
    for number in old:
        shutil.rmtree(node_directory / f"{_PROGRAMS}{number}")
    return len(old)


def remove(node_directory: Path) -> None:
    """Unpins programs and maps of a node; connections are forgotten. Detach first."""
    shutil.rmtree(node_directory, ignore_errors=True)


def open_program(node_directory: Path, name: str = ENTRY) -> int:
    """Descriptor of a program of the newest version, for test runs (``lb_entry``, or ``lb_where`` to ask it)."""
    programs = current_programs(node_directory)
    if programs is None:
        raise LoaderError("not-loaded", f"no programs in {node_directory}", "load them first")
    return libbpf.object_get(programs / name)


def load_pass_all(node_directory: Path) -> Path:
    """Pins the program for the far ends of veth pairs; returns its pin."""
    directory = node_directory / "pass_all"
    if not (directory / "pass_all").exists():
        directory.mkdir(parents=True, exist_ok=True)
        compile_source("pass_all.c", node_directory / "maps", directory)
    return directory / "pass_all"
