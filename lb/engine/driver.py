# SPDX-License-Identifier: Apache-2.0
"""Brings changes from the event loop to the packet engine, which works in a thread.

What arrives while the engine is busy is merged, so that a hundred backends that die together cost two updates, not a
hundred.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from lb.configuration.model import ClusterConfig
from lb.engine.packet_engine import EngineError, PacketEngine
from lb.process.memory import give_back

RETRY_SECONDS = 5
log = logging.getLogger("lb.engine")


class EngineDriver:
    """`request` takes changes, `settled` waits until they are in the maps. `failed` is told why they are not.

    What fails is tried again: the configuration is decided, and the kernel has to follow.
    """

    def __init__(self, engine: PacketEngine, failed: Callable[[str], None]) -> None:
        self.updates = 0
        self.failures = 0
        self._engine = engine
        self._failed = failed
        self._config: ClusterConfig | None = None
        self._facts: dict[str, Any] = {}
        self._requested = 0
        self._tried = 0
        self._work = asyncio.Event()
        self._progress = asyncio.Condition()
        self._error: EngineError | None = None
        self._task: asyncio.Task[None] | None = None

    def request(self, config: ClusterConfig | None = None, **facts: Any) -> None:
        """`facts` are fields of `lb.engine_plan.Facts`; a later value replaces one that waits."""
        self._config = config or self._config
        self._facts |= facts
        self._requested += 1
        self._work.set()

    async def settled(self) -> None:
        """Returns once everything requested so far is in the maps. Raises EngineError if that did not work."""
        wanted = self._requested
        async with self._progress:
            await self._progress.wait_for(lambda: self._tried >= wanted)
        if self._error is not None:
            raise self._error

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="engine")

    async def stop(self) -> None:
        """Finishes what was requested, or has tried to."""
        if self._task is not None:
            with contextlib.suppress(EngineError):
                await self.settled()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if self._error else None):
                    await self._work.wait()
            self._work.clear()
            trying, config, facts = self._requested, self._config, self._facts
            self._config, self._facts = None, {}
            try:
                await asyncio.to_thread(self._update, config, facts)
            except Exception as error:
                self._keep(config, facts)
                self._fail(error)
            else:
                self.updates += 1
                self._error = None
            self._tried = trying
            async with self._progress:
                self._progress.notify_all()

    def _update(self, config: ClusterConfig | None, facts: dict[str, Any]) -> None:
        self._engine.update(config, **facts)
        give_back()

    def _keep(self, config: ClusterConfig | None, facts: dict[str, Any]) -> None:
        """What has just failed is requested again, unless something newer is."""
        self._config = self._config or config
        self._facts = facts | self._facts

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        is_known = isinstance(error, EngineError)
        failure = error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}")
        if self._error is None or str(self._error) != str(failure):
            # Not again for every try.
            log.error("%s; it is tried again every %d s", failure, RETRY_SECONDS, exc_info=None if is_known else error)
            self._failed(str(failure))
        self._error = failure
