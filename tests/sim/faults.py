# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, one fault a function: processes die, stall or leave, clocks jump, ways close."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sync.config import Policy
from sync.events import CriticalResource, Leave, LinkLost
from tests.sim import outsiders

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.instance import Instance

Way = tuple[int, int, int]
"""(from node, to node, link)"""

CRASH_EFFECTS_MAX = 6
"""A process dies before it has carried out so many effects of a step."""


def crash(cluster: Cluster) -> None:
    if cluster.instances:
        cluster.rng.choice(cluster.living).crash_after = cluster.rng.randrange(CRASH_EFFECTS_MAX)


def pause(cluster: Cluster) -> None:
    if cluster.instances:
        _stall(cluster, cluster.rng.choice(cluster.living), cluster.scenario.pause_ms)


def hang(cluster: Cluster) -> None:
    """The node that has the lock, if there is one, stands still until its lease is over, or nearly so."""
    users = [i for i in cluster.living if i.shared is not None]
    holders = [i for i in users if i.shared is not None and i.shared.acting(cluster.local_time(i))]
    if users:
        _stall(cluster, cluster.rng.choice(holders or users), 2 * cluster.scenario.lock_lease_ms)


def _stall(cluster: Cluster, instance: Instance, ms: float) -> None:
    instance.paused_until = cluster.now + ms / 1000 * cluster.rng.uniform(0.2, 1.5)
    cluster.note(f"{instance.identity[0]} stalls for {(instance.paused_until - cluster.now) * 1000:.1f} ms")
    cluster.at(instance.paused_until, "resume", instance)


def partition(cluster: Cluster) -> None:
    side = {node for node in cluster.clocks if cluster.rng.random() < 0.5}
    ways = {
        (a, b, link)
        for a in cluster.clocks
        for b in cluster.clocks
        for link in range(cluster.scenario.links)
        if (a in side) != (b in side)
    }
    cut(cluster, ways, f"partition {sorted(side)} | {sorted(set(cluster.clocks) - side)}")


def one_way(cluster: Cluster) -> None:
    a, b = cluster.rng.sample(sorted(cluster.clocks), 2)
    cut(cluster, {(a, b, link) for link in range(cluster.scenario.links)}, f"{a} no longer reaches {b}")


def link(cluster: Cluster) -> None:
    a, b = cluster.rng.sample(sorted(cluster.clocks), 2)
    number = cluster.rng.randrange(cluster.scenario.links)
    cut(cluster, {(a, b, number), (b, a, number)}, f"link {number} between {a} and {b} is cut")


def cable(cluster: Cluster) -> None:
    """A node loses all it is plugged in with on one link; its neighbour entries go with the carrier."""
    node = cluster.rng.choice(sorted(cluster.clocks))
    number = cluster.rng.randrange(cluster.scenario.links)
    cut(cluster, cluster.network.pull(cluster.now, node, number), f"cable {number} of {node} is out")
    noticed = cluster.scenario.carrier_noticed
    if noticed and node in cluster.instances and cluster.rng.random() < noticed:
        cluster.note(f"{node} notices")
        cluster.step(cluster.instances[node], LinkLost(number))


def cut(cluster: Cluster, ways: set[Way], text: str) -> None:
    """Close these ways for a while."""
    cluster.note(text)
    cluster.network.cut |= ways
    cluster.at(cluster.now + cluster.scenario.fault_ms / 1000 * cluster.rng.uniform(0.3, 2), "mend", (ways, text))


def mend(cluster: Cluster, what: tuple[set[Way], str]) -> None:
    if not cluster.healed:
        cluster.note(f"mended: {what[1]}")
        cluster.network.cut -= what[0]


def jump(cluster: Cluster) -> None:
    node = cluster.rng.choice(sorted(cluster.clocks))
    low = -0.1 if cluster.scenario.jump_back else 0.0
    distance = cluster.rng.uniform(low, 0.1)
    cluster.clocks[node].offset += distance
    cluster.note(f"clock of {node} jumps by {distance * 1000:.1f} ms")
    if node in cluster.instances:
        cluster.arm(cluster.instances[node])


def leave(cluster: Cluster) -> None:
    if cluster.instances:
        instance = cluster.rng.choice(cluster.living)
        if not instance.absent:
            instance.absent = True
            instance.shut_out = cluster.scenario.policy is Policy.CRITICAL and cluster.rng.random() < 0.5
            cluster.note(f"{instance.identity[0]} is told to leave")
            cluster.step(instance, CriticalResource(False) if instance.shut_out else Leave())
            cluster.at(cluster.now + cluster.rng.uniform(0.01, 0.3), "rejoin", instance)


FAULTS: Mapping[str, Callable[[Cluster], None]] = {
    "crash": crash,
    "pause": pause,
    "partition": partition,
    "one_way": one_way,
    "link": link,
    "jump": jump,
    "leave": leave,
    "strike": outsiders.strike_off,
    "cable": cable,
    "hang": hang,
}
"""Kind -> what happens; the scenario's rate of the same name says how often."""
