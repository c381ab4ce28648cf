# SPDX-License-Identifier: Apache-2.0
"""How long a death goes unnoticed: ``python -m tests.sim.detection`` prints the table of docs/protocol.md.

Default settings, no loss, hops of 0.05 to 0.5 ms, 3 to 8 nodes, simulated time: from the last death to the moment at
which every survivor has committed the view of the survivors. A ring is killed off node by node, each time at a random
instant of an idle or a loaded turn. A living node that is excluded on the way is an error, however quickly it returns.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable
from enum import Enum
from typing import NamedTuple

from sync.events import Order
from sync.ring.membership import TokenState
from tests.sim.cluster import Cluster
from tests.sim.convergence import unsettled
from tests.sim.instance import Instance
from tests.sim.scenario import Scenario

LIMIT_S = 10.0


class Death(Enum):
    """Who dies, and when."""

    IDLE = "one node, idle ring"
    LOADED = "one node, loaded ring"
    HOLDER = "the node that has the token"
    TWO = "two nodes at once"
    SECOND = "a second one within 70 ms of the first"
    CALLER = "a second one that has just called 911"
    MENDED = "one node, just after another one's cable was mended"

    @property
    def victims(self) -> int:
        return 2 if self in (Death.TWO, Death.SECOND, Death.CALLER) else 1


class Detection(NamedTuple):
    seed: int
    left: int
    """Survivors."""
    ms: float


def detections(death: Death, seed: int) -> list[Detection]:
    """Deaths in one ring, until two nodes are left."""
    rng = random.Random(f"{death.name} {seed}")
    cluster = Cluster(Scenario.calm(seed, rng.randint(3, 8), rng.choice((0.05, 0.2, 0.5))))
    cluster.healed = True
    cluster.network.heal()
    _wait(cluster, lambda: unsettled(cluster) is None)
    found = []
    while len(cluster.instances) >= death.victims + 2:
        _pause(cluster, 0.04 + 0.06 * rng.random(), loaded=death is Death.LOADED)
        _PRELUDES.get(death, _at_once)(cluster, rng, death.victims)
        begin = cluster.now
        _wait(cluster, lambda: _agreed(cluster))
        found.append(Detection(seed, len(cluster.instances), (cluster.now - begin) * 1000))
    return found


def _pause(cluster: Cluster, seconds: float, *, loaded: bool) -> None:
    end = cluster.now + seconds
    while cluster.now < end:
        if loaded:
            for instance in cluster.living:
                if not instance.ring.outbox:
                    text = f"{cluster.next_message()} {instance.incarnation} 0 x"
                    cluster.multicast(instance, [text.encode()], Order.AGREED)
        cluster.advance()


def _at_once(cluster: Cluster, rng: random.Random, victims: int) -> None:
    for victim in rng.sample(cluster.living, victims):
        cluster.die(victim)


def _with_the_token(cluster: Cluster, rng: random.Random, victims: int) -> None:
    """It dies between taking the token in and sending anything."""
    victim = rng.choice(cluster.living)
    victim.crash_after = 0
    while victim in cluster.living:
        cluster.advance()


def _one_after_the_other(cluster: Cluster, rng: random.Random, victims: int) -> None:
    first, second = rng.sample(cluster.living, 2)
    cluster.die(first)
    _pause(cluster, 0.07 * rng.random(), loaded=False)
    cluster.die(second)


def _with_its_caller(cluster: Cluster, rng: random.Random, victims: int) -> None:
    """If nobody calls, because the token was not lost, the first death is the only one."""
    cluster.die(rng.choice(cluster.living))
    while not _agreed(cluster):
        starving = [i for i in cluster.living if i.ring.states.token is TokenState.STARVING]
        if starving:
            cluster.die(starving[0])
            return
        cluster.advance()


def _after_a_mended_cable(cluster: Cluster, rng: random.Random, victims: int) -> None:
    """The node that is back has asked for its neighbours in vain; nobody may have to wait until it asks again."""
    back, victim = rng.sample(cluster.living, 2)
    ways = cluster.network.pull(cluster.now, back.identity[0], 0)
    cluster.network.cut |= ways
    _pause(cluster, 0.3 + 1.2 * rng.random(), loaded=False)
    cluster.network.cut -= ways
    _wait(cluster, lambda: _whole(cluster))
    _pause(cluster, 0.1 * rng.random(), loaded=False)
    cluster.die(victim)


_PRELUDES: dict[Death, Callable[[Cluster, random.Random, int], None]] = {
    Death.HOLDER: _with_the_token,
    Death.SECOND: _one_after_the_other,
    Death.CALLER: _with_its_caller,
    Death.MENDED: _after_a_mended_cable,
}


def _identities(instances: Iterable[Instance]) -> set[tuple[int, int]]:
    return {instance.identity for instance in instances}


def _whole(cluster: Cluster) -> bool:
    """Are all living nodes in one view of just them?"""
    views = {instance.node.view for instance in cluster.living}
    view = next(iter(views))
    return len(views) == 1 and view is not None and set(view.members) == set(cluster.instances)


def _agreed(cluster: Cluster) -> bool:
    """Have all survivors one view of all survivors? Raises when one of them was shut out."""
    living = _identities(cluster.living)
    seen = []
    for instance in cluster.living:
        view = instance.node.view
        assert view is not None
        members = set(zip(view.members, view.incarnations, strict=True))
        if not living <= members:
            raise AssertionError(f"seed {cluster.scenario.seed}: living {living - members} excluded in {view}")
        seen.append(members == living)
    return all(seen)


def _wait(cluster: Cluster, reached: Callable[[], bool]) -> None:
    """Until this holds; looked at only when a view was committed, since nothing else can bring it about."""
    end = cluster.now + LIMIT_S
    views = -1
    while cluster.now < end:
        if cluster.checkers.views != views:
            views = cluster.checkers.views
            if reached():
                return
        cluster.advance()
    raise AssertionError(f"seed {cluster.scenario.seed}: no view of all in {LIMIT_S:g} s")


def table(death: Death, deaths: int) -> list[float]:
    """So many detection times in ms, sorted."""
    times: list[float] = []
    seed = 0
    while len(times) < deaths:
        seed += 1
        times += [detection.ms for detection in detections(death, seed)]
    return sorted(times[:deaths])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.detection", description=__doc__)
    parser.add_argument("--deaths", type=int, default=2000, help="of each kind")
    deaths = parser.parse_args().deaths
    print("| dies | p50 | p90 | p99 | max |\n|---|---|---|---|---|")
    for death in Death:
        times = table(death, deaths)
        p50, p90, p99 = (times[int(len(times) * part)] for part in (0.5, 0.9, 0.99))
        print(f"| {death.value} | {p50:.1f} ms | {p90:.1f} ms | {p99:.1f} ms | {times[-1]:.1f} ms |", flush=True)


if __name__ == "__main__":
    main()
