# SPDX-License-Identifier: Apache-2.0
"""Packets and connections per second through one gateway: rainlb beside nftables DNAT and plain forwarding.

    python -m tools.bench forwarding [--versus nft,plain] [--seconds 3] [--repeat 3] [--json]

Topology `routed` of the lab, one client, three backends, everything on one machine: sender, gateway and receivers share
its processors, so the figures compare contenders with each other, not with other machines. UDP: one sender, PAYLOAD
bytes (64-byte frames), FLOWS flows that have been established before; what arrived at the backends is counted, which
drop it before their stack. TCP: connect, a byte each way, the server closes first. Each contender runs in a lab of its
own, `--repeat` times in turn; the median is reported with the extremes.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from netlab.commands import load_nft
from netlab.lab import Lab
from netlab.topologies import TOPOLOGIES
from netlab.topology import Service, Target, Topology
from netlab.waiting import eventually

from tools.bench.programs import compiled

TCP_PORT = 9100
UDP_PORT = 9101
PAYLOAD = 22
FLOWS = 256
CONCURRENCY = 64
CONTENDERS = ("rainlb", "nft", "plain")

SINK = f"table ip sink {{ chain p {{ type filter hook prerouting priority -300; udp dport {UDP_PORT} drop; }}; }}"


def topology() -> Topology:
    """`routed`, offering the two services that are measured and nothing else."""
    base = TOPOLOGIES["routed"]
    backends = [(node.name, node.address("inside", 4)) for node in base.of_role("backend")]

    def service(name: str, port: int, protocol: Any) -> Service:
        targets = tuple(Target(backend, address, port) for backend, address in backends)
        return Service(name, base.vip(4), port, protocol, "nat", targets)

    return replace(base, services=(service("tcp", TCP_PORT, "tcp"), service("udp", UDP_PORT, "udp")))


def dnat_rules(plan: Topology) -> str:
    targets = ", ".join(
        f"{number} : {node.address('inside', 4)}" for number, node in enumerate(plan.of_role("backend"))
    )
    match = f"ip daddr {plan.vip(4)} meta l4proto {{ tcp, udp }} th dport {{ {TCP_PORT}, {UDP_PORT} }}"
    return (
        "table ip lb { chain p { type nat hook prerouting priority dstnat;"
        f" {match} dnat to numgen inc mod 3 map {{ {targets} }}; }}; }}"
    )


@contextmanager
def contender(name: str, generator: Path) -> Iterator[tuple[Lab, str]]:
    """A lab in which the contender balances, and the address that clients ask."""
    plan = topology()
    with Lab.up(f"bench{os.getpid()}", plan, daemons=name == "rainlb") as lab:
        for backend in plan.of_role("backend"):
            lab.start(f"{backend.name}/serve", backend, [str(generator), "serve", str(TCP_PORT)])
            lab.inside(backend.name, load_nft, SINK)
        if name == "nft":
            lab.run("gw1", ["ip", "address", "add", f"{plan.vip(4)}/32", "dev", "eth0"])
            lab.inside("gw1", load_nft, dnat_rules(plan))
        yield lab, plan.node("b1").address("inside", 4) if name == "plain" else plan.vip(4)


def received(lab: Lab) -> int:
    """Packets that have arrived at the backends."""

    def count() -> int:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.strip().startswith("eth0:"))

    return sum(lab.inside(backend.name, count) for backend in lab.topology.of_role("backend"))


def measure_udp(lab: Lab, address: str, generator: Path, seconds: float) -> dict[str, float]:
    command = [str(generator), "udp", address, str(UDP_PORT), str(PAYLOAD), str(FLOWS)]
    before = received(lab)
    sent = json.loads(lab.run("client", [*command, str(seconds)]).stdout)
    arrived = received(lab) - before
    return {"per_s": arrived / sent["seconds"], "lost": max(0.0, 1 - arrived / sent["sent"])}


def measure_tcp(lab: Lab, address: str, generator: Path, seconds: float) -> dict[str, float]:
    command = [str(generator), "tcp", address, str(TCP_PORT), str(CONCURRENCY), str(seconds)]
    report: dict[str, float] = json.loads(lab.run("client", command).stdout)
    return report


def warm_up(lab: Lab, address: str, generator: Path) -> None:
    eventually(lambda: measure_tcp(lab, address, generator, 0.2)["done"] > 0)
    eventually(lambda: measure_udp(lab, address, generator, 0.1)["per_s"] > 0)


def run(names: Sequence[str], seconds: float, repeat: int) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        generator = compiled("generate", Path(directory))
        measures: dict[str, Callable[..., dict[str, float]]] = {"udp": measure_udp, "tcp": measure_tcp}
        for _ in range(repeat):
            for name in names:
                with contender(name, generator) as (lab, address):
                    warm_up(lab, address, generator)
                    for case, measure in measures.items():
                        found.setdefault((case, name), []).append(measure(lab, address, generator, seconds))
    return [summary(case, name, values) for (case, name), values in sorted(found.items())]


def summary(case: str, name: str, values: list[dict[str, float]]) -> dict[str, Any]:
    rates = [value["per_s"] for value in values]
    result: dict[str, Any] = {
        "case": case,
        "contender": name,
        "per_s": round(statistics.median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
    }
    if case == "tcp":
        result["errors"] = int(sum(value["errors"] for value in values))
        result["p99_us"] = round(statistics.median(value["p99_us"] for value in values))
    else:
        result["lost_share"] = round(max(value["lost"] for value in values), 4)
    return result


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "tools.bench forwarding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versus", default="nft,plain", help="contenders beside rainlb, by commas")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    names = [*dict.fromkeys(["rainlb", *filter(None, options.versus.split(","))])]
    if unknown := set(names) - set(CONTENDERS):
        parser.error(f"unknown contender {', '.join(unknown)}; there are: {', '.join(CONTENDERS)}")
    rows = run(names, options.seconds, options.repeat)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()))
    return 0
