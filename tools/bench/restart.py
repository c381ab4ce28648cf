# SPDX-License-Identifier: Apache-2.0
"""What a restart of the daemon costs the packets: `python -m tools.bench restart`.

A client sends numbered UDP packets at a fixed pace on established flows through the VIP, and every one has to come back
from its backend. Meanwhile the daemon of the VIP's owner is restarted (SIGTERM and start), or killed (`kill -9`) and
started again, time after time, until it is in service. The packet path goes through all of it: lost should be nothing.

In `cluster` three gateways share the VIPs: a restart moves none of them, a kill moves them to another gateway. In
`single` there is one gateway and nobody to take over.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from netlab import cluster, faults
from netlab.lab import Lab
from netlab.topologies import TOPOLOGIES
from netlab.topology import Service, Target, Topology
from netlab.waiting import eventually

from tools.bench.programs import compiled

PORT = 9102
PAYLOAD_BYTES = 22
FLOWS = 64
RATE = 20_000
PACER_PRIORITY = 20
KINDS = ("restart", "kill")
SETTINGS = {"cluster": "three-gateways", "single": "routed"}
# Before a fault the flows are established; after it the new daemon has done what it does first.
BEFORE_S, AFTER_S = 0.5, 0.5
IN_SERVICE_S = 30.0


def topology(name: str) -> Topology:
    """The named topology with the one service that is measured."""
    base = TOPOLOGIES[name]
    targets = tuple(Target(node.name, node.address("inside", 4), PORT) for node in base.of_role("backend"))
    return replace(base, services=(Service("paced", base.vip(4), PORT, "udp", "nat", targets),))


@contextmanager
def paced_lab(setting: str, program: Path) -> Iterator[Lab]:
    """A lab whose backends send every packet back."""
    plan = topology(SETTINGS[setting])
    with Lab.up(f"bench-restart-{os.getpid()}", plan) as lab:
        for backend in plan.of_role("backend"):
            lab.start(f"{backend.name}/paced", backend, [str(program), "echo", str(PORT)])
        settle(lab)
        wait_for_answers(lab, program)
        yield lab


def settle(lab: Lab) -> None:
    """Until every gateway is in service."""
    if lab.topology.ring_segments:
        cluster.settle(lab)
    else:
        cluster.wait_in_service(lab, [gateway.name for gateway in lab.gateways])


def owner(lab: Lab) -> str:
    """Whose daemon is to be hurt."""
    return cluster.owner(lab, lab.topology.vip(4)) if lab.topology.ring_segments else lab.gateways[0].name


@contextmanager
def paced(lab: Lab, program: Path) -> Iterator[dict[str, Any]]:
    """Packets while the block runs; the report is filled in after it."""
    numbers = [PORT, PAYLOAD_BYTES, FLOWS, RATE]
    command = [str(program), "ask", lab.topology.vip(4), *map(str, numbers)]
    child = lab.inside("client", lambda: subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    report: dict[str, Any] = {}
    try:
        # To keep its pace while a program is compiled beside it.
        os.sched_setscheduler(child.pid, os.SCHED_RR, os.sched_param(PACER_PRIORITY))
        yield report
        child.send_signal(signal.SIGTERM)
        report.update(json.loads(child.communicate(timeout=30)[0]))
    finally:
        child.kill()
        child.wait()


def wait_for_answers(lab: Lab, program: Path) -> None:
    """Until all that is sent comes back."""

    def answered() -> bool:
        with paced(lab, program) as report:
            time.sleep(0.1)
        return bool(report["sent"] and not report["lost"])

    eventually(answered, IN_SERVICE_S, "packets come back")


def repetition(lab: Lab, kind: str, program: Path) -> dict[str, Any]:
    """One restart under packets; what came of them."""
    node = owner(lab)
    with paced(lab, program) as report:
        time.sleep(BEFORE_S)
        at = time.monotonic()
        if kind == "kill":
            faults.signal_daemon(lab, node, "kill")
        else:
            lab.stop(f"{node}/lbd")
        stopped = time.monotonic()
        lab.start_daemon(node)
        cluster.wait_in_service(lab, [node], IN_SERVICE_S)
        back = time.monotonic()
        time.sleep(AFTER_S)
    report |= {"node": node, "stopping_s": round(stopped - at, 3), "back_s": round(back - at, 3)}
    if report["lost"]:
        # Seconds after the daemon was told to stop.
        for edge in ("first_lost_at", "last_lost_at"):
            report[edge] = round(report[edge] - at, 4)
        print(json.dumps(report), file=sys.stderr)
    settle(lab)
    return report


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the repetitions come to."""
    return {
        "repetitions": len(runs),
        "packets": sum(run["sent"] for run in runs),
        "lost": sum(run["lost"] for run in runs),
        "repetitions_with_loss": sum(run["lost"] > 0 for run in runs),
        "gap_ms_max": max(run["gap_ms"] for run in runs),
        "packets_per_s": round(sum(run["sent"] for run in runs) / sum(run["seconds"] for run in runs)),
        "back_s_max": max(run["back_s"] for run in runs),
    }


def measure(setting: str, kinds: list[str], repetitions: int, program: Path) -> dict[str, Any]:
    """All repetitions of each kind in one lab."""
    results: dict[str, Any] = {}
    with paced_lab(setting, program) as lab:
        for kind in kinds:
            results[kind] = summary([repetition(lab, kind, program) for _ in range(repetitions)])
            print(f"{setting} {kind}: {json.dumps(results[kind])}", file=sys.stderr)
    return results


def main(arguments: list[str]) -> int:
    """Run and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench restart", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--kind", action="append", choices=KINDS, help="default: all")
    parser.add_argument("--setting", action="append", choices=sorted(SETTINGS), help="default: all")
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        program = compiled("paced_udp", Path(directory))
        for setting in options.setting or sorted(SETTINGS):
            results[setting] = measure(setting, options.kind or list(KINDS), options.repetitions, program)
    print(json.dumps(results, indent=None if options.json else 2))
    return 0
