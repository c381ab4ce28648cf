# SPDX-License-Identifier: Apache-2.0
"""Brings the way of health checks (probe_path.c) into the kernel beside the packet path, and takes it out.

Compiled against the packet path's maps and pinned in ``<node>/probes-<fingerprint>``: a new version gets pins of its
own, and replaces the old one on each interface in one step. All errors are LoaderError or OSError.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

from ebpf import libbpf, loader, source, traffic_control
from ebpf.traffic_control import Side

PROBE_MARK = 0x4C42_0000  # as in probe_path.c; the lower half is the target's id
SOURCE = "probe_path.c"
_PROGRAMS = {Side.EGRESS: "probe_send", Side.INGRESS: "probe_receive"}
_PINS = "probes-"


def mark_of(target: int) -> int:
    """What a socket carries (SO_MARK) to have its packets reach the VIP on this target."""
    return PROBE_MARK | target


def load(node_directory: Path) -> Path:
    """Compiles and pins the programs, unless this version is there already; returns their directory."""
    directory = node_directory / f"{_PINS}{source.fingerprint(SOURCE)[:12]}"
    if not all((directory / name).exists() for name in _PROGRAMS.values()):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        loader.compile_source(SOURCE, node_directory / "maps", directory, libbpf.PROGRAM_TRAFFIC_CONTROL)
    return directory


def attach(interfaces: Iterable[str], node_directory: Path) -> None:
    """Puts this version on every interface, in place of an earlier one."""
    directory = load(node_directory)
    for side, name in _PROGRAMS.items():
        program = libbpf.object_get(directory / name)
        try:
            for interface in interfaces:
                if traffic_control.attached(socket.if_nametoindex(interface), side) != libbpf.program_id(program):
                    traffic_control.attach(socket.if_nametoindex(interface), side, program)
        finally:
            os.close(program)
    for old in node_directory.glob(f"{_PINS}*"):
        if old != directory:
            shutil.rmtree(old)


def detach(interfaces: Iterable[str], node_directory: Path) -> None:
    """Takes it off the interfaces (absent ones have lost it already) and unpins it."""
    present = {name for _, name in socket.if_nameindex()}
    for interface in present.intersection(interfaces):
        traffic_control.detach(socket.if_nametoindex(interface))
    for directory in node_directory.glob(f"{_PINS}*"):
        shutil.rmtree(directory)
