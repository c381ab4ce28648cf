# SPDX-License-Identifier: Apache-2.0
"""From the death of a node, or the cut of its link, to the view of the survivors, and the same of corosync."""

import argparse
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from netlab.bare_network import Network

from tools.bench.corosync import Corosync, CorosyncFailed
from tools.bench.ring_cluster import Cluster, NodeFailed
from tools.bench.usage import Row, distribution

VIEW_TIMEOUT_S = 10.0
COROSYNC_VIEW_TIMEOUT_S = 40.0
CABLE_OUT_S = (0.2, 0.5, 0.8)  # whom a node asks for meanwhile (ARP), Linux asks for again only after a second
COROSYNC_DEATHS = 5  # at its defaults, at most: each takes it 8 seconds
COROSYNC_TUNED: dict[str, Any] = {"token_ms": 50, "ping_ms": 2000}  # its limit here: below, it excludes living nodes


def detection(options: argparse.Namespace) -> Iterator[Row]:
    """From the death of a node, or the cut of its link, to the new view at the last survivor."""
    for how in ("kill", "cut"):
        with Network(3) as network:
            cluster = Cluster(network)
            cluster.form()
            deaths = [one_death(cluster, network, how, victim=1 + n % 3) for n in range(options.deaths)]
        found = [death.noticed_ms for death in deaths if death.noticed_ms is not None]
        figures, missed = distribution(found), len(deaths) - len(found)
        met = not missed and figures["p50"] <= 60 and figures["max"] <= 150
        row = {"part": "detection", "of": "rainlb", "how": how, "ms": figures, "missed": missed}
        if how == "cut":  # a killed one has to start its interpreter first
            row["back_ms"] = distribution([death.back_ms for death in deaths])
        yield {**row, "target": "p50 60, max 150", "met": met}
    if options.versus:
        yield from corosync_detection(options)


class Death(NamedTuple):
    """Milliseconds until every survivor had the view of the survivors, if ever; and, mended, until all were in one."""

    noticed_ms: float | None
    back_ms: float


def one_death(cluster: Cluster, network: Network, how: str, victim: int) -> Death:
    """The ring is whole again afterwards."""
    time.sleep(0.4 + 0.013 * (victim + len(cluster.nodes[victim].views) % 7))  # at no fixed place of the token
    survivors = [node for node in cluster.nodes if node != victim]
    begin = time.monotonic()
    if how == "kill":
        cluster.nodes[victim].kill()
    else:
        begin = network.cut(victim)
    try:
        noticed_ms = (view_of(cluster, survivors, begin) - begin) * 1000
    except NodeFailed:
        noticed_ms = None
    if how == "cut":
        time.sleep(CABLE_OUT_S[len(cluster.nodes[victim].views) % len(CABLE_OUT_S)])
    begin = time.monotonic()
    if how == "kill":
        cluster.start(victim)
    else:
        network.mend(victim)
    return Death(noticed_ms, (view_of(cluster, sorted(cluster.nodes), begin) - begin) * 1000)


def view_of(cluster: Cluster, nodes: list[int], since: float) -> float:
    """When the last of these nodes came into the view of just these, for the first time since then."""
    end = time.monotonic() + VIEW_TIMEOUT_S
    while time.monotonic() < end:
        views = [[t for t, members in cluster.nodes[n].views if members == nodes and t > since] for n in nodes]
        if all(views):
            return max(min(instants) for instants in views)
        for node in nodes:
            cluster.nodes[node].poll(0.005)
    raise NodeFailed(f"no view of {nodes} at all of them within {VIEW_TIMEOUT_S:.0f} s")


def corosync_detection(options: argparse.Namespace) -> Iterator[Row]:
    """The same for its defaults and for its limit."""
    choices: list[tuple[str, dict[str, Any], int]] = [
        ("corosync", {}, min(options.deaths, COROSYNC_DEATHS)),
        ("corosync at its limit", COROSYNC_TUNED, options.deaths),
    ]
    for name, settings, deaths in choices:
        times: list[float] = []
        missed = 0
        for _ in range(deaths):
            with Network(3) as network:
                corosync = Corosync(network, **settings)
                try:
                    corosync.form()
                    times.append(corosync_death(corosync))
                except CorosyncFailed:
                    missed += 1
                finally:
                    corosync.stop()
        yield {"part": "detection", "of": name, "how": "kill", "ms": distribution(times), "missed": missed}


def corosync_death(corosync: Corosync) -> float:
    """Milliseconds from the death of node 3 to the last survivor's membership callback."""
    watchers = [corosync.client(node, "watch", 3) for node in (1, 2, 3)]
    for watcher in watchers:
        await_members(watcher, 3)
    time.sleep(0.5)
    begin = time.monotonic()
    corosync.kill([3])
    last = max(await_members(watcher, 2) for watcher in watchers[:2])
    return (last - begin) * 1000


def await_members(watcher: subprocess.Popen[Any], count: int) -> float:
    """When a watcher saw a membership of so many."""
    assert watcher.stdout is not None
    end = time.monotonic() + COROSYNC_VIEW_TIMEOUT_S
    while time.monotonic() < end:
        line = watcher.stdout.readline().split()
        if not line:
            raise CorosyncFailed("the watching client ended")
        if int(line[1]) == count:
            return float(line[0])
    raise CorosyncFailed(f"no membership of {count}")
