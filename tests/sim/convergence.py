# SPDX-License-Identifier: Apache-2.0
"""What a cluster must come to once nothing disturbs it any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync.events import Order
from tests.sim.violation import Violation

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

SETTLE_BOUND_S = 20.0
"""After healing, everything must have converged within this simulated time."""


def converge(cluster: Cluster) -> None:
    """Go on until all is settled and a message of every node has arrived everywhere. Raises Violation if too late."""
    limit = cluster.now + SETTLE_BOUND_S
    probed: set[object] = set()
    probes: list[bytes] = []
    check = cluster.steps
    while True:
        cluster.advance()
        if cluster.now > limit:
            raise Violation(
                "convergence",
                unsettled(cluster) or _missed(cluster, probes) or "nothing is missing, but it came too late",
            )
        if cluster.steps < check:
            continue
        check = cluster.steps + 20
        if unsettled(cluster) is not None:
            continue
        view = cluster.living[0].node.view
        if view in probed and _missed(cluster, probes) is None:
            break
        if view not in probed:
            probed.add(view)
            probes = _probe(cluster)
    _compare_digests(cluster)


def _probe(cluster: Cluster) -> list[bytes]:
    """Messages that everybody must deliver, one of each node."""
    probes = [f"{cluster.next_message()} {i.incarnation} 0 probe".encode() for i in cluster.living]
    for instance, probe in zip(cluster.living, probes, strict=True):
        cluster.multicast(instance, [probe], Order.SAFE)
    return probes


def _missed(cluster: Cluster, probes: list[bytes]) -> str | None:
    for instance in cluster.living:
        missed = [probe for probe in probes if probe not in cluster.checkers.record(instance).seen]
        if missed:
            return f"{instance.identity[0]} has not delivered {missed[0]!r}"
    return None


def unsettled(cluster: Cluster) -> str | None:
    """What is still missing to a settled cluster; None when nothing is."""
    if len(cluster.instances) < len(cluster.clocks):
        return f"nodes {sorted(set(cluster.clocks) - set(cluster.instances))} are not up"
    living = cluster.living
    away = [instance.identity[0] for instance in living if instance.absent]
    if away:
        return f"nodes {away} have not come back yet"
    views = {instance.node.view for instance in living}
    if len(views) != 1 or None in views:
        return f"different views: { {i.identity[0]: i.node.view and i.node.view[:2] for i in living} }"
    view = next(iter(views))
    current = {instance.identity for instance in living}
    if view is None or set(zip(view.members, view.incarnations, strict=True)) != current:
        return f"view {view} does not hold all nodes"
    open_tags = {i.identity[0]: list(i.open_tags)[:3] for i in living if i.open_tags}
    if open_tags:
        return f"requests without an outcome: {open_tags}"
    for instance in living:
        if instance.shared is not None and (missing := instance.shared.unsettled()) is not None:
            return f"shared data of {instance.identity[0]}: {missing}"
    digests = {i.identity[0]: i.shared.digest() for i in living if i.shared is not None}
    if len(set(digests.values())) > 1:
        return f"digests differ: {digests}"
    return None


def _compare_digests(cluster: Cluster) -> None:
    records = {i.identity[0]: cluster.checkers.record(i) for i in cluster.living}
    keys = {record.key for record in records.values()}
    digests = {record.digest for record in records.values()}
    if len(keys) == 1 and len(digests) != 1:
        counts = {node: record.count for node, record in records.items()}
        raise Violation("atomicity", f"after healing, delivered in the same view: {counts}")
