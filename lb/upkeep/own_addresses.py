# SPDX-License-Identifier: Apache-2.0
"""The gateway's own addresses: packets to and from them are never balanced."""

import asyncio

from lb.configuration.advice import Network
from lb.configuration.fields import IpAddress
from lb.gateway import Gateway
from lb.network.netlink import Netlink
from lb.network.netlink_monitor import Monitor


class OwnAddresses:
    """Tells the packet engine, and the gateway, which addresses the kernel has, VIPs left out, and follows changes."""

    name = "own addresses"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._monitor = Monitor(addresses=True)
        self._again = asyncio.Event()

    async def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read)
        self._gateway.store.on_change(lambda _old, _new: self._again.set())
        await self._refresh()
        self._gateway.keep(self._follow, self.name)

    async def stop(self, planned: bool) -> None:
        asyncio.get_running_loop().remove_reader(self._monitor.fileno())
        self._monitor.close()

    def _read(self) -> None:
        if self._monitor.read() or self._monitor.lost:
            self._again.set()

    async def _follow(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                await self._refresh()
            except OSError:
                self._again.set()
                raise

    async def _refresh(self) -> None:
        vips = {vip.ip for vip in self._gateway.store.current.vips}
        await asyncio.to_thread(self._tell, vips)

    def _tell(self, vips: set[IpAddress]) -> None:
        with Netlink() as netlink:
            names = {link.index: link.name for link in netlink.links()}
            present = [each for each in netlink.addresses() if each.interface.ip not in vips]
        self._gateway.engine.set_own_addresses({each.interface.ip for each in present})
        networks: dict[str, set[Network]] = {segment: set() for segment in self._gateway.node.segments}
        own_addresses: dict[str, tuple[IpAddress, ...]] = {}
        for interface in self._gateway.node.interfaces:
            own = [each.interface for each in present if names.get(each.index) == interface.name]
            networks[interface.segment].update(each.network for each in own)
            own_addresses[interface.name] = tuple(each.ip for each in own if not each.ip.is_link_local)
        self._gateway.networks = networks
        self._gateway.own_addresses = own_addresses
