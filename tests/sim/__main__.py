# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.sim --seeds N``: run the ring under N seeds; ``--seed S --trace`` replays one with its timeline."""

from __future__ import annotations

import argparse
import os
import sys

from tests.sim.runner import STEPS, Result, failed_seeds, run_seed, run_seeds
from tests.sim.scenario import CARRIERS_FROM, Scenario


def report(result: Result, steps: int, lines: int) -> None:
    print(f"seed {result.seed}: {Scenario.from_seed(result.seed)}")
    for line in result.timeline[-lines:]:
        print(line)
    print(f"FAILED {result.failure}\nreplay: python -m tests.sim --seed {result.seed} --steps {steps} --trace")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds, after those that ever failed")
    parser.add_argument("--first", type=int, default=CARRIERS_FROM, help="the first of them")
    parser.add_argument("--seed", type=int, help="run this one only")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the safety phase per seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=int, default=1, help="stop after so many failures")
    parser.add_argument("--trace", action="store_true", help="print the whole timeline")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        result = run_seed(arguments.seed, arguments.steps, trace=arguments.trace)
        if arguments.trace and not result.failure:
            print("\n".join(result.timeline))
        if result.failure:
            report(result, arguments.steps, len(result.timeline))
        else:
            print(
                f"seed {result.seed}: passed, {result.steps} steps, {result.views} views, {result.delivered} deliveries"
            )
        return bool(result.failure)
    seeds = (*failed_seeds(), *range(arguments.first, arguments.first + arguments.seeds))
    summary = run_seeds(seeds, jobs=arguments.jobs, steps=arguments.steps, failures_max=arguments.failures)
    for result in summary.failures:
        report(result, arguments.steps, 30)
    print(
        f"{summary.seeds} seeds, {summary.steps} steps, {summary.views} views, {summary.delivered} deliveries "
        f"in {summary.seconds:.1f} s; {len(summary.failures)} failed"
    )
    return bool(summary.failures)


if __name__ == "__main__":
    sys.exit(main())
