# SPDX-License-Identifier: Apache-2.0
"""The gateway's own addresses: packets to and from them are never balanced, and no VIP is one of them."""

import asyncio
import time
from collections.abc import Container

from lb.configuration.advice import Network
from lb.configuration.fields import IpAddress
from lb.events import Event
from lb.gateway import Gateway
from lb.network.netlink import Netlink
from lb.network.netlink_messages import Address
from lb.network.netlink_monitor import Monitor
from lb.network.own import own

# However often addresses come and go, this long is between two looks.
PAUSE_S = 0.2


class OwnAddresses:
    """Tells the packet engine, and the gateway, which addresses the kernel has without rainlb having put them there,
    and follows changes. A VIP among them is told of once: somebody has given this gateway an address that is one."""

    name = "own addresses"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._monitor = Monitor(addresses=True)
        self._again = asyncio.Event()
        self._told: set[str] = set()
        # Addresses that are VIPs, or were until just now: where the kernel does not say whose they are, they are ours.
        self._vips: set[IpAddress] = set()

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
            await asyncio.sleep(PAUSE_S)

    async def _refresh(self) -> None:
        vips = {vip.ip for vip in self._gateway.store.current.vips}
        as_of = time.monotonic()
        present = await asyncio.to_thread(self._tell, vips)
        self._gateway.addresses_changed(present, as_of)
        self._tell_vips({str(vip) for vip in vips} & self._gateway.own_hosts.keys())

    def _tell(self, vips: set[IpAddress]) -> list[Address]:
        """All addresses there are."""
        with Netlink() as netlink:
            names = {link.index: link.name for link in netlink.links()}
            addresses = netlink.addresses()
        self._vips = vips | (self._vips & {each.interface.ip for each in addresses})
        present = own(addresses, self._vips)
        self._gateway.engine.set_own_addresses({each.interface.ip for each in present})
        networks: dict[str, set[Network]] = {segment: set() for segment in self._gateway.node.segments}
        own_addresses: dict[str, tuple[IpAddress, ...]] = {}
        for interface in self._gateway.node.interfaces:
            here = [each.interface for each in present if names.get(each.index) == interface.name]
            networks[interface.segment].update(each.network for each in here)
            own_addresses[interface.name] = tuple(each.ip for each in here if not each.ip.is_link_local)
        self._gateway.networks = networks
        self._gateway.own_addresses = own_addresses
        self._gateway.own_hosts = _by_host(present, names, own_addresses)
        return addresses

    def _tell_vips(self, hosts: set[str]) -> None:
        for host in sorted(hosts - self._told):
            where = f"gateway {self._gateway.name} itself (on {self._gateway.own_hosts[host]})"
            text = f"VIP {host} is an address of {where}, so nobody holds it: take it off there, or out of the VIPs"
            self._gateway.report(Event("vip.own_address", text, subject=host, severity="error"))
        self._told = hosts


def _by_host(present: list[Address], names: dict[int, str], first: Container[str]) -> dict[str, str]:
    """Address → interface; those on the interfaces `first` come before the others."""
    named = [(names.get(each.index, "?"), each.interface.ip) for each in present]
    there = [(name, ip) for name, ip in named if not (ip.is_loopback or ip.is_link_local)]
    return {str(ip): name for name, ip in sorted(there, key=lambda each: each[0] not in first)}
