# SPDX-License-Identifier: Apache-2.0
"""conntrackd (FTFW) beside our replication: two network namespaces, one makes conntrack entries, the other learns them.

Entries are made over ctnetlink in batches by a program that does nothing else, so that conntrackd is the one that is
measured. Counted are entries in the peer's external cache, and processor time of both daemons per entry. How long an
entry takes is told by the age of the newest one there, looked at again and again.
"""

import json
import os
import re
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netlab.commands import run

from tools.bench.programs import compiled
from tools.bench.usage import cpu_seconds, distribution

START_S, CALM_S, END_S = 10.0, 3.0, 60.0
POLL_S = 0.005
# What `conntrackd -s` asks for at the daemon's socket; asked directly it takes a fraction of a millisecond.
STATISTICS = struct.pack("=i", 21)
SIDES = (1, 2)
PORT = 3780
Sample = tuple[float, int]

# Without a rule that asks for it nothing is tracked, and nobody told of entries; conntrackd's own are not counted.
RULES = f"""table ip t {{
    chain filter {{ type filter hook input priority 0; ct state new accept; }}
    chain in {{ type filter hook prerouting priority -300; udp dport {PORT} notrack; }}
    chain out {{ type filter hook output priority -300; udp dport {PORT} notrack; }}
}}
"""


def configuration(side: int, directory: Path) -> str:
    """Reliable mode over a dedicated link, with buffers as its manual suggests for a busy cluster."""
    own, peer = f"10.79.0.{side}", f"10.79.0.{3 - side}"
    return f"""Sync {{
    Mode FTFW {{ ResendQueueSize 131072 }}
    UDP {{
        IPv4_address {own}
        IPv4_Destination_Address {peer}
        Port {PORT}
        Interface sync0
        SndSocketBuffer 1249280
        RcvSocketBuffer 1249280
        Checksum on
    }}
}}
General {{
    Nice -20
    HashSize 32768
    HashLimit 262144
    LogFile {directory}/{side}.log
    LockFile {directory}/{side}.lock
    UNIX {{ Path {directory}/{side}.sock }}
    NetlinkBufferSize 2097152
    NetlinkBufferSizeMaxGrowth 8388608
}}
"""


class Pair:
    """Two hosts with conntrackd, joined by a cable."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names = {side: f"bench{os.getpid()}-{side}" for side in SIDES}
        self.daemons: dict[int, subprocess.Popen[bytes]] = {}

    def inside(self, side: int, *command: str) -> list[str]:
        """The command in the host's network namespace."""
        return ["nsenter", f"--net=/run/netns/{self.names[side]}", *command]

    def start(self) -> None:
        """Make the network and the daemons; returns when both answer."""
        for name in self.names.values():
            run("ip", "netns", "add", name)
        ends = [("name", "sync0", "netns", self.names[1]), ("name", "sync0", "netns", self.names[2])]
        run("ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for side in SIDES:
            run(*self.inside(side, "ip", "address", "add", f"10.79.0.{side}/24", "dev", "sync0"))
            run(*self.inside(side, "ip", "link", "set", "dev", "sync0", "up"))
            subprocess.run(self.inside(side, "nft", "-f", "-"), input=RULES, text=True, check=True)
            path = self.directory / f"{side}.conf"
            path.write_text(configuration(side, self.directory))
            command = self.inside(side, "conntrackd", "-C", str(path))
            self.daemons[side] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + START_S
        while any(self.cached(side, "internal") < 0 for side in SIDES):
            if time.monotonic() > until:
                raise RuntimeError(f"conntrackd did not start: {(self.directory / '1.log').read_text()[-500:]}")
            time.sleep(0.1)

    def cached(self, side: int, cache: str) -> int:
        """Entries in a cache of that side; -1 while it does not answer."""
        with socket.socket(socket.AF_UNIX) as asking:
            try:
                asking.connect(str(self.directory / f"{side}.sock"))
                asking.sendall(STATISTICS)
                said = b"".join(iter(lambda: asking.recv(1 << 16), b"")).decode()
            except OSError:
                return -1
        found = re.search(rf"cache {cache}:\s*current active connections:\s*(\d+)", said)
        return int(found.group(1)) if found else -1

    def cpu_s(self, side: int) -> float:
        """Processor time the daemon has used."""
        return cpu_seconds([self.daemons[side].pid])

    def close(self) -> None:
        """End the daemons and take the network away."""
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            daemon.wait()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@contextmanager
def pair() -> Iterator[Pair]:
    """A pair that is up."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        made = Pair(Path(directory))
        try:
            made.start()
            yield made
        finally:
            made.close()


def _until_calm(hosts: Pair, maker: "subprocess.Popen[str]", expected: int) -> list[Sample]:
    """(when, how many the peer had), as often as that grew."""
    grown = [(time.monotonic(), 0)]
    end = time.monotonic() + END_S
    while time.monotonic() < end and (maker.poll() is None or time.monotonic() - grown[-1][0] < CALM_S):
        count = hosts.cached(2, "external")
        if count > grown[-1][1]:
            grown.append((time.monotonic(), count))
        if grown[-1][1] >= expected:
            break
        time.sleep(POLL_S)
    return grown


def ages_ms(grown: list[Sample], begun: float, rate: int) -> list[float]:
    """How old the newest entry was whenever the peer was looked at, of entries made at a steady rate."""
    return sorted((at - begun - (count - 1) / rate) * 1000 for at, count in grown[1:])


def replicate(entries: int, rate: int) -> dict[str, Any]:
    """Make so many entries (`rate` 0: as fast as the kernel takes them); what the peer has learnt of them."""
    with pair() as hosts:
        program = compiled("conntrack_entries", hosts.directory)
        before = {side: hosts.cpu_s(side) for side in SIDES}
        begin = time.monotonic()
        command: Sequence[str] = hosts.inside(1, str(program), str(entries), str(rate))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
            grown = _until_calm(hosts, maker, entries)
            made = json.loads(maker.communicate()[0])
        at, arrived = grown[-1]
        used = {side: hosts.cpu_s(side) - before[side] for side in SIDES}
        return {
            "records": made["made"],
            "records_per_s": round(arrived / (at - begin)),
            "made_per_s": round(made["made"] / made["seconds"]),
            "received": [arrived],
            "lost": made["made"] - arrived,
            "sending_us": round(used[1] / made["made"] * 1e6, 3),
            "receiving_us": [round(used[2] / made["made"] * 1e6, 3)],
            **({"delay_ms": distribution(ages_ms(grown, made["begun"], rate), 2)} if rate else {}),
        }
