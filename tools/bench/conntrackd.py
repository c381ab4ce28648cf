# SPDX-License-Identifier: Apache-2.0
"""conntrackd (FTFW) beside our replication: two network namespaces, one makes conntrack entries, the other learns them.

Entries are made over ctnetlink in batches by a program that does nothing else, so that conntrackd is the one that is
measured. Counted are entries in the peer's external cache, and processor time of both daemons per entry.
"""

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netlab.commands import run

from tools.bench.programs import compiled
from tools.bench.usage import cpu_seconds

START_S, CALM_S, END_S = 10.0, 3.0, 60.0
POLL_S = 0.02
SIDES = (1, 2)


def configuration(side: int, directory: Path) -> str:
    """Reliable mode over a dedicated link, with buffers as its manual suggests for a busy cluster."""
    own, peer = f"10.79.0.{side}", f"10.79.0.{3 - side}"
    return f"""Sync {{
    Mode FTFW {{ ResendQueueSize 131072 }}
    UDP {{
        IPv4_address {own}
        IPv4_Destination_Address {peer}
        Port 3780
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
            # Without a rule that asks for it nothing is tracked, and nobody told of entries.
            rules = "table ip t { chain f { type filter hook input priority 0; ct state new accept; }; }"
            subprocess.run(self.inside(side, "nft", "-f", "-"), input=rules, text=True, check=True)
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
        command = self.inside(side, "conntrackd", "-C", str(self.directory / f"{side}.conf"), "-s")
        said = subprocess.run(command, capture_output=True, text=True).stdout
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


def _until_calm(hosts: Pair, maker: "subprocess.Popen[str]", expected: int) -> tuple[int, float]:
    """The most entries the peer had, and when it had them."""
    best, at = 0, time.monotonic()
    end = at + END_S
    while time.monotonic() < end and (maker.poll() is None or time.monotonic() - at < CALM_S):
        count = hosts.cached(2, "external")
        if count > best:
            best, at = count, time.monotonic()
        if best >= expected:
            break
        time.sleep(POLL_S)
    return best, at


def replicate(entries: int, rate: int) -> dict[str, Any]:
    """Make so many entries (`rate` 0: as fast as the kernel takes them); what the peer has learnt of them."""
    with pair() as hosts:
        program = compiled("conntrack_entries", hosts.directory)
        before = {side: hosts.cpu_s(side) for side in SIDES}
        begin = time.monotonic()
        command: Sequence[str] = hosts.inside(1, str(program), str(entries), str(rate))
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
            arrived, at = _until_calm(hosts, maker, entries)
            made = json.loads(maker.communicate()[0])
        used = {side: hosts.cpu_s(side) - before[side] for side in SIDES}
        return {
            "records": made["made"],
            "records_per_s": round(arrived / (at - begin)),
            "made_per_s": round(made["made"] / made["seconds"]),
            "received": [arrived],
            "lost": made["made"] - arrived,
            "sending_us": round(used[1] / made["made"] * 1e6, 3),
            "receiving_us": [round(used[2] / made["made"] * 1e6, 3)],
        }
