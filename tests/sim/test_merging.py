# SPDX-License-Identifier: Apache-2.0
"""Whose shared data goes on when the parts of a divided cluster meet again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import pytest

from sync.shared import Operation, SharedData
from tests.sim.cluster import Cluster
from tests.sim.convergence import unsettled
from tests.sim.instance import Instance
from tests.sim.scenario import Scenario

SEEDS = 4
LIMIT_S = 10.0
SETTLED_S = 0.05
KEY = "whose"


class Part(NamedTuple):
    """One side of a cut: what its members say and do while they are apart. Before it, the state was in use."""

    members: tuple[int, ...]
    in_use: bool = False
    growth: float = 1.0
    """By so much its history grows, as a multiple of what it was at the cut."""
    from_scratch: bool = False
    """All its processes were restarted behind the cut: nothing is left of what was before."""


MEETINGS: list[tuple[str, list[Part]]] = [
    ("two keep theirs against one", [Part((1, 2)), Part((3,))]),
    ("also when the one has the lowest id", [Part((2, 3)), Part((1,))]),
    ("also when the one has done more, over a power of two", [Part((1, 2)), Part((3,), growth=1.9)]),
    ("two serve, one is out of service", [Part((1, 2), in_use=True), Part((3,))]),
    ("also when that one has done far more", [Part((1, 2), in_use=True), Part((3,), growth=9)]),
    ("one serves, two are out of service", [Part((1,), in_use=True), Part((2, 3), growth=9)]),
    ("all serve: two against one", [Part((1, 2), in_use=True), Part((3,), in_use=True, growth=1.9)]),
    ("all serve: of equals the higher id", [Part((2,), in_use=True), Part((1,), in_use=True, growth=1.9)]),
    ("one with a history, two that know nothing", [Part((1,)), Part((2, 3), from_scratch=True)]),
    ("also when all serve", [Part((1,), in_use=True), Part((2, 3), in_use=True, from_scratch=True)]),
    ("three parts", [Part((1, 2), in_use=True), Part((3, 4, 5), growth=9), Part((6,), in_use=True, growth=1.9)]),
]
"""A sentence, and the parts: the first one's state goes on."""


@pytest.mark.parametrize("parts", [row[1] for row in MEETINGS], ids=[row[0] for row in MEETINGS])
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_the_state_that_goes_on(seed: int, parts: list[Part]) -> None:
    cluster = _whole_cluster(seed, sum(len(part.members) for part in parts))
    rng = cluster.rng
    # Somewhere between two powers of two, so that growing by less than another doubling may pass the next one.
    _write(cluster, 1, rng.randint(60, 120))
    for instance in cluster.living:
        _shared(instance).set_in_use(True)
    _divide(cluster, parts)
    for part in parts:
        _live_apart(cluster, part)
    _run(cluster, rng.uniform(0.0, 0.3))
    cluster.network.cut.clear()
    _wait(cluster, lambda: unsettled(cluster) is None, "one view of all")
    kept = {node: _value(cluster.instances[node]) for node in cluster.instances}
    assert set(kept.values()) == {_mark(parts[0])}, kept


def _whole_cluster(seed: int, nodes: int) -> Cluster:
    """All in one view, with shared data that nobody writes by himself."""
    cluster = Cluster(replace(Scenario.calm(seed, nodes, 0.2), shared_rate=1e-9, restart_ms=1.0))
    cluster.healed = True
    cluster.network.heal()
    _wait(cluster, lambda: unsettled(cluster) is None, "one view of all")
    return cluster


def _divide(cluster: Cluster, parts: list[Part]) -> None:
    side = {node: index for index, part in enumerate(parts) for node in part.members}
    cluster.network.cut |= {(a, b, 0) for a in side for b in side if side[a] != side[b]}
    _wait(cluster, lambda: all(_together(cluster, part) for part in parts), "a view of each part")


def _live_apart(cluster: Cluster, part: Part) -> None:
    if part.from_scratch:
        for node in part.members:
            cluster.die(cluster.instances[node])
        _wait(cluster, lambda: _together(cluster, part), "a view of those that were restarted")
    for node in part.members:
        _shared(cluster.instances[node]).set_in_use(part.in_use)
    first = part.members[0]
    clock = _shared(cluster.instances[first]).replica.clock
    _write(cluster, first, int(clock * (part.growth - 1)), _mark(part))


def _mark(part: Part) -> bytes:
    return bytes(part.members)


def _shared(instance: Instance) -> SharedData:
    assert instance.shared is not None
    return instance.shared.shared


def _value(instance: Instance) -> bytes | None:
    item = _shared(instance).replica.items.get(KEY)
    return None if item is None else bytes(item.value)


def _write(cluster: Cluster, node: int, times: int, value: bytes = b"") -> None:
    """Write the item so often, one after the other."""
    instance = cluster.instances[node]
    for _ in range(max(1, times)):
        _shared(instance).write(cluster.local_time(instance), [(Operation.SET, KEY, value)])
        cluster.drain_shared(instance)
    _wait(cluster, lambda: not len(_shared(instance).requests), "an outcome of each write")


def _together(cluster: Cluster, part: Part) -> bool:
    """Are the members of this part in one view of their own, with equal and complete copies?"""
    if not set(part.members) <= cluster.instances.keys():
        return False
    instances = [cluster.instances[node] for node in part.members]
    views = {instance.node.view for instance in instances}
    view = next(iter(views))
    if len(views) > 1 or view is None or set(view.members) != set(part.members):
        return False
    copies = [_shared(instance) for instance in instances]
    return all(copy.complete for copy in copies) and all(a.digest() == b.digest() for a, b in pairwise(copies))


def _run(cluster: Cluster, seconds: float) -> None:
    end = cluster.now + seconds
    while cluster.now < end:
        cluster.advance()


def _wait(cluster: Cluster, reached: Callable[[], bool], what: str) -> None:
    """Until this has held for a moment."""
    end, since = cluster.now + LIMIT_S, cluster.now
    while cluster.now - since < SETTLED_S:
        cluster.advance()
        if not reached():
            since = cluster.now
        assert cluster.now < end, f"seed {cluster.scenario.seed}: no {what} within {LIMIT_S:g} s"
