# SPDX-License-Identifier: Apache-2.0
"""What the live packet path would do with a packet: a test run of its explaining twin, put into words.

The twin (`lb_where`) is the same program on the same live maps, except that it writes nothing but its explanation:
asking changes no counter and opens no connection.
"""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from ebpf import test_run
from ebpf.layout import PROTOCOLS
from ebpf.loader import LoaderError, open_program
from ebpf.maps import Maps
from ebpf.reasons import REASONS
from lb.api import frames
from lb.api.connection_table import field_name
from lb.api.datapath import DataPathAway, Names
from lb.api.problems import ApiProblem
from lb.api.shapes import WhereRequest

PROGRAM = "lb_where"


def trace(directory: Path, maps: Maps, request: WhereRequest, names: Names) -> dict[str, Any]:
    """As of shapes.Where. Not for several threads at once: there is one explanation. Raises ApiProblem."""
    interface = request.interface or ""
    frame = _frame(request, interface)
    result = _run(directory, frame, interface)
    explanation = maps.explain.get(0)
    if explanation is None:
        raise DataPathAway("it left no explanation")
    return _explained(frame, result, explanation, names)


def _frame(request: WhereRequest, interface: str) -> bytes:
    source, destination = ipaddress.ip_address(request.source), ipaddress.ip_address(request.destination)
    number = PROTOCOLS[request.protocol]
    mac = _mac(interface)
    try:
        return frames.build(
            source, request.source_port, destination, request.destination_port, number, request.flags, mac
        )
    except ValueError as error:
        raise ApiProblem("invalid", str(error), field="destination") from error


def _mac(interface: str) -> bytes:
    """The interface's own address: what a packet for this gateway is sent to."""
    try:
        return bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().strip().replace(":", ""))
    except OSError:
        return frames.SOURCE_MAC


def _ifindex(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface) if interface else 0
    except OSError as error:
        raise ApiProblem("not_found", f"no interface is called '{interface}'", field="interface") from error


def _run(directory: Path, frame: bytes, interface: str) -> Any:
    ifindex = _ifindex(interface)
    try:
        program = open_program(directory, PROGRAM)
    except LoaderError as error:
        raise DataPathAway(str(error)) from error
    try:
        return test_run.run(program, frame, ifindex=ifindex)
    finally:
        os.close(program)


def _explained(frame: bytes, result: Any, explanation: Any, names: Names) -> dict[str, Any]:
    reason = REASONS[int(explanation["reason"])]
    target, number = int(explanation["target"]), int(explanation["service"])
    service, backend = names.backends.get(target, (names.services.get(number), None))
    changed = result.packet != frame
    return {
        "verdict": test_run.Verdict(result.verdict).name.lower(),
        "reason": reason.name.lower(),
        "meaning": reason.meaning,
        "service": service,
        "backend": backend or (str(target) if target else None),
        "because": because(int(explanation["state"]), int(explanation["owner"]), target, names),
        "packet_in": frames.describe(frame),
        "packet_out": frames.describe(result.packet) if changed else None,
        "packet_out_hex": result.packet.hex() if changed else None,
    }


def because(state: int, owner: int, target: int, names: Names) -> str:
    """Why there: a known connection stays, a new one is chosen for."""
    if state:
        held = f", handled by {names.node(owner)}" if owner else ""
        return f"belongs to a known connection ({field_name('state', state, names)}{held})"
    if target:
        return "no known connection: the service's scheduler chose"
    return "no service and no connection of this cluster"
