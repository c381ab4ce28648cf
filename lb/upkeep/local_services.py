# SPDX-License-Identifier: Apache-2.0
"""VIPs of `local` services are the kernel's on every gateway of a cluster: a connection belongs to the gateway that the
hash chose, whoever holds the address, and stays there when the address moves."""

import asyncio

from lb.configuration.fields import IpAddress
from lb.configuration.model import ClusterConfig
from lb.engine.packet_path import deliver_locally
from lb.gateway import Gateway


class LocalServices:
    """Keeps the kernel's list of such addresses what the configuration says."""

    name = "local services"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._again = asyncio.Event()

    async def start(self) -> None:
        self._gateway.store.on_change(lambda _old, _new: self._again.set())
        self._again.set()
        self._gateway.keep(self._follow, self.name)

    async def stop(self, planned: bool) -> None:
        """The background task ends with the daemon; the kernel goes on serving, as the packet path does."""

    async def _follow(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                await asyncio.to_thread(deliver_locally, everywhere(self._gateway.store.current))
            except OSError:
                self._again.set()
                raise


def everywhere(config: ClusterConfig) -> set[IpAddress]:
    """The VIPs whose packets every gateway's kernel is to take.

    Only VIPs: the packet path keeps the kernel from answering ARP and neighbour solicitations for them.
    """
    served = {service.address for service in config.services if service.forward == "local"}
    return {vip.ip for vip in config.vips if vip.host in served}
