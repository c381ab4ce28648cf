# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that are given theirs, instead of taking one and telling which."""

import contextlib
import socket


def free_ports(count: int = 1, kind: socket.SocketKind = socket.SOCK_DGRAM, host: str = "127.0.0.1") -> list[int]:
    """Ports that nobody uses at the moment, all different."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket(family, kind)) for _ in range(count)]
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
