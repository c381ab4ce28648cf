# SPDX-License-Identifier: Apache-2.0
"""Work that goes on beside everything else, with a bound on how much and a word when it fails."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from lb.metrics import Registry

TASKS_MAX = 1024
KEEP_PAUSE_SECONDS = 1
log = logging.getLogger("lb")


class Background:
    """The daemon's background tasks; they end with it (`end`)."""

    def __init__(self, metrics: Registry) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures = metrics.counter("task_failures_total", "Background tasks that failed.", ["task"])

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Runs something on the running loop; its failure is logged."""
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            log.error("%s is not started: %d background tasks run already", name, len(self._tasks))
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        """Runs something without end: when it fails, that is logged and it begins anew."""
        self.spawn(self._keep(work, name), name)

    async def end(self) -> None:
        """Cancels all but the task that calls this, and waits for them."""
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        while True:
            try:
                await work()
            except Exception:
                self._failures.add(1, name)
                log.exception("%s failed; it begins anew in %d s", name, KEEP_PAUSE_SECONDS)
            await asyncio.sleep(KEEP_PAUSE_SECONDS)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())
