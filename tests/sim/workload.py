# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a simulated cluster are asked to do."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sync.events import Order
from tests.sim import outsiders
from tests.sim.shared import SharedWorkload

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster


def multicast(cluster: Cluster) -> None:
    """One message, or a burst, small or large, at any node."""
    rng, scenario = cluster.rng, cluster.scenario
    if not cluster.instances:
        return
    instance = rng.choice(cluster.living)
    bulk = rng.random() < 0.3
    count = rng.randrange(2, 40) if rng.random() < scenario.burst else 1
    size = rng.randrange(1500, 90_000) if rng.random() < scenario.large else rng.randrange(60)
    texts = [f"{cluster.next_message()} {instance.incarnation} {int(bulk)} " for _ in range(count)]
    payloads = [text.encode().ljust(size, b".") for text in texts]
    order = rng.choice((Order.AGREED, Order.SAFE))
    cluster.multicast(instance, payloads, order, bulk=bulk, urgent=rng.random() < 0.7)


def shared(cluster: Cluster) -> None:
    """One request to the shared data of any node."""
    _ask(cluster, SharedWorkload.act)


def lock(cluster: Cluster) -> None:
    """Any node takes its part in the struggle for the lock."""
    _ask(cluster, SharedWorkload.contend)


def _ask(cluster: Cluster, what: Callable[[SharedWorkload, float, random.Random], None]) -> None:
    users = [instance for instance in cluster.living if instance.shared is not None]
    if users:
        instance = cluster.rng.choice(users)
        assert instance.shared is not None
        what(instance.shared, cluster.local_time(instance), cluster.rng)
        cluster.drain_shared(instance)


WORKLOAD: Mapping[str, Callable[[Cluster], None]] = {
    "multicast": multicast,
    "shared": shared,
    "relay": outsiders.relay,
    "lock": lock,
}
"""Kind -> what happens; the scenario's rate of the same name says how often."""
