# SPDX-License-Identifier: Apache-2.0
"""Ordered multicast as fast as a ring goes, cell by cell, and the same cells of corosync."""

import argparse
import time
from collections.abc import Iterator

from netlab.bare_network import Network

from tools.bench.corosync import Corosync, CorosyncFailed
from tools.bench.ring_cluster import Cluster, NodeFailed
from tools.bench.usage import Row, cpu_seconds, machine_seconds

FLOOD_GRACE_S = 20.0
DISTURBED_MAX = 10
FLOOD_SETTINGS = {"failure_detection_ms": 200}  # corosync's is 3,650; see `undisturbed`


def undisturbed(cluster: Cluster, size: int, senders: list[int], options: argparse.Namespace) -> tuple[list[Row], int]:
    """The repetitions of one cell, and how many more were thrown away because a view changed during them.

    Here all nodes share the cores of one machine, and saturate them with real-time priority; then the kernel takes
    50 ms of every second away from them for everybody else (its fair server), longer than the default failure budget.
    """
    rows: list[Row] = []
    thrown_away = 0
    while len(rows) < options.repetitions:
        before = cluster.view_count()
        row = flood(cluster, size, senders, options.seconds)
        if cluster.view_count() == before:
            rows.append(row)
            continue
        thrown_away += 1
        if thrown_away > DISTURBED_MAX:
            raise NodeFailed(f"views changed in {thrown_away} repetitions of {size} B: no figure")
        cluster.wait_for(sorted(cluster.nodes))
    return rows, thrown_away


def flood(cluster: Cluster, size: int, senders: list[int], seconds: float) -> Row:
    """One repetition of one cell."""
    cluster.tell("prepare", size=size, senders=senders)
    cluster.expect("prepared")
    cpu, machine = cpu_seconds(cluster.pids()), machine_seconds()
    cluster.tell("flood", size=size, senders=senders, seconds=seconds)
    results = cluster.expect("flooded", seconds + FLOOD_GRACE_S)
    cpu, machine = cpu_seconds(cluster.pids()) - cpu, machine_seconds() - machine
    return flood_row(list(results.values()), size, cpu, machine)


def flood_row(results: list[Row], size: int, cpu: float, machine: float) -> Row:
    """What the nodes report, as rates; the slowest node counts."""
    count, seconds = results[0]["delivered"], max(result["seconds"] for result in results)
    return {
        "messages_per_s": round(count / seconds),
        "mb_per_s": round(count * size / seconds / 1e6, 1),
        "same_order": len({(result["delivered"], result["order"]) for result in results}) == 1,
        "cpu_s_per_million": round(cpu / count * 1e6, 2),
        "machine_cpu_s_per_million": round(machine / count * 1e6, 2),
    }


def middle(rows: list[Row]) -> Row:
    """The repetition with the median rate, and the spread."""
    ordered = sorted(rows, key=lambda row: row["messages_per_s"])
    chosen = dict(ordered[len(ordered) // 2])
    chosen["same_order"] = all(row["same_order"] for row in rows)
    chosen["repetitions"] = len(rows)
    chosen["messages_per_s_range"] = [ordered[0]["messages_per_s"], ordered[-1]["messages_per_s"]]
    return chosen


def cells(options: argparse.Namespace, nodes: int) -> Iterator[tuple[int, str, list[int]]]:
    """(size, name of the senders, senders)"""
    for senders in options.senders:
        for size in options.sizes:
            yield size, senders, [1] if senders == "one" else list(range(1, nodes + 1))


def throughput(options: argparse.Namespace) -> Iterator[Row]:
    """Ordered multicast as fast as it goes."""
    for nodes in options.nodes:
        found: dict[tuple[int, str], Row] = {}
        for size, senders, who in cells(options, nodes):
            with Network(nodes) as network:
                cluster = Cluster(network, settings=FLOOD_SETTINGS, program="tools.bench.ring_flood_node")
                cluster.form()
                time.sleep(0.3)
                rows, thrown_away = undisturbed(cluster, size, who, options)
            row = {**middle(rows), "thrown_away": thrown_away}
            found[size, senders] = row
            yield {"part": "throughput", "of": "rainlb", "nodes": nodes, "senders": senders, "size": size, **row}
        if options.versus:
            yield from corosync_throughput(options, nodes, found)


def corosync_throughput(options: argparse.Namespace, nodes: int, ours: dict[tuple[int, str], Row]) -> Iterator[Row]:
    """The same cells, with its real-time priority and without."""
    best: dict[tuple[int, str], float] = {}
    for realtime in (True, False):
        name = "corosync" if realtime else "corosync without real-time priority"
        for size, senders, who in cells(options, nodes):
            head = {"part": "throughput", "of": name, "nodes": nodes, "senders": senders, "size": size}
            try:
                row = corosync_cell(options, nodes, size, len(who), realtime)
            except CorosyncFailed as error:
                yield {**head, "failed": str(error)}
                continue
            best[size, senders] = max(best.get((size, senders), 0), row["messages_per_s"])
            yield {**head, **row}
    for (size, senders), rate in best.items():
        ratio = round(ours[size, senders]["messages_per_s"] / rate, 2)
        head = {"part": "throughput", "of": "ratio", "nodes": nodes, "senders": senders, "size": size}
        yield {**head, "rainlb_over_corosync": ratio, "target": "> 1", "met": ratio > 1}


def corosync_cell(options: argparse.Namespace, nodes: int, size: int, senders: int, realtime: bool) -> Row:
    """One of its cells, on a cluster of its own: a flood can make it lose members."""
    with Network(nodes) as network:
        corosync = Corosync(network, realtime=realtime)
        try:
            corosync.form()
            rows = []
            for _ in range(options.repetitions):
                cpu, machine = cpu_seconds(corosync.pids()), machine_seconds()
                results = corosync.clients("flood", nodes, senders, size, options.seconds, timeout=FLOOD_GRACE_S)
                used, busy = cpu_seconds(corosync.pids()) - cpu, machine_seconds() - machine
                rows.append(flood_row(results, size, used, busy))
            return middle(rows)
        finally:
            corosync.stop()
