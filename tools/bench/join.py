# SPDX-License-Identifier: Apache-2.0
"""How a gateway joins a cluster with a full connection table: `python -m tools.bench join`.

In `three-gateways` two gateways get a table of `--connections` entries, then the third one starts with an empty one.
Counted are the time until it is in service (it is not before its table is complete), the token's longest turn meanwhile
at the two that serve, and whether any of them was excluded; the tables are compared at the end.
"""

import argparse
import json
import sys
import time
from typing import Any

from netlab import cluster, connections, faults
from netlab.lab import Lab
from netlab.topology import HTTP_PORT

TOPOLOGY = "three-gateways"
JOIN_TIMEOUT_S = 60.0
# The longest turn is told for ten seconds, once a second: what was before is forgotten then, what was last is told.
FORGOTTEN_S, TOLD_S = 11.0, 1.5
SAMPLE_S = 0.1


def rows(lab: Lab, asked: str) -> dict[str, dict[str, Any]]:
    """What a gateway shows of every gateway."""
    return {row["name"]: row for row in lab.api(asked, "GET", "/v1/nodes")}


def turns_ms(lab: Lab, nodes: list[str]) -> dict[str, float]:
    """The token's longest turn of late, by gateway."""
    shown = rows(lab, nodes[0])
    return {node: float(shown[node].get("token_turn_ms") or 0) for node in nodes}


def take_out(lab: Lab, joiner: str, present: list[str]) -> None:
    """The joiner's daemon is killed and its data path with all tables removed."""
    faults.signal_daemon(lab, joiner, "kill")
    lab.run(joiner, ["lbd", "--config", str(lab.directory / joiner / "node.toml"), "--remove"])
    cluster.wait_for_members(lab, present)
    cluster.wait_for_owners(lab, present, but=[joiner])


def join(lab: Lab, joiner: str, present: list[str]) -> dict[str, Any]:
    """Start the joiner and watch until it is in service."""
    started, began, samples = time.time(), time.monotonic(), [turns_ms(lab, present)]
    lab.start_daemon(joiner, wait=False)
    in_view_s = 0.0
    while (row := rows(lab, present[0])[joiner])["state"] != "in_service":
        if row["in_view"] and not in_view_s:
            in_view_s = time.monotonic() - began
        if time.monotonic() > began + JOIN_TIMEOUT_S:
            raise RuntimeError(
                f"{joiner} is still {row['state']} after {JOIN_TIMEOUT_S:.0f} s: see {lab.directory}/log"
            )
        samples.append(turns_ms(lab, present))
        time.sleep(SAMPLE_S)
    in_service_s = time.monotonic() - began
    time.sleep(TOLD_S)
    samples.append(turns_ms(lab, present))
    events = lab.api(present[0], "GET", "/v1/events?limit=200")
    views = [e["message"] for e in events if e["kind"] == "view.changed" and e["time"] >= started]
    return {
        "in_view_s": round(in_view_s, 2),
        "in_service_s": round(in_service_s, 2),
        "longest_turn_ms": {node: round(max(sample[node] for sample in samples), 1) for node in present},
        "exclusions": sum("left:" in view for view in views),
    }


def main(arguments: list[str]) -> int:
    """Run and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench join", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args(arguments)
    runs = []
    with Lab.up("bench-join", TOPOLOGY) as lab:
        cluster.settle(lab)
        *present, joiner = [gateway.name for gateway in lab.gateways]
        for _ in range(options.repetitions):
            take_out(lab, joiner, present)
            connections.make(lab, present, options.connections, lab.topology.vip(4), HTTP_PORT)
            time.sleep(FORGOTTEN_S)
            before = turns_ms(lab, present)
            found = join(lab, joiner, present)
            tables = [connections.digest(lab, node) for node in (present[0], joiner)]
            runs.append({"turn_before_ms": before, **found, "entries": tables[1][0], "equal": tables[0] == tables[1]})
            print(json.dumps(runs[-1]), file=sys.stderr)
    print(json.dumps({"connections": options.connections, "runs": runs}, indent=None if options.json else 2))
    return 0
