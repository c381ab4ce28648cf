# SPDX-License-Identifier: Apache-2.0
"""A source of replication records without packets: a few BPF instructions that write into a ring buffer map.

The program copies its 64-byte "packet" into the ring buffer and adds one to the packet's bytes 12 to 15 (the last
word of an IPv4 client's address), so that a TEST_RUN with `repeat` makes that many distinct connections, as fast as
the packet path itself would. It is a program of traffic control: for one of XDP the kernel waits, at the beginning and
at the end of every TEST_RUN, until all processors have passed a quiescent state, milliseconds on a busy machine.
"""

import ctypes
import os
import platform
import struct
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ebpf import layout, test_run
from ebpf.layout import RECORD, RecordKind, Replicate, State, flow_key
from ebpf.map_access import Map
from ebpf.map_specs import SPECS, create

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD = 5
_PROG_TYPE_SCHED_CLS = 3
# struct __sk_buff
_DATA, _DATA_END = 76, 80
_TC_ACT_OK = 0
_RINGBUF_OUTPUT = 130
_NO_WAKEUP = 1
_LOG_BYTES = 1 << 16


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | target, offset, value)


def _program(ring_fd: int) -> bytes:
    load64, load32, store64, store32 = 0x79, 0x61, 0x7B, 0x63
    move, move_value, add_value, jump_greater = 0xBF, 0xB7, 0x07, 0x2D
    body = [_instruction(load32, 2, 1, _DATA), _instruction(load32, 3, 1, _DATA_END)]
    swap = _instruction(0xDC, 5, value=32)  # to network order and back
    work = [_instruction(load32, 5, 2, 12), swap, _instruction(0x04, 5, value=1), swap, _instruction(store32, 2, 5, 12)]
    for position in range(0, RECORD.itemsize, 8):
        work += [_instruction(load64, 5, 2, position), _instruction(store64, 10, 5, position - RECORD.itemsize)]
    work += [_instruction(0x18, 1, 1, 0, ring_fd), _instruction(0)]  # r1 = map
    work += [_instruction(move, 2, 10), _instruction(add_value, 2, value=-RECORD.itemsize)]
    work += [_instruction(move_value, 3, value=RECORD.itemsize), _instruction(move_value, 4, value=_NO_WAKEUP)]
    work += [_instruction(0x85, value=_RINGBUF_OUTPUT)]
    check = [_instruction(move, 4, 2), _instruction(add_value, 4, value=RECORD.itemsize)]
    check += [_instruction(jump_greater, 4, 3, len(work))]
    end = [_instruction(move_value, 0, value=_TC_ACT_OK), _instruction(0x95)]
    return b"".join(body + check + work + end)


def _load(code: bytes) -> int:
    instructions, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)
    # union bpf_attr: prog_type, insn_cnt, insns, license, log_level, log_size, log_buf
    attributes = struct.pack(
        "=IIQQIIQ",
        _PROG_TYPE_SCHED_CLS,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1,
        _LOG_BYTES,
        ctypes.addressof(log),
    ).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYSCALL_BPF[platform.machine()], _PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"load record source: {os.strerror(error)}: {log.value.decode()[-500:]}")
    return fd


def new_map(name: str, max_entries: int | None = None) -> Map:
    """A map of the packet path of one's own, pinned nowhere."""
    spec = SPECS[name]
    size = max_entries or spec.max_entries
    return Map(name, spec, create(spec, f"own_{name}"[:15], size), size)


class RecordSource:
    """Writes records into a ring buffer map of its own: `ring`."""

    def __init__(self, ring_bytes: int = 1 << 22) -> None:
        self.ring = new_map("records", ring_bytes)
        self._program = _load(_program(self.ring.fd))

    def emit(
        self,
        count: int,
        *,
        node: int = 1,
        network: int = 10,
        first: int = 0,
        template: npt.NDArray[np.void] | None = None,
    ) -> int:
        """Make `count` records of distinct clients in `network`.x.x.x, from the `first` on; nanoseconds per record."""
        record = (some_record(node, network) if template is None else template).copy()
        record["key"]["source"][12:] = np.frombuffer((network << 24 | first).to_bytes(4, "big"), np.uint8)
        return test_run.run(self._program, record.tobytes(), repeat=count).duration_ns

    def close(self) -> None:
        """Give everything back."""
        os.close(self._program)
        self.ring.close()

    def __enter__(self) -> "RecordSource":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def some_record(node: int = 1, network: int = 10) -> npt.NDArray[np.void]:
    """An established TCP connection to a service."""
    record = np.zeros((), RECORD)
    record["key"] = flow_key(f"{network}.0.0.0", 40000, "10.0.1.100", 80, layout.PROTOCOLS["tcp"])
    record["value"]["target"], record["value"]["owner"], record["value"]["service"] = 1, node, 1
    record["value"]["state"] = State.ESTABLISHED
    record["kind"], record["node"], record["replicate"] = RecordKind.OPENED, node, Replicate.ESTABLISHED
    return record
