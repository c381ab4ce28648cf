# SPDX-License-Identifier: Apache-2.0
"""The simulator as a test: seeds that once failed, a replay that is exact, and a product broken on purpose."""

from __future__ import annotations

import pytest

from sync.config import Mode
from tests.sim.growth import measure, turn_model
from tests.sim.mutations import MUTATIONS, broken
from tests.sim.runner import failed_seeds, run_seed
from tests.sim.scenario import Scenario

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


def test_scenarios_cover_what_they_promise() -> None:
    scenarios = [Scenario.from_seed(seed) for seed in range(1, 400)]
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
    ):
        with_fault = sum(bool(getattr(scenario, fault)) for scenario in scenarios)
        assert 20 < with_fault < 380, f"{fault} in {with_fault} of {len(scenarios)}"


@pytest.mark.parametrize("name", MUTATIONS)
def test_broken_product_is_caught(name: str) -> None:
    with broken(name):
        for seed in (MUTATIONS[name][1], *range(1, SEEDS_PER_BREAK)):
            if run_seed(seed).failure:
                return
    pytest.fail(f"'{name}' survived {SEEDS_PER_BREAK} seeds")


@pytest.mark.parametrize("nodes", [2, 8, 32])
def test_growth_with_the_ring_follows_its_formula(nodes: int) -> None:
    growth = measure(nodes)
    assert growth.turn_ms == pytest.approx(turn_model(nodes), rel=0.1)
    assert growth.detection_ms <= growth.detection_bound_ms
