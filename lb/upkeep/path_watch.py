# SPDX-License-Identifier: Apache-2.0
"""Sees that the packet path is in place."""

import asyncio

from ebpf.loader import LoaderError
from lb.engine.packet_path import attach_path, lost_interfaces
from lb.events import Event
from lb.gateway import Gateway
from lb.upkeep.trouble import Trouble

PATH_CHECK_SECONDS = 2.0


class PathWatch:
    """Sees that the program stays on the interfaces, and puts it back where it was lost."""

    name = "packet path"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._refusal = Trouble()

    async def start(self) -> None:
        self._gateway.keep(self._watch, self.name)

    async def stop(self, planned: bool) -> None:
        """The background task ends with the daemon."""

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PATH_CHECK_SECONDS)
            lost = await asyncio.to_thread(lost_interfaces, self._gateway.attached)
            if lost:
                await self._put_back(", ".join(lost))

    async def _put_back(self, names: str) -> None:
        try:
            self._gateway.attached = await asyncio.to_thread(attach_path, self._gateway.node)
        except LoaderError as error:
            if self._refusal.is_news(error):
                self._report("error", f"the packet path is gone from {names} and cannot be put back: {error}", names)
            return
        self._refusal.end()
        self._report(
            "warning", f"the packet path was gone from {names} (taken off, or the interface made anew): put back", names
        )

    def _report(self, severity: str, message: str, names: str) -> None:
        self._gateway.report(Event("engine.lost", message, subject=names, severity=severity))
