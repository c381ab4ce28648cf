# SPDX-License-Identifier: Apache-2.0
"""Work that comes round: sweeping connections, seeing that the packet path is in place, measuring the event loop."""

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from ebpf.loader import LoaderError
from lb.engine.packet_path import attach_path, lost_interfaces
from lb.engine.sweeper import Census, corrected_loads, sweep
from lb.events import Event
from lb.metrics import Registry

if TYPE_CHECKING:
    from lb.daemon import Daemon

LAG_PROBE_SECONDS = 0.2
LAG_WINDOW = 50
FULL_CHECK_SECONDS = 1.0
PATH_CHECK_SECONDS = 2.0
log = logging.getLogger("lb.maintenance")


class LoopLag:
    """How late the event loop runs what is due: the worst of the last ten seconds, and a histogram."""

    def __init__(self, metrics: Registry) -> None:
        self._recent: deque[float] = deque(maxlen=LAG_WINDOW)
        self._histogram = metrics.histogram("loop_lag_seconds", "Delay of the event loop of lbd.")

    @property
    def worst_s(self) -> float:
        return max(self._recent, default=0.0)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PROBE_SECONDS
            await asyncio.sleep(LAG_PROBE_SECONDS)
            late = max(0.0, loop.time() - due)
            self._recent.append(late)
            self._histogram.observe(late)


class Sweeps:
    """Expires connections every sweep interval and keeps counts of connections honest."""

    name = "sweeper"

    def __init__(self, daemon: "Daemon") -> None:
        self.last = Census()
        self._daemon = daemon
        self._expired = daemon.metrics.counter("connections_expired_total", "Connections removed after silence.")
        self._seconds = daemon.metrics.histogram("sweep_seconds", "Duration of a sweep over the connection maps.")

    async def start(self) -> None:
        self._daemon.keep(self._sweep_for_ever, "sweeper")
        self._daemon.keep(self._watch_limits, "connection limits")

    async def stop(self, planned: bool) -> None:
        """The background tasks end with the daemon."""

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._daemon.node.engine.sweep_interval_ms / 1000)
            self.last = await asyncio.to_thread(self._sweep)
            self._expired.add(self.last.expired)
            self._seconds.observe(self.last.seconds)

    def _sweep(self) -> Census:
        engine = self._daemon.engine
        timeouts = self._daemon.store.current.timeouts
        maps, node = (engine.maps.connections, engine.maps.half_open), self._daemon.node.node.id
        census = sweep(maps, timeouts, int(time.monotonic()), node)
        counted = self._counted()
        if counted:
            engine.maps.target_load.update(*corrected_loads(census, counted))
        engine.clear_marks(census.oldest())
        return census

    def _counted(self) -> list[int]:
        config = self._daemon.store.current
        return [
            backend.id
            for service in config.services
            for backend in service.backends
            if service.scheduler == "wlc" or backend.connections_max
        ]

    async def _watch_limits(self) -> None:
        while True:
            await asyncio.sleep(FULL_CHECK_SECONDS)
            limits = {
                backend.id: backend.connections_max
                for service in self._daemon.store.current.services
                for backend in service.backends
                if backend.connections_max
            }
            full = await asyncio.to_thread(self._full, limits) if limits else frozenset()
            if full != self._daemon.engine.facts.full:
                self._daemon.driver.request(full=full)

    def _full(self, limits: dict[int, int]) -> frozenset[int]:
        loads = self._daemon.engine.maps.target_load
        found = {target: loads.get(target) for target in limits}
        return frozenset(t for t, load in found.items() if load is not None and int(load["active"]) >= limits[t])


class PathWatch:
    """Sees that the program stays on the interfaces, and puts it back where it was lost."""

    name = "packet path"

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._refusal = ""

    async def start(self) -> None:
        self._daemon.keep(self._watch, self.name)

    async def stop(self, planned: bool) -> None:
        """The background task ends with the daemon."""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PATH_CHECK_SECONDS)
            lost = await asyncio.to_thread(lost_interfaces, self._daemon.attached)
            if lost:
                await self._put_back(", ".join(lost))

    async def _put_back(self, names: str) -> None:
        try:
            self._daemon.attached = await asyncio.to_thread(attach_path, self._daemon.node)
        except LoaderError as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                self._report("error", f"the packet path is gone from {names} and cannot be put back: {error}", names)
            return
        self._refusal = ""
        self._report(
            "warning", f"the packet path was gone from {names} (taken off, or the interface made anew): put back", names
        )

    def _report(self, severity: str, message: str, names: str) -> None:
        self._daemon.report(Event("engine.lost", message, subject=names, severity=severity))
