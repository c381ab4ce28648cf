# SPDX-License-Identifier: Apache-2.0
"""Keeps the packet path's steering what the cluster's state says, without the event loop waiting for the kernel."""

import asyncio
import contextlib
import logging
from concurrent.futures import Executor

from ebpf.layout import Setting
from lb.cluster.steering import Peering, SteeringWriter
from lb.engine.packet_engine import PacketEngine

RETRY_S = 0.2
log = logging.getLogger("lb.cluster")


class SteeringTask:
    """`want` is what to steer by from now on; `run` is a task for as long as the daemon lives."""

    def __init__(self, engine: PacketEngine, workers: Executor) -> None:
        self._engine = engine
        self._workers = workers
        self._writer = SteeringWriter(engine.maps)
        self._wanted: Peering | None = None
        self._change = asyncio.Event()
        self._preparing: asyncio.Future[None] | None = None

    def want(self, wanted: Peering) -> None:
        """Members and ways at once, the table a moment later: the event loop must not wait for the kernel."""
        if wanted != self._wanted:
            self._wanted = wanted
            with contextlib.suppress(OSError):
                self._writer.write_ways(wanted)
            self._change.set()

    async def run(self) -> None:
        """Write what is wanted, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._change.wait()
            self._change.clear()
            assert self._wanted is not None
            try:
                await loop.run_in_executor(self._workers, self._put, self._wanted)
            except OSError as error:
                log.error("steering is not in the packet path: %s", error)
                await asyncio.sleep(RETRY_S)
                self._change.set()
            else:
                # Beside it: the next change must find a free worker.
                if self._preparing is None or self._preparing.done():
                    self._preparing = loop.run_in_executor(self._workers, self._prepare)

    def _put(self, wanted: Peering) -> None:
        self._writer.write(wanted)
        # Alone as well: answers of connections made through a gateway that is gone are then known for what they are.
        self._engine.set_setting(Setting.STEERING, bool(wanted.sharing))

    def _prepare(self) -> None:
        prepared: Peering | None = None
        while prepared is not self._wanted:
            prepared = self._wanted
            assert prepared is not None
            self._writer.prepare(prepared)
