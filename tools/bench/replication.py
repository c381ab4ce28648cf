# SPDX-License-Identifier: Apache-2.0
"""How fast gateways learn each other's connections: `python -m tools.bench replication`.

Three processes, each with a real ring and real maps on loopback. One makes records with a few BPF instructions (so that
making connections costs next to nothing); the other two write them into their connection maps. Counted are records
per second sustained with nothing lost, processor time per record at both ends (the ring's included, the making of
records not), and the time from the making of a record until it is in both peers' maps. `--versus conntrackd` measures
Debian's conntrackd beside it.
"""

import argparse
import bisect
import json
import os
import subprocess
import sys
from typing import Any

from netlab.ports import free_ports

from tools.bench import conntrackd
from tools.bench.usage import distribution

NODES = 3
SENDER = 1
RING_BUFFER_BYTES = 1 << 22
# The default; with another one the idle token, and so the delay of few records, would have another pace.
FAILURE_DETECTION_MS = 40
END_TIMEOUT_S = 90
RATES = {"flat-out": 0, "1000/s": 1000, "100000/s": 100_000, "300000/s": 300_000}
# The kernel's limit is 262,144 entries here. 0: more than its creators can make.
CONNTRACKD_ENTRIES = {"flat-out": 200_000, "1000/s": 3_000, "100000/s": 200_000, "300000/s": 0}


def run(rate: int, seconds: float, failure_detection_ms: float) -> list[dict[str, Any]]:
    """One run; the reports of all nodes."""
    ports = free_ports(NODES)
    addresses = {str(node): [f"127.0.0.1:{ports[node - 1]}"] for node in range(1, NODES + 1)}
    children = []
    for node in range(1, NODES + 1):
        settings = {
            "node": node,
            "addresses": addresses,
            "rate": rate if node == SENDER else None,
            "seconds": seconds,
            "ring_buffer_bytes": RING_BUFFER_BYTES,
            "failure_detection_ms": failure_detection_ms,
        }
        command = [sys.executable, "-m", "tools.bench.replication_node", json.dumps(settings)]
        children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1))
    try:
        return _conduct(children)
    finally:
        for child in children:
            child.kill()
            child.wait()


def _conduct(children: list["subprocess.Popen[str]"]) -> list[dict[str, Any]]:
    for child in children:
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError("a node did not join: see its error above")
    for word in ("go", "end"):
        for child in children:
            assert child.stdin is not None
            child.stdin.write(f"{word}\n")
            child.stdin.flush()
    return [json.loads(child.communicate(timeout=END_TIMEOUT_S)[0].splitlines()[-1]) for child in children]


def delays_ms(sent: list[list[float]], arrived: list[list[float]]) -> list[float]:
    """For each batch made, the time until its last record was being written at a peer."""
    totals = [int(total) for _, total in arrived]
    delays = []
    for at, total in sent:
        place = bisect.bisect_left(totals, total)
        if place < len(totals):
            delays.append((arrived[place][0] - at) * 1000)
    return sorted(delays)


def figures(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run comes to."""
    sender, *receivers = reports
    made = sender["made"]
    last = max(report["arrived"][-1][0] for report in receivers)
    first = sender["sent"][0][0]
    delays = sorted(delay for report in receivers for delay in delays_ms(sender["sent"], report["arrived"]))
    return {
        "records": made,
        "records_per_s": round(made / (last - first)),
        "received": [report["received"] for report in receivers],
        "lost": sum(made - report["received"] for report in receivers),
        "not_in_map": sum(made - report["in_map"] for report in receivers),
        "sending_us": round(sender["cpu_s"] / made * 1e6, 3),
        "receiving_us": [round(report["cpu_s"] / made * 1e6, 3) for report in receivers],
        "delay_ms": distribution(delays, 2),
        "shed": [report["counts"]["received_shed"] for report in receivers],
        "exclusions": max(len(report["views"]) for report in reports),
        "loop_lag_max_ms": [round(report["loop_lag_ms"], 1) for report in reports],
    }


def main(arguments: list[str]) -> int:
    """Run and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench replication", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of load per rate (the map holds a million)")
    parser.add_argument("--rate", action="append", choices=sorted(RATES), help="default: all")
    parser.add_argument("--failure-detection-ms", type=float, default=FAILURE_DETECTION_MS)
    parser.add_argument("--versus", choices=["conntrackd"])
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    for name in options.rate or RATES:
        results[name] = figures(run(RATES[name], options.seconds, options.failure_detection_ms))
        print(f"{name}: {json.dumps(results[name])}", file=sys.stderr)
        if options.versus and CONNTRACKD_ENTRIES[name]:
            peer = results[f"{options.versus} {name}"] = conntrackd.replicate(CONNTRACKD_ENTRIES[name], RATES[name])
            print(f"{options.versus} {name}: {json.dumps(peer)}", file=sys.stderr)
    print(json.dumps(results, indent=None if options.json else 2))
    return 0
