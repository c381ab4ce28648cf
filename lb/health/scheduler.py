# SPDX-License-Identifier: Apache-2.0
"""Repeats the checks of many backends without bursts, and tells which of them changed.

Every target has a task of its own that sleeps between tries; a semaphore bounds the tries under way, and how long
one waited for it is measured, so that an overloaded checker shows itself instead of calling backends dead.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lb.health.checks import CHECKS, Target
from lb.health.probes import Judge, Outcome, bounded

UNDER_WAY_MAX = 256
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Finding:
    """What this gateway now thinks of a backend; `latency_ms` is that of the last try, `since` Unix seconds."""

    backend_id: int
    alive: bool
    detail: str
    latency_ms: float
    since: float


class Scheduler:
    """Keeps one task per target. `on_change` is called with the first finding of a backend and with each change."""

    def __init__(self, on_change: Callable[[Finding], None], *, rng: random.Random | None = None) -> None:
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._free = asyncio.Semaphore(UNDER_WAY_MAX)
        self._targets: dict[int, Target] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._findings: dict[int, Finding] = {}
        self._judges: dict[int, Judge] = {}
        self._hurried: dict[int, asyncio.Event] = {}
        self.tries = 0
        self.suspicions = 0
        self.waited_ms_max = 0.0

    def set_targets(self, targets: Iterable[Target]) -> None:
        """Check exactly these from now on; those that did not change go on undisturbed, with what is known of them."""
        wanted = {target.backend_id: target for target in targets}
        for backend_id in [known for known, target in self._targets.items() if wanted.get(known) != target]:
            self._tasks.pop(backend_id).cancel()
            self._findings.pop(backend_id, None)
            del self._judges[backend_id], self._hurried[backend_id]
        for backend_id, target in wanted.items():
            if backend_id not in self._tasks:
                self._judges[backend_id] = Judge(target.check.rise, target.check.fall)
                self._hurried[backend_id] = asyncio.Event()
                self._tasks[backend_id] = asyncio.create_task(self._watch(target), name=f"check {target.name}")
        self._targets = wanted

    def suspect(self, backend_id: int, detail: str) -> None:
        """Something else than a check speaks against a backend: counted as a failed try, and the next comes at once.

        Nothing before the first try: signs alone condemn nobody.
        """
        if backend_id in self._findings:
            self.suspicions += 1
            self._observe(self._targets[backend_id], self._judges[backend_id], Outcome(False, detail), 0.0)
            self._hurried[backend_id].set()

    def targets(self) -> dict[int, Target]:
        """What is checked, by backend."""
        return dict(self._targets)

    def findings(self) -> list[Finding]:
        """All that is known now: sent again whenever lbd was away."""
        return list(self._findings.values())

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _watch(self, target: Target) -> None:
        judge, hurried = self._judges[target.backend_id], self._hurried[target.backend_id]
        interval_s = target.check.interval_ms / 1000
        # The first round is spread over a quarter of the interval: known soon, but not all in one instant.
        await asyncio.sleep(self._rng.random() * interval_s / 4)
        while True:
            began = time.monotonic()
            outcome, latency_ms = await self._try(target)
            self._observe(target, judge, outcome, latency_ms)
            pause = interval_s * (1 + JITTER * (2 * self._rng.random() - 1)) - (time.monotonic() - began)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause)):
                    await hurried.wait()
            hurried.clear()

    async def _try(self, target: Target) -> tuple[Outcome, float]:
        asked = time.monotonic()
        async with self._free:
            began = time.monotonic()
            self.waited_ms_max = max(self.waited_ms_max, (began - asked) * 1000)
            self.tries += 1
            outcome = await bounded(CHECKS[target.check.kind](target), target.check.timeout_ms)
            return outcome, (time.monotonic() - began) * 1000

    def _observe(self, target: Target, judge: Judge, outcome: Outcome, latency_ms: float) -> None:
        changed = judge.observe(outcome.good)
        before = self._findings.get(target.backend_id)
        since = time.time() if changed or before is None else before.since
        alive = bool(judge.healthy)
        finding = Finding(target.backend_id, alive, outcome.detail, round(latency_ms, 2), since)
        self._findings[target.backend_id] = finding
        if changed:
            self._on_change(finding)
