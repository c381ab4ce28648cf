# SPDX-License-Identifier: Apache-2.0
"""What a client loses when the gateway that holds the virtual address goes: `python -m tools.bench failover`.

A prober in the client's namespace asks a UDP service through the VIP every millisecond while the owner is hurt; the
gap is the longest time without an answer, counted between sending times. Beside it, TCP connections into which the
server pushes: they count as lost when they end or stall for good, and how long the worst of them stood still is told.

`--versus keepalived` measures VRRPv3 in the same network: three routers, the VIP on one of them, the UDP service on
the routers themselves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from netlab import cluster, faults, namespaces
from netlab.commands import load_nft
from netlab.lab import Lab
from netlab.state import LabError
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

TOPOLOGY = "three-gateways"
# Where the ring has links of its own, all of which can be cut while the data links stay.
RING_TOPOLOGY, RING_INTERFACES = "four-gateways-dual-link", ("eth2", "eth3")
BEFORE_S, AFTER_S = 0.6, 1.5
PUSHED = 20
SILENCE = "bench_silence"
PROBER_PRIORITY = 20
# A connection that is silent for longer counts as lost.
STALL_S_MAX = 1.2
# Documented in docs/operations.md: the tuned setting.
TUNED = {"failure_detection_ms": 15}
ADVERTS_S = (1.0, 0.1, 0.01)

Fault = tuple[Callable[[Lab, str], None], Callable[[Lab, str], None]]


def _signal(kind: str) -> Callable[[Lab, str], None]:
    return lambda lab, node: faults.signal_daemon(lab, node, kind)


def _start(lab: Lab, node: str) -> None:
    lab.start_daemon(node)


def _links(up: bool, *interfaces: str) -> Callable[[Lab, str], None]:
    return lambda lab, node: faults.set_links(lab, node, up, interfaces)


def _silence(lab: Lab, node: str) -> None:
    """Nothing gets in or out from one instant on, which links cut one after the other do not give; then cut them."""
    ports: dict[str, list[str]] = {}
    for _, switch, port in faults.ports_of(lab, node):
        ports.setdefault(switch, []).append(port)
    for switch, names in ports.items():
        chains = "".join(
            f'chain {hook}_{place} {{ type filter hook {hook} device "{name}" priority -1; policy drop; }}\n'
            for place, name in enumerate(names)
            for hook in ("ingress", "egress")
        )
        lab.inside(switch, load_nft, f"table netdev {SILENCE} {{\n{chains}}}\n")
    faults.set_links(lab, node, False)


def _hear(lab: Lab, node: str) -> None:
    for switch in {switch for _, switch, _ in faults.ports_of(lab, node)}:
        lab.inside(switch, load_nft, f"delete table netdev {SILENCE}\n")
    faults.set_links(lab, node, True)


FAULTS: dict[str, Fault] = {
    "daemon-killed": (_signal("kill"), _start),
    "daemon-stopped": (_signal("stop"), _signal("cont")),
    "host-dead": (_silence, _hear),
    "outside-link": (_links(False, "eth0"), _links(True, "eth0")),
    "inside-link": (_links(False, "eth1"), _links(True, "eth1")),
    "ring-links": (_links(False, *RING_INTERFACES), _links(True, *RING_INTERFACES)),
}


def spread(values: list[float]) -> dict[str, float]:
    """Median, mean and extremes."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "mean": round(statistics.fmean(ordered), 1),
        "min": round(ordered[0], 1),
        "max": round(ordered[-1], 1),
    }


def stop_flooding(lab: Lab) -> None:
    """Frames for a dead port's MAC must not reach other gateways: an interface's filter would drop them, generic XDP
    sees them, and whoever forwards them hides the gap."""
    switches = {switch for gateway in lab.gateways for _, switch, _ in faults.ports_of(lab, gateway.name)}
    for switch in switches:
        enter = ["nsenter", f"--net={namespaces.path_of(lab.namespace(switch))}"]
        shown = subprocess.run([*enter, "ip", "-j", "link", "show", "type", "bridge_slave"], capture_output=True)
        # Links of other kinds are listed as empty objects.
        for name in [port["ifname"] for port in json.loads(shown.stdout or "[]") if "ifname" in port]:
            command = [*enter, "ip", "link", "set", name, "type", "bridge_slave", "flood", "off"]
            subprocess.run(command, check=True)


def keep_punctual(prober: Traffic) -> None:
    """A prober that is kept from the processor while an address moves would not see the gap."""
    os.sched_setscheduler(prober._child.pid, os.SCHED_RR, os.sched_param(PROBER_PRIORITY))


def repetition(lab: Lab, fault: Fault) -> dict[str, Any]:
    """Hurt the owner once under probes; the prober's and the connections' reports. The lab is whole again after."""
    vip = lab.topology.vip(4)
    # Both ways of every connection lead through the one that is hurt.
    owner = cluster.owner_of_all(lab)
    others = cluster.others(lab, owner)
    hurt, heal = fault
    with (
        lab.traffic("udp_probe", vip, "--interval-ms", 1) as prober,
        lab.traffic("push_watch", vip, "--count", PUSHED, "--timeout", STALL_S_MAX) as pushed,
    ):
        keep_punctual(prober)
        time.sleep(BEFORE_S)
        at = time.monotonic()
        hurt(lab, owner)
        with suppress(LabError):
            cluster.wait_for_owners(lab, others, 5.0, but=[owner])
        time.sleep(max(0.0, at + AFTER_S - time.monotonic()))
        gap, connections = prober.finish(), pushed.finish()
    stages = stages_ms(lab, vip, owner, at, gap)
    heal(lab, owner)
    return {"owner": owner, "at": at, **gap, "pushed": connections, "stages_ms": stages}


def stages_ms(lab: Lab, vip: str, owner: str, at: float, gap: dict[str, Any]) -> dict[str, float]:
    """Milliseconds after the last answer at which the new owner had the new view, had the address, and was heard."""
    new = cluster.owner(lab, vip, but=[owner])
    if new == owner or not gap["gap_ms"] or gap["gap_at_monotonic"] < at - 0.1:
        return {}
    since = gap["gap_at_monotonic"] + time.time() - time.monotonic()
    events = [row for row in lab.api(new, "GET", "/v1/events?limit=200") if row["time"] >= since]
    views = [row["time"] for row in events if row["kind"] == "view.changed"]
    moves = [row["time"] for row in events if row["kind"] == "vip.moved" and row["subject"] == vip]
    stages = {"view": min(views, default=None), "moved": min(moves, default=None)}
    found = {name: (when - since) * 1000 for name, when in stages.items() if when is not None}
    return found | {"answered": gap["gap_ms"]}


def measure(faults_wanted: list[str], repetitions: int, ring_options: dict[str, Any], name: str) -> dict[str, Any]:
    """All repetitions of each fault, in one lab for each topology."""
    results: dict[str, Any] = {}
    for topology in (TOPOLOGY, RING_TOPOLOGY):
        kinds = [kind for kind in faults_wanted if (kind == "ring-links") == (topology == RING_TOPOLOGY)]
        if kinds:
            results |= measure_in(topology, kinds, repetitions, ring_options, name)
    return results


def measure_in(
    topology: str, kinds: list[str], repetitions: int, ring_options: dict[str, Any], name: str
) -> dict[str, Any]:
    """These faults in a lab of this topology."""
    results: dict[str, Any] = {}
    with Lab.up(name, topology, ring_options=ring_options) as lab:
        stop_flooding(lab)
        for kind in kinds:
            runs = []
            for _ in range(repetitions):
                cluster.settle(lab)
                runs.append(repetition(lab, FAULTS[kind]))
            results[kind] = summary(runs)
            print(f"{name} {kind}: {json.dumps(results[kind])}", file=sys.stderr)
    return results


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the repetitions come to."""
    return {
        "repetitions": len(runs),
        "gap_ms": spread([run["gap_ms"] for run in runs]),
        "gaps_ms": [run["gap_ms"] for run in runs],
        "stages_ms": {
            name: spread([run["stages_ms"][name] for run in runs if name in run.get("stages_ms", {})])
            for name in ("view", "moved", "answered")
            if any(name in run.get("stages_ms", {}) for run in runs)
        },
        "not_back": sum(not run["answered_at_end"] for run in runs),
        "prober_late_ms": max(run["latest_send_ms"] for run in runs),
        "connections_lost": sum(_lost(run["pushed"]) for run in runs),
        "connections_stall_ms": spread([run["pushed"]["longest_stall_ms"] for run in runs]),
        "connections": PUSHED * len(runs),
    }


def _lost(report: dict[str, Any]) -> int:
    return int(report["lost_connections"])


# --- keepalived ------------------------------------------------------------------------------------------------------


def keepalived_file(node: str, priority: int, advert_s: float, vip: str, directory: Path) -> Path:
    """VRRPv3 without preemption and without the delay of the second announcement."""
    path = directory / f"{node}-keepalived.conf"
    path.write_text(
        f"""global_defs {{
  vrrp_version 3
  router_id {node}
  vrrp_garp_master_delay 0
}}
vrrp_instance V {{
  state BACKUP
  nopreempt
  interface eth0
  virtual_router_id 51
  priority {priority}
  advert_int {advert_s:g}
  virtual_ipaddress {{ {vip}/24 }}
}}
"""
    )
    return path


ECHO = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
sock.bind((sys.argv[1], int(sys.argv[2])))
name = sys.argv[3].ljust(int(sys.argv[4])).encode()
while True:
    data, source = sock.recvfrom(2048)
    sock.sendto(name + data, source)
"""


@contextmanager
def keepalived_lab(name: str, advert_s: float) -> Iterator[Lab]:
    """The same network with keepalived on the gateways instead of the daemon."""
    from netlab.topology import ECHO_PORT
    from netlab.traffic.endpoint import NAME_BYTES

    with Lab.up(name, TOPOLOGY, daemons=False) as lab:
        vip = lab.topology.vip(4)
        for position, gateway in enumerate(lab.gateways):
            path = keepalived_file(gateway.name, 110 - 10 * position, advert_s, vip, lab.directory)
            run = lab.directory / gateway.name
            command = ["keepalived", "-n", "-l", "-f", str(path), "-p", f"{run}/ka.pid", "-r", f"{run}/kav.pid"]
            lab.start(f"{gateway.name}-keepalived", gateway, [*command, "-c", f"{run}/kac.pid"])
            echo = [sys.executable, "-c", ECHO, vip, str(ECHO_PORT), gateway.name, str(NAME_BYTES)]
            lab.start(f"{gateway.name}-echo", gateway, echo)
        yield lab


def holders(lab: Lab, vip: str) -> list[str]:
    """The gateways that have the address on an interface."""
    found = []
    for gateway in lab.gateways:
        text = lab.run(gateway.name, ["ip", "-4", "-o", "addr", "show", "eth0"]).stdout
        if f"{vip}/" in text:
            found.append(gateway.name)
    return found


def one_holder(lab: Lab, vip: str, seconds: float) -> str:
    """The only holder, once there is exactly one."""
    return eventually(lambda: found[0] if len(found := holders(lab, vip)) == 1 else "", seconds, "one VRRP master")


def measure_keepalived(repetitions: int, name: str) -> dict[str, Any]:
    """Host death under VRRP at several advertisement intervals."""
    results = {}
    for advert_s in ADVERTS_S:
        with keepalived_lab(name, advert_s) as lab:
            stop_flooding(lab)
            vip = lab.topology.vip(4)
            runs = []
            for _ in range(repetitions):
                owner = one_holder(lab, vip, 10 + 10 * advert_s)
                time.sleep(advert_s)
                with lab.traffic("udp_probe", vip, "--interval-ms", 1) as prober:
                    keep_punctual(prober)
                    time.sleep(BEFORE_S)
                    _silence(lab, owner)
                    time.sleep(AFTER_S + 4 * advert_s)
                    report = prober.finish()
                _hear(lab, owner)
                runs.append({**report, "pushed": {"lost_connections": 0, "longest_stall_ms": 0.0}})
                time.sleep(0.5 + 2 * advert_s)
            found = summary(runs)
            # Nothing is balanced here, so no connections were watched.
            del found["connections"], found["connections_lost"], found["connections_stall_ms"]
            results[f"host-dead, advert {advert_s:g} s"] = found
            print(f"keepalived {advert_s:g}: {json.dumps(results)}", file=sys.stderr)
    return results


def main(arguments: list[str]) -> int:
    """Run and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench failover", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS), help="default: all")
    parser.add_argument("--settings", choices=["default", "tuned", "both"], default="default")
    parser.add_argument("--versus", choices=["keepalived"])
    parser.add_argument("--json", action="store_true", help="nothing but the JSON document on standard output")
    options = parser.parse_args(arguments)
    wanted = options.fault or sorted(FAULTS)
    results: dict[str, Any] = {"load_average": os.getloadavg()[0]}
    if options.settings in ("default", "both"):
        results["default"] = measure(wanted, options.repetitions, {}, "bench-failover")
    if options.settings in ("tuned", "both"):
        results["tuned"] = {"settings": TUNED} | measure(wanted, options.repetitions, TUNED, "bench-tuned")
    if options.versus:
        results["keepalived"] = measure_keepalived(options.repetitions, "bench-vrrp")
    results["load_average_after"] = os.getloadavg()[0]
    print(json.dumps(results, indent=None if options.json else 2))
    return 0
