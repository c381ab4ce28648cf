# SPDX-License-Identifier: Apache-2.0
"""UDP echo requests at a fixed pace from one port, and the longest time for which none was answered.

    python -m netlab.traffic.udp_probe HOST --interval-ms 1 --seconds 5

The gap is counted between the SENDING times of answered probes, so that a late answer or a prober that was kept from
the processor while receiving does not lengthen it. What the prober itself adds is reported as `latest_send_ms`: the
longest time between two probes; a gap cannot be told more finely than that.
"""

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from netlab.topology import ECHO_PORT
from netlab.traffic.common import announce_ready
from netlab.traffic.endpoint import NAME_BYTES

PROBE = struct.Struct("!Q")
DATAGRAM_MAX = 2048
DRAIN_S = 0.3
# Above anything a gateway in the lab runs with.
PRIORITY = 20


class Prober:
    def __init__(self, host: str, port: int, interval_s: float) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.connect((host, port))
        self.socket.setblocking(False)
        self.interval_s = interval_s
        self.sent_at: list[float] = []
        self.answered: dict[int, float] = {}
        self.backends: dict[str, int] = {}
        self.unreachable = 0
        self.stopping = False

    def run(self, seconds: float | None) -> None:
        begin = time.monotonic()
        end = float("inf") if seconds is None else begin + seconds
        following = begin
        while not self.stopping and time.monotonic() < end:
            self.send()
            # Pace by the clock; after a pause go on from now instead of sending what was missed in one burst.
            following = max(following + self.interval_s, time.monotonic())
            self.receive_until(following)
        self.receive_until(time.monotonic() + DRAIN_S)

    def send(self) -> None:
        self.sent_at.append(time.monotonic())
        try:
            self.socket.send(PROBE.pack(len(self.sent_at) - 1))
        except OSError:
            # An ICMP error of an earlier probe, or no route for the moment: this probe is lost, as the report will say.
            self.unreachable += 1

    def receive_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.socket], [], [], left)[0]:
                self.receive()

    def receive(self) -> None:
        try:
            while True:
                data = self.socket.recv(DATAGRAM_MAX)
                (number,) = PROBE.unpack_from(data, NAME_BYTES)
                self.answered.setdefault(number, time.monotonic())
                name = data[:NAME_BYTES].decode().strip()
                self.backends[name] = self.backends.get(name, 0) + 1
        except BlockingIOError:
            return
        except OSError:
            self.unreachable += 1

    def report(self) -> dict[str, Any]:
        gap_ms, at = longest_gap(self.sent_at, self.answered)
        sends = [later - earlier for earlier, later in zip(self.sent_at, self.sent_at[1:], strict=False)]
        trips = sorted(arrived - self.sent_at[number] for number, arrived in self.answered.items())
        return {
            "sent": len(self.sent_at),
            "answered": len(self.answered),
            "lost": len(self.sent_at) - len(self.answered),
            "gap_ms": round(gap_ms, 2),
            "gap_at_s": round(at, 3),
            "gap_at_monotonic": round(self.sent_at[0] + at, 4) if self.sent_at else None,
            "answered_at_end": bool(self.sent_at) and len(self.sent_at) - 1 in self.answered,
            "latest_send_ms": round(max(sends, default=0.0) * 1000, 2),
            "median_trip_ms": round(trips[len(trips) // 2] * 1000, 3) if trips else None,
            "backends": self.backends,
            "errors": self.unreachable,
        }


def longest_gap(sent_at: list[float], answered: dict[int, float]) -> tuple[float, float]:
    """(milliseconds, seconds after the first probe) of the longest stretch with an unanswered probe in it.

    From the last answered probe before it to the first answered one after it, or to the last probe sent.
    (0, 0) if every probe was answered.
    """
    longest, where, previous, missing = 0.0, 0.0, sent_at[0] if sent_at else 0.0, False
    for number, at in enumerate(sent_at):
        if number not in answered:
            missing = True
            if number < len(sent_at) - 1:
                continue
        if missing and at - previous > longest:
            longest, where = at - previous, previous - sent_at[0]
        previous, missing = at, False
    return longest * 1000, where


def take_precedence() -> None:
    """Real-time priority, if permitted: a prober that waits for a processor measures the machine, not the network."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=ECHO_PORT)
    parser.add_argument("--interval-ms", type=float, default=1.0)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    prober = Prober(options.host, options.port, options.interval_ms / 1000)

    def stop(*_: object) -> None:
        prober.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    take_precedence()
    announce_ready()
    prober.run(options.seconds)
    json.dump(prober.report(), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
