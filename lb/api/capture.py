# SPDX-License-Identifier: Apache-2.0
"""Mirrored packets with their verdicts, as a pcapng file (draft-ietf-opsawg-pcapng; Wireshark, tcpdump).

Each packet is written as it left the packet path; its comment says verdict, reason, service and backend.
"""

import ipaddress
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf.maps import Maps
from ebpf.reasons import REASONS
from ebpf.ring_buffer import RingBuffer
from ebpf.test_run import Verdict
from lb.api.datapath import Names
from lb.api.frames import layers
from lb.api.problems import ApiProblem
from lb.api.shapes import CaptureRequest

POLL_S = 0.02
RECORDS_AT_ONCE = 1024
LINKTYPE_ETHERNET = 1
NANOSECONDS = 9
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_OPTION_END, _OPTION_COMMENT, _OPTION_TIME_RESOLUTION = 0, 1, 9

Records = npt.NDArray[np.void]


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + b"\0" * (-len(value) % 4)


def file_header() -> bytes:
    """Section and interface blocks; times are in nanoseconds."""
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    options = _option(_OPTION_TIME_RESOLUTION, bytes([NANOSECONDS])) + struct.pack("<HH", _OPTION_END, 0)
    interface = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, 0) + options
    return _block(_SECTION, section) + _block(_INTERFACE, interface)


def packet_block(record: Any, wall_offset_ns: int, names: Names, snap_bytes: int) -> bytes:
    """One enhanced packet block. wall_offset_ns: what to add to CLOCK_MONOTONIC for the time of day."""
    kept = min(int(record["kept"]), snap_bytes)
    data = record["bytes"][:kept].tobytes()
    at = int(record["time_ns"]) + wall_offset_ns
    head = struct.pack("<IIIII", 0, at >> 32, at & 0xFFFFFFFF, kept, int(record["length"]))
    options = _option(_OPTION_COMMENT, comment(record, names).encode()) + struct.pack("<HH", _OPTION_END, 0)
    return _block(_PACKET, head + data + b"\0" * (-kept % 4) + options)


def comment(record: Any, names: Names) -> str:
    """What the packet path decided, in one line."""
    number = int(record["verdict"])
    verdict = Verdict(number).name.lower() if number in Verdict._value2member_map_ else str(number)
    parts = [f"verdict={verdict}", f"reason={reason_name(int(record['reason']))}", f"in=if{int(record['ifindex'])}"]
    if service := int(record["service"]):
        parts.append(f"service={names.services.get(service, service)}")
    if target := int(record["target"]):
        parts.append(f"backend={'/'.join(names.backends.get(target, (str(target),)))}")
    return " ".join(parts)


def reason_name(number: int) -> str:
    return REASONS[number].name.lower() if number < len(REASONS) else str(number)


def selector(request: CaptureRequest) -> Callable[[Any], bool]:
    """Whether a record is wanted."""
    wanted_address = ipaddress.ip_address(request.address) if request.address else None

    def wanted(record: Any) -> bool:
        if request.reason is not None and reason_name(int(record["reason"])) != request.reason.lower():
            return False
        if wanted_address is None and request.port is None:
            return True
        found = list(layers(record["bytes"][: int(record["kept"])].tobytes()))
        if wanted_address and not any(wanted_address in (layer.source, layer.destination) for layer in found):
            return False
        ports = {port for layer in found for port in (layer.source_port, layer.destination_port)}
        return request.port is None or request.port in ports

    return wanted


def mirror(maps: Maps, request: CaptureRequest, names: Names, stop: Callable[[], bool]) -> Iterator[bytes]:
    """The file, piece by piece, until enough packets, the time is up, or stop(). Blocks between pieces.

    The packet path stops mirroring by itself at the given time, should this process die before.
    """
    service = _service_number(request, names)
    ring = RingBuffer(maps.captures)
    try:
        discard(ring)
        _switch(maps, time.monotonic_ns() + int(request.seconds * 1e9), service)
        yield file_header()
        wanted, left = selector(request), request.packets
        end = time.monotonic() + request.seconds
        while left and not stop() and time.monotonic() < end:
            offset_ns = time.time_ns() - time.monotonic_ns()
            chosen = [record for record in ring.drain(RECORDS_AT_ONCE) if wanted(record)][:left]
            left -= len(chosen)
            yield b"".join(packet_block(record, offset_ns, names, request.snap_bytes) for record in chosen)
            if not chosen:
                time.sleep(POLL_S)
    finally:
        _switch(maps, 0, 0)
        ring.close()


def _service_number(request: CaptureRequest, names: Names) -> int:
    if request.service is None:
        return 0
    found = [number for number, name in names.services.items() if name == request.service]
    if not found:
        raise ApiProblem("not_found", f"no service is called '{request.service}'", field="service")
    return found[0]


def _switch(maps: Maps, until_ns: int, service: int) -> None:
    control = np.zeros((), maps.capture_control.spec.value)
    control["until_ns"], control["service"] = until_ns, service
    maps.capture_control.set(0, control)


def discard(ring: RingBuffer) -> None:
    for _ in range(ring.capacity // RECORDS_AT_ONCE + 1):
        if not len(ring.drain(RECORDS_AT_ONCE)):
            return
