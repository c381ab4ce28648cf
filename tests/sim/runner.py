# SPDX-License-Identifier: Apache-2.0
"""Runs seeds, one or many, on several processes, and reports the first that breaks a rule."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.sim.cluster import Cluster
from tests.sim.scenario import Scenario
from tests.sim.violation import Violation

STEPS = 2000
FAILED_SEEDS = Path(__file__).with_name("failed_seeds.txt")


class Result(NamedTuple):
    seed: int
    failure: str
    """Empty: passed."""
    rule: str
    steps: int
    views: int
    delivered: int
    timeline: list[str]


def run_seed(seed: int, steps: int = STEPS, *, trace: bool = False) -> Result:
    """One run of the product under this seed's faults."""
    cluster = Cluster(Scenario.from_seed(seed), trace=trace)
    failure = rule = ""
    try:
        cluster.run(steps)
    except Violation as violation:
        failure, rule = str(violation), violation.rule
    except Exception:
        failure, rule = traceback.format_exc(), "no exception"
    checkers = cluster.checkers
    timeline = list(cluster.timeline) if failure or trace else []
    return Result(seed, failure, rule, cluster.steps, checkers.views, checkers.delivered, timeline)


def failed_seeds() -> list[int]:
    """Every seed that ever failed and was mended; they are run always."""
    lines = FAILED_SEEDS.read_text().splitlines()
    return [int(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


class Summary(NamedTuple):
    seeds: int
    steps: int
    views: int
    delivered: int
    seconds: float
    failures: list[Result]


def run_seeds(seeds: Iterable[int], *, jobs: int, steps: int, failures_max: int = 1) -> Summary:
    """Stops after ``failures_max`` failures."""
    begin = time.monotonic()
    ran = total = views = delivered = 0
    failures: list[Result] = []
    with multiprocessing.Pool(jobs) as pool:
        for result in pool.imap_unordered(_Job(steps), seeds, chunksize=4):
            ran += 1
            total += result.steps
            views += result.views
            delivered += result.delivered
            if result.failure:
                failures.append(result)
                if len(failures) >= failures_max:
                    break
    return Summary(ran, total, views, delivered, time.monotonic() - begin, failures)


class _Job:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, seed: int) -> Result:
        return run_seed(seed, self.steps)
