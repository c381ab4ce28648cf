# SPDX-License-Identifier: Apache-2.0
"""The simulator as a test: seeds that once failed, a replay that is exact, and a product broken on purpose."""

from __future__ import annotations

from itertools import pairwise
from unittest.mock import patch

import pytest

from sync.config import Mode
from sync.events import Deliver, Order, Reason
from sync.ring.circulation import Circulation
from sync.transport.session import Session
from tests.sim.cluster import Cluster
from tests.sim.convergence import converge
from tests.sim.detection import Death
from tests.sim.detection import table as detection_times
from tests.sim.growth import measure, turn_model
from tests.sim.instance import Instance
from tests.sim.mutations import MUTATIONS, broken
from tests.sim.runner import failed_seeds, run_seed
from tests.sim.scenario import CARRIERS_FROM, Scenario

SEEDS_PER_BREAK = 60


@pytest.mark.parametrize("seed", failed_seeds())
def test_seed_that_once_failed(seed: int) -> None:
    result = run_seed(seed)
    assert not result.failure, f"{result.failure}\nreplay: python -m tests.sim --seed {seed} --trace"


def test_a_seed_replays_exactly() -> None:
    first, second = run_seed(77, trace=True), run_seed(77, trace=True)
    assert first == second
    assert first.steps == run_seed(77).steps, "tracing must not change a run"
    assert first.views > 1
    assert first.delivered > 100


@pytest.mark.parametrize("seed", [3, 8, 100_000, 200_026])
def test_quiet_turns_leave_no_trace(seed: int) -> None:
    """What a node does with an idle token in the short way is what it does in the long one."""
    taken = 0
    whole = Circulation.accept_quietly

    def counted(self: Circulation, now: float, data: bytes) -> bool:
        nonlocal taken
        took = whole(self, now, data)
        taken += took
        return took

    with patch.object(Circulation, "accept_quietly", counted):
        short = run_seed(seed, trace=True)
    with patch.object(Circulation, "accept_quietly", lambda *_: False):
        long = run_seed(seed, trace=True)
    assert short == long
    assert taken > 20


def test_scenarios_cover_what_they_promise() -> None:
    scenarios = [Scenario.from_seed(CARRIERS_FROM + seed) for seed in range(400)]
    assert {scenario.nodes for scenario in scenarios} == set(range(2, 10))
    assert {scenario.mode for scenario in scenarios} == set(Mode)
    for fault in (
        "loss",
        "duplication",
        "reordering",
        "corruption",
        "crash_rate",
        "pause_rate",
        "partition_rate",
        "one_way_rate",
        "link_rate",
        "jump_rate",
        "leave_rate",
        "drift",
        "remember",
        "large",
        "shared_rate",
        "relay_rate",
        "strike_rate",
        "cable_rate",
        "hang_rate",
        "lock_rate",
        "carrier_noticed",
    ):
        with_fault = sum(bool(getattr(scenario, fault)) for scenario in scenarios)
        assert 20 < with_fault < 380, f"{fault} in {with_fault} of {len(scenarios)}"


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_product_is_caught(name: str) -> None:
    with broken(name):
        first = MUTATIONS[name][1]
        for seed in range(first, first + SEEDS_PER_BREAK):
            if run_seed(seed).failure:
                return
    pytest.fail(f"'{name}' survived {SEEDS_PER_BREAK} seeds")


def test_order_across_false_exclusions_under_load() -> None:
    """One node floods, another is excluded again and again because it stalls: those that stay deliver all in one
    order, the excluded one delivers whole runs of it, one for each time it is let in."""
    cluster = Cluster(Scenario.calm(5, 3, 0.1))
    delivered: dict[int, list[tuple[int, bytes]]] = {1: [], 2: [], 3: []}
    judge = cluster.checkers.deliver

    def record(instance: Instance, batch: Deliver, living: list[Instance]) -> None:
        judge(instance, batch, living)
        delivered[instance.identity[0]] += [(batch.position + i, bytes(p)) for i, p in enumerate(batch.payloads())]

    cluster.checkers.deliver = record  # type: ignore[method-assign]
    for number in range(6):
        end = cluster.now + 0.3
        stalls_at = end - 0.15
        while cluster.now < end:
            sender, sleeper = cluster.instances.get(1), cluster.instances.get(3)
            if sender is not None and not sender.ring.outbox:
                texts = [
                    f"{cluster.next_message()} {sender.incarnation} 0 ".encode().ljust(64, b".") for _ in range(20)
                ]
                cluster.multicast(sender, texts, Order.AGREED)
            if sleeper is not None and stalls_at < cluster.now:
                sleeper.paused_until = cluster.now + 0.06 + 0.004 * number
                cluster.at(sleeper.paused_until, "resume", sleeper)
                stalls_at = end
            cluster.advance()
    cluster.heal()
    converge(cluster)
    exclusions = sum(cluster.instances[node].ring.counters[Reason.PEER_UNREACHABLE] for node in (1, 2))
    assert exclusions >= 3, "the stalls were meant to be too long"
    assert len(delivered[1]) > 2000
    known = min(len(delivered[1]), len(delivered[2]))
    assert delivered[1][-known:] == delivered[2][-known:], "1 formed the ring, 2 came a little later"
    place = {entry: index for index, entry in enumerate(delivered[1])}
    steps = [place[after] - place[before] for before, after in pairwise(delivered[3])]
    assert min(steps) > 0
    assert sum(step > 1 for step in steps) <= exclusions, "a gap for each exclusion, none besides"


@pytest.mark.parametrize("death", Death)
def test_a_death_is_noticed_in_time_and_takes_nobody_alive_along(death: Death) -> None:
    times = detection_times(death, 60 if death in (Death.LOADED, Death.MENDED) else 200)
    assert times[-1] <= 150
    if death.victims == 1:
        assert times[len(times) // 2] <= 60


def test_a_neighbour_asked_for_in_vain_would_cost_living_nodes_their_place() -> None:
    """The simulated network is as forgetful as a real one: unless it is told, a mended way stays closed."""
    with patch.object(Session, "seek", lambda self, now: None), pytest.raises(AssertionError, match="excluded"):
        detection_times(Death.MENDED, 60)


@pytest.mark.parametrize("nodes", [2, 8, 32])
def test_growth_with_the_ring_follows_its_formula(nodes: int) -> None:
    growth = measure(nodes)
    assert growth.turn_ms == pytest.approx(turn_model(nodes), rel=0.1)
    assert growth.detection_ms <= growth.detection_bound_ms
