# SPDX-License-Identifier: Apache-2.0
"""What it costs to keep the kernels' connection tracking equal: `python -m tools.bench conntrack`.

Processor time per entry of the two ends, beside each other in one network namespace of their own and without the ring
between them: from the kernel's events to a message, and from a message into the kernel's table. The kernel's own part
(the system calls) is told apart.
"""

import argparse
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from socket import AF_INET, IPPROTO_TCP

import numpy as np

from lb.conntrack.entries import (
    ENTRY,
    SEED_BYTES,
    Entries,
    Hasher,
    Kind,
    Status,
    TcpState,
    hash_addresses,
    pack_addresses,
    pack_entries,
    unpack_entries,
)
from lb.conntrack.inbox import Inbox
from lb.conntrack.kernel import EventReader, TableWriter, dump_table
from lb.conntrack.listener import Listener
from lb.conntrack.told import Told

INSIDE = "RAINLB_BENCH_INSIDE"
# What fits into the events' buffer at once.
BURST = 4096
PORT_FIRST, PORTS_PER_CLIENT = 1024, 16384


def connections(count: int) -> Entries:
    """Established TCP connections of several clients to one server."""
    entries, numbers = np.zeros(count, ENTRY), np.arange(count)
    clients, server = pack_addresses([ip_address("10.64.0.1"), ip_address("192.0.2.1")])
    entries["source"], entries["destination"] = clients, server
    entries["source"][:, 2] = numbers // PORTS_PER_CLIENT
    entries["source_port"], entries["destination_port"] = PORT_FIRST + numbers % PORTS_PER_CLIENT, 443
    for end, other in (("source", "destination"), ("destination", "source")):
        entries[f"reply_{end}"] = entries[other]
        entries[f"reply_{end}_port"] = entries[f"{other}_port"]
    entries["family"], entries["protocol"], entries["kind"] = AF_INET, IPPROTO_TCP, Kind.CHANGED
    entries["status"], entries["timeout_s"] = Status.SEEN_REPLY | Status.ASSURED, 3600
    entries["tcp_state"] = TcpState.ESTABLISHED
    return entries


def cost_of(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of processor time, and of these the kernel's."""
    before, system = time.process_time(), os.times().system
    work()
    return time.process_time() - before, os.times().system - system


class Ends:
    """Both ends: somebody who writes into the kernel's table, who listens, and who is told."""

    def __init__(self) -> None:
        hasher = Hasher(secrets.token_bytes(SEED_BYTES))
        told = Told(hasher)
        self.somebody, self.peer = TableWriter(), TableWriter()
        self.messages: list[bytes] = []
        nobody = hash_addresses(pack_addresses(()))
        self.listener = Listener(
            EventReader(self.peer.port), hasher, told, lambda: nobody, self._hand_over, lambda: None
        )
        self.listener.alone = False
        self.inbox = Inbox(
            self.peer, Told(hasher), hasher, ThreadPoolExecutor(1), lambda call: call(), on_shed=lambda: None
        )

    def _hand_over(self, message: bytes, _count: int) -> None:
        self.messages.append(message)
        self.listener.taken()

    def send(self, entries: Entries) -> tuple[float, float]:
        """Somebody changes entries; what it costs to make messages of the events."""
        total, system = 0.0, 0.0
        for first in range(0, len(entries), BURST):
            self.somebody.apply(entries[first : first + BURST])
            more = cost_of(self._take_all)
            total, system = total + more[0], system + more[1]
        return total, system

    def _take_all(self) -> None:
        while self.listener.take():
            pass

    def receive(self, messages: list[bytes]) -> tuple[float, float]:
        """What it costs to write messages into the kernel's table."""
        return cost_of(lambda: [self.inbox.write(message) for message in messages])


def measure(count: int) -> dict[str, tuple[float, float]]:
    """Processor time and the kernel's part of it, by what was done."""
    ends, entries = Ends(), connections(count)
    made = cost_of(lambda: ends.somebody.apply(entries))
    entries["kind"], entries["tcp_state"] = Kind.REFRESHED, TcpState.TIME_WAIT
    sent = ends.send(entries)
    told = sum(len(unpack_entries(message)) for message in ends.messages)
    if told != count:
        raise RuntimeError(f"{told} of {count} entries were told")
    changed = ends.receive(ends.messages)
    surveyed = cost_of(lambda: sum(len(piece) for piece in dump_table()))
    entries["kind"] = Kind.DELETED
    ends.peer.apply(entries)
    entries["kind"], entries["tcp_state"] = Kind.CHANGED, TcpState.ESTABLISHED
    created = ends.receive([pack_entries(entries[i : i + BURST]) for i in range(0, count, BURST)])
    return {"bare creation": made, "sending": sent, "changing": changed, "creating": created, "reading": surveyed}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.bench conntrack", description=__doc__)
    parser.add_argument("--entries", type=int, default=50_000, help="of one run (default: 50,000)")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(argv)
    if INSIDE not in os.environ:
        command = ["unshare", "--net", sys.executable, "-m", "tools.bench", "conntrack", *argv]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}).returncode
    runs = []
    for _ in range(options.repetitions):
        runs.append(measure(options.entries))
        subprocess.run(["conntrack", "-F"], check=True, capture_output=True)
    report = {
        what: {
            "us_per_entry": round(statistics.median(run[what][0] for run in runs) / options.entries * 1e6, 2),
            "of_it_kernel": round(statistics.median(run[what][1] for run in runs) / options.entries * 1e6, 2),
        }
        for what in runs[0]
    }
    print(json.dumps(report, indent=2))
    return 0
