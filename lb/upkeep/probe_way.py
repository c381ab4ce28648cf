# SPDX-License-Identifier: Apache-2.0
"""Keeps the way of health checks to VIPs on single backends (ebpf/probe_path.c) in the kernel while one is needed."""

import asyncio

from ebpf import probe_path
from ebpf.loader import LoaderError
from lb.configuration.model import ClusterConfig
from lb.events import Event
from lb.gateway import Gateway
from lb.health.board import reaches_vip
from lb.upkeep.trouble import Trouble

CHECK_SECONDS = 5.0


class ProbeWay:
    """Attached to every interface when the configuration has a check that wants it, else not there at all.

    Where the kernel refuses it, checks go to the backends' own addresses and an event says so.
    """

    name = "way of health checks"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._wake = asyncio.Event()
        self._refusal = Trouble()

    async def start(self) -> None:
        self._gateway.keep(self._follow, self.name)

    async def stop(self, planned: bool) -> None:
        """The background task ends with the daemon; what is attached stays, as the packet path does."""

    def configure(self) -> None:
        """The configuration has changed."""
        self._wake.set()

    async def _follow(self) -> None:
        while True:
            self._wake.clear()
            wanted = is_needed(self._gateway.store.current)
            if wanted:
                self._gateway.reach_vips(await self._attach())
            else:
                self._gateway.reach_vips(None)
                await self._detach()
            try:
                # Looked at again even so: an interface may have been made anew.
                async with asyncio.timeout(CHECK_SECONDS if wanted else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _attach(self) -> bool:
        node = self._gateway.node
        try:
            await asyncio.to_thread(probe_path.attach, [each.name for each in node.interfaces], node.pins)
        except (LoaderError, OSError) as error:
            if self._refusal.is_news(error):
                self._report(error)
            return False
        self._refusal.end()
        return True

    async def _detach(self) -> None:
        node = self._gateway.node
        await asyncio.to_thread(probe_path.detach, [each.name for each in node.interfaces], node.pins)

    def _report(self, error: Exception) -> None:
        message = f"health checks go to the backends' own addresses, not to the VIPs on them: {error}"
        self._gateway.report(Event("health.way_refused", message, subject=self._gateway.name, severity="error"))


def is_needed(config: ClusterConfig) -> bool:
    """Whether any backend is to be checked at a VIP."""
    return any(reaches_vip(service, backend) for service in config.services for backend in service.backends)
