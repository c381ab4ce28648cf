# SPDX-License-Identifier: Apache-2.0
"""Nodes at the edge of the ring: they multicast without being members, and eligible membership changes under way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync.events import Eligible, Multicast, Order
from tests.sim.checkers import RELAYED_LANE, WORKLOAD_CHANNEL

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.instance import Instance

SPREAD_S = 0.05
"""An operator's change reaches the nodes within this time."""


def relay(cluster: Cluster) -> None:
    """A node that is out of the ring, or any if all are in it, sends one message through another."""
    rng = cluster.rng
    outside = [i for i in cluster.living if i.absent or i.ring.joining] or cluster.living
    if not outside or len(cluster.clocks) < 2:
        return
    instance = rng.choice(outside)
    via = rng.choice([node for node in cluster.clocks if node != instance.identity[0]])
    payload = f"{cluster.next_message()} {instance.incarnation} {RELAYED_LANE} relayed".encode()
    cluster.checkers.sent.add(payload)
    tag = cluster.next_tag()
    # Delivered at members; the sender only learns that it was.
    instance.open_tags[tag] = []
    order = rng.choice((Order.AGREED, Order.SAFE))
    cluster.step(instance, Multicast(tag, WORKLOAD_CHANNEL, [payload], order, via=via))


def strike_off(cluster: Cluster) -> None:
    """One node loses its eligibility at the others, at each a little later; it gets it back after a while."""
    rng = cluster.rng
    struck = rng.choice(sorted(cluster.clocks))
    if cluster.now < cluster.eligible_from:
        cluster.checkers.exclusive.eligible_alike = False
    back = cluster.now + SPREAD_S + cluster.scenario.fault_ms / 1000 * rng.uniform(0.3, 2)
    cluster.eligible_from = back + SPREAD_S
    cluster.note(f"{struck} is struck off")
    for instance in cluster.living:
        if instance.identity[0] != struck:
            cluster.at(cluster.now + rng.random() * SPREAD_S, "eligible", (instance, struck))
            cluster.at(back + rng.random() * SPREAD_S, "eligible", (instance, None))


def set_eligible(cluster: Cluster, instance: Instance, without: int | None) -> None:
    """Tell this node who is eligible; all, once the cluster is healed."""
    if without is not None and cluster.healed:
        return
    peers = {node: cluster.paths(node) for node in cluster.clocks if node not in (instance.identity[0], without)}
    cluster.step(instance, Eligible(peers))
