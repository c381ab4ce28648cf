# SPDX-License-Identifier: Apache-2.0
"""Expires connections, and watches the limits of backends."""

import asyncio
import time

from lb.engine.sweeper import Census, corrected_loads, sweep
from lb.gateway import Gateway

FULL_CHECK_SECONDS = 1.0


class Sweeps:
    """Expires connections every sweep interval and keeps counts of connections honest."""

    name = "sweeper"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._expired = gateway.metrics.counter("connections_expired_total", "Connections removed after silence.")
        self._seconds = gateway.metrics.histogram("sweep_seconds", "Duration of a sweep over the connection maps.")

    async def start(self) -> None:
        self._gateway.keep(self._sweep_for_ever, "sweeper")
        self._gateway.keep(self._watch_limits, "connection limits")

    async def stop(self, planned: bool) -> None:
        """The background tasks end with the daemon."""

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._gateway.node.engine.sweep_interval_ms / 1000)
            census = self._gateway.census = await asyncio.to_thread(self._sweep)
            self._expired.add(census.expired)
            self._seconds.observe(census.seconds)

    def _sweep(self) -> Census:
        engine = self._gateway.engine
        timeouts = self._gateway.store.current.timeouts
        maps, node = (engine.maps.connections, engine.maps.half_open), self._gateway.node.node.id
        census = sweep(maps, timeouts, int(time.monotonic()), node)
        counted = self._counted()
        if counted:
            engine.maps.target_load.update(*corrected_loads(census, counted))
        engine.clear_marks(census.oldest())
        return census

    def _counted(self) -> list[int]:
        config = self._gateway.store.current
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
                for service in self._gateway.store.current.services
                for backend in service.backends
                if backend.connections_max
            }
            full = await asyncio.to_thread(self._full, limits) if limits else frozenset()
            if full != self._gateway.engine.facts.full:
                self._gateway.driver.request(full=full)

    def _full(self, limits: dict[int, int]) -> frozenset[int]:
        loads = self._gateway.engine.maps.target_load
        found = {target: loads.get(target) for target in limits}
        return frozenset(t for t, load in found.items() if load is not None and int(load["active"]) >= limits[t])
