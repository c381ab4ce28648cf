# SPDX-License-Identifier: Apache-2.0
"""Clients of a cluster while it is in trouble: what they run, and what they may not notice."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from netlab import services
from netlab.commands import load_nft
from netlab.lab import Argument, Lab
from netlab.topology import FAMILIES, HTTP_PORT, Family
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

from scenarios.on_the_wire import Claims, watched

# The benchmark holds the gap against its goal (a median of 80 ms). Here clients, servers and three gateways share the
# processors of whatever machine runs the tests; a takeover that does not work has no end at all.
GAP_MS_MAX = 1000.0
STALL_MS_MAX = 3000.0
# What is not to be noticed costs nothing; but a busy machine may lose a probe.
UNNOTICED_MS_MAX = 250.0
HELD_CONNECTIONS = 40
# Of each family.
PUSHED_CONNECTIONS = 8
PROBE_MS = 2
DOWNLOADS = 5
# Each takes about four seconds: it begins before the fault and ends after it.
DOWNLOAD_BYTES = 4 << 20
DOWNLOAD_RATE = 1 << 20
# Where the SYNs of a flood come from.
FLOOD_NETWORK = "10.128.0.0/9"


@dataclass
class Clients:
    """Traffic through the VIPs; the reports are there once the block has ended."""

    probes: dict[Family, Traffic]
    pushed: dict[Family, Traffic]
    held: Traffic
    fresh: Traffic
    downloads: Traffic
    claims: Claims

    def assert_undisturbed(self) -> None:
        """Nothing failed, and nothing stood still for long."""
        self.assert_nothing_failed()
        assert self.held.report["connections"] == HELD_CONNECTIONS
        assert self.downloads.report["complete"] == DOWNLOADS, self.downloads.report
        for family in FAMILIES:
            pushed, probe = self.pushed[family].report, self.probes[family].report
            assert pushed["connections"] == PUSHED_CONNECTIONS, f"IPv{family}: {pushed}"
            assert pushed["longest_stall_ms"] < STALL_MS_MAX, f"IPv{family}: {pushed}"
            assert probe["answered_at_end"], f"IPv{family}: {probe}"
            assert probe["gap_ms"] < GAP_MS_MAX, f"IPv{family}: {probe}"

    def assert_unnoticed(self) -> None:
        """Not even a hiccup."""
        self.assert_undisturbed()
        for probe in self.probes.values():
            assert probe.report["gap_ms"] < UNNOTICED_MS_MAX, probe.report

    def assert_nothing_failed(self) -> None:
        """However long it took, every connection lives and every new one was answered."""
        for traffic in (self.held, self.fresh, self.downloads, *self.pushed.values()):
            report = traffic.report
            assert (report["failed"], report.get("lost_connections", 0)) == (0, 0), f"{traffic.program}: {report}"


@contextmanager
def clients(lab: Lab) -> Iterator[Clients]:
    """They are at work when the block begins, and beyond its last statement."""
    vip = lab.topology.vip(4)
    held: list[Argument] = ["--connections", HELD_CONNECTIONS, "--concurrency", HELD_CONNECTIONS, "--requests", 0]
    content = services.make_content(lab.directory, "long", DOWNLOAD_BYTES)
    download: list[Argument] = ["--path", "/file/long", "--count", DOWNLOADS, "--rate", DOWNLOAD_RATE]
    with ExitStack() as stack:

        def run(program: str, *arguments: Argument) -> Traffic:
            return stack.enter_context(lab.traffic(program, *arguments))

        started = Clients(
            pushed={f: run("push_watch", lab.topology.vip(f), "--count", PUSHED_CONNECTIONS) for f in FAMILIES},
            held=run("http_load", vip, HTTP_PORT, *held, "--interval", 0.05),
            fresh=run("http_load", vip, HTTP_PORT, "--connections", 0, "--concurrency", 4, "--pause", 0.02),
            claims=stack.enter_context(watched(lab)),
            probes={f: run("udp_probe", lab.topology.vip(f), "--interval-ms", PROBE_MS) for f in FAMILIES},
            # Last: they are to last beyond the fault.
            downloads=run("downloads", vip, HTTP_PORT, *download, "--sha256", content),
        )
        eventually(lambda: lab.established("client", f"dst {vip}") >= HELD_CONNECTIONS + PUSHED_CONNECTIONS)
        eventually(lambda: lab.established("client", f"dst [{lab.topology.vip(6)}]") >= PUSHED_CONNECTIONS)
        # What starting all of it does to a busy machine is no fault that is looked at.
        started.claims.begin()
        yield started
        started.downloads.wait()


def drop_flood() -> None:
    """What the flood would cost a backend is not the matter here."""
    rules = (
        f"table ip flood {{ chain p {{ type filter hook prerouting priority -300; ip saddr {FLOOD_NETWORK} drop; }}; }}"
    )
    load_nft(rules)


def answered(lab: Lab, connections: int) -> bool:
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", connections, "--timeout", 5)
    return bool(report["failed"] == 0)
