# SPDX-License-Identifier: Apache-2.0
"""Programs of traffic control on an interface, through libbpf: beside whatever else is attached there.

Ours are told apart by handle and priority. Errors are OSError with errno and what was attempted.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from enum import IntEnum

from ebpf import libbpf

HANDLE = 0x4C42
# Ahead of most others: a program that decides a packet's fate ends the walk through the filters.
PRIORITY = 7
_REPLACE = 1
_CLSACT = 0xFFFF_FFF1
_GET_FILTER, _NEW_FILTER = 46, 44
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_HEADER, _TCMSG = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII")
_REPLY_BYTES_MAX = 1 << 16
# What the kernel answers where there is no such filter, or nothing that could carry one.
_ABSENT = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})


class Side(IntEnum):
    """Where a program sits."""

    INGRESS = 1
    EGRESS = 2


_BOTH = Side.INGRESS | Side.EGRESS


class _Hook(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("ifindex", ctypes.c_int),
        ("attach_point", ctypes.c_int),
        ("parent", ctypes.c_uint32),
    )


class _Opts(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("prog_fd", ctypes.c_int),
        ("flags", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("handle", ctypes.c_uint32),
        ("priority", ctypes.c_uint32),
    )


def _hook(ifindex: int, side: int) -> _Hook:
    return _Hook(sz=ctypes.sizeof(_Hook), ifindex=ifindex, attach_point=side)


def _opts(**fields: int) -> _Opts:
    return _Opts(sz=ctypes.sizeof(_Opts), handle=HANDLE, priority=PRIORITY, **fields)


def attach(ifindex: int, side: Side, program_fd: int) -> None:
    """Puts a program there, in place of an earlier one of ours."""
    hook, opts = _hook(ifindex, side), _opts(prog_fd=program_fd, flags=_REPLACE)
    libbpf.call("bpf_tc_hook_create", ctypes.byref(_hook(ifindex, _BOTH)), accept={errno.EEXIST})
    libbpf.call("bpf_tc_attach", ctypes.byref(hook), ctypes.byref(opts))


def attached(ifindex: int, side: Side) -> int:
    """The id of our program there, 0 if there is none."""
    opts = _opts()
    found = libbpf.call("bpf_tc_query", ctypes.byref(_hook(ifindex, side)), ctypes.byref(opts), accept=_ABSENT)
    return int(opts.prog_id) if found >= 0 else 0


def detach(ifindex: int) -> None:
    """Takes ours off both sides, and what carries filters too unless others have some there."""
    for side in Side:
        libbpf.call("bpf_tc_detach", ctypes.byref(_hook(ifindex, side)), ctypes.byref(_opts()), accept=_ABSENT)
    if not any(_has_filters(ifindex, side) for side in Side):
        libbpf.call("bpf_tc_hook_destroy", ctypes.byref(_hook(ifindex, _BOTH)), accept=_ABSENT)


def _has_filters(ifindex: int, side: Side) -> bool:
    """Whether anybody has a program there."""
    body = _TCMSG.pack(0, ifindex, 0, _CLSACT + side, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(body), _GET_FILTER, _DUMP, 1, 0) + body)
        reply = kernel.recv(_REPLY_BYTES_MAX)
    return bool(_HEADER.unpack_from(reply)[1] == _NEW_FILTER)
