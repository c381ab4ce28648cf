# SPDX-License-Identifier: Apache-2.0
"""Who runs when: the priority of the ring's threads, and how late its loop wakes up."""

import contextlib
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from math import inf

AUTOMATIC = ("rr:2", "nice:-10", "other")
"""What "auto" tries. Not rr:1: the workers come below the ring."""
START_SECONDS_MAX = 30
LAG_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 500)


def set_scheduling(wish: str) -> None:
    """Set the calling thread's to "other", "nice:-10", "rr:5", or with "auto" to the best that is permitted.

    Without a real-time priority a busy neighbour on the machine can delay a hop of the token by tens of milliseconds.
    Child processes do not inherit it. Raises ValueError for anything else, PermissionError without the right to
    (never for "auto").
    """
    policy, _, level = wish.partition(":")
    if wish == "auto":
        for choice in AUTOMATIC:
            with contextlib.suppress(PermissionError):
                set_scheduling(choice)
                return
    elif policy == "rr":
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(int(level or 1)))
    elif policy == "nice":
        os.setpriority(os.PRIO_PROCESS, 0, int(level))
    elif wish != "other":
        raise ValueError(f'scheduling {wish!r} is not known: write "auto", "other", "nice:-10" or "rr:5"')


class Priority:
    """A thread's scheduling, to be put back when the ring no longer needs another."""

    def __init__(self) -> None:
        self._policy = os.sched_getscheduler(0)
        self._parameters = os.sched_getparam(0)
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)

    def restore(self) -> None:
        """Put it back, as far as that is permitted."""
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, self._policy, self._parameters)
            os.setpriority(os.PRIO_PROCESS, 0, self._nice)


def below(choice: str) -> str:
    """One real-time priority less, for what the loop may interrupt; anything else as it is."""
    policy, _, level = choice.partition(":")
    return f"rr:{max(1, int(level or 1) - 1)}" if policy == "rr" else choice


def worker_pool(wish: str, workers: int) -> ThreadPoolExecutor:
    """Threads for work beside a ring with this scheduling in the same process: real-time like it, one step below.

    An ordinary thread that is pushed off its core while it holds the interpreter's lock would hold up the ring for as
    long as it is off. One of the ring's own priority would hold up every ring on the machine for as long as its system
    calls take. (Where the ring got less than it wished for, so do the workers.)

    All threads are started here. A pool that starts them when work comes makes the submitter, the event loop, wait
    until the new thread has run for the first time, on a busy machine for a tenth of a second.
    """
    all_there = threading.Barrier(workers + 1)

    def begin() -> None:
        for choice in AUTOMATIC if wish == "auto" else (wish,):
            with contextlib.suppress(PermissionError):
                set_scheduling(below(choice))
                return

    pool = ThreadPoolExecutor(workers, thread_name_prefix="worker", initializer=begin)
    for _ in range(workers):
        pool.submit(all_there.wait, START_SECONDS_MAX)
    all_there.wait(START_SECONDS_MAX)
    return pool


class LoopLag:
    """How late timers fired: the worst, and how many within which bound."""

    def __init__(self) -> None:
        self.max_s = 0.0
        self._counts: Counter[float] = Counter()

    def add(self, lag_s: float) -> None:
        """One timer."""
        self.max_s = max(self.max_s, lag_s)
        self._counts[next((bound for bound in LAG_BOUNDS_MS if lag_s * 1000 <= bound), inf)] += 1

    def figures(self) -> dict[str, float]:
        """For stats()."""
        figures: dict[str, float] = {f"loop_lag_within_{b:g}_ms": n for b, n in self._counts.items() if b != inf}
        figures[f"loop_lag_above_{LAG_BOUNDS_MS[-1]}_ms"] = self._counts[inf]
        figures["loop_lag_max_ms"] = self.max_s * 1000
        return figures
