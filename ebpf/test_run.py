# SPDX-License-Identifier: Apache-2.0
"""Runs a loaded program on packets (BPF_PROG_TEST_RUN): one packet for its answer, many for their cost, or live.

A kernel without LIVE_FRAMES (before 5.18) refuses ``live`` with EINVAL.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from ebpf import libbpf
from ebpf.libbpf import TestRun

_LIVE_FRAMES = 1 << 1
_PACKET_ROOM_BYTES = 4096


class Verdict(IntEnum):
    """XDP return codes."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


def _context(length: int, ifindex: int) -> bytes | None:
    # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    return struct.pack("=6I", 0, length, 0, ifindex, 0, 0) if ifindex else None


def run(program_fd: int, packet: bytes, *, ifindex: int = 0, repeat: int = 1) -> TestRun:
    """Runs a packet through a program as if it came in on an interface of this namespace; the caller's packet is kept.

    With ``repeat`` the program sees what it made of the packet the time before, and the duration is the mean.
    """
    return libbpf.test_run(program_fd, packet, repeat, _context(len(packet), ifindex), 0, 0, _PACKET_ROOM_BYTES)


def live(program_fd: int, packet: bytes, *, count: int, ifindex: int = 0, batch: int = 64) -> TestRun:
    """Sends ``count`` frames through a program and really acts on its verdicts: a load generator."""
    return libbpf.test_run(program_fd, packet, count, _context(len(packet), ifindex), _LIVE_FRAMES, batch, 0)
