# SPDX-License-Identifier: Apache-2.0
"""VIPs of a gateway that stands alone: it holds all of them, always."""

import asyncio
import contextlib
import logging
import time
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from typing import Any

from lb.configuration.model import EMPTY, ClusterConfig, Vip
from lb.control import Caller, ControlError
from lb.engine.packet_engine import FOREVER_NS, EngineError
from lb.events import vip_duplicate, vip_put_back
from lb.gateway import Gateway
from lb.network.announce import Announcer, Claim
from lb.network.netlink import Netlink, NetlinkError
from lb.network.netlink_messages import FOREVER, Address, Link
from lb.network.routes import RouteAnnouncer

log = logging.getLogger("lb.vips")
LEASE_FOREVER_NS = FOREVER_NS // 2


class SingleNode:
    """Puts the VIPs on the interfaces of their segments and answers for them without end; routed ones are announced."""

    name = "vips"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._since: dict[str, float] = {}
        self._problems: dict[str, str] = {}
        self._announcer: Announcer | None = None
        self._routes: RouteAnnouncer | None = None
        self._change = asyncio.Lock()
        gateway.control.register("vips", self._vips)
        gateway.control.register("nodes", self._nodes)
        for method in ("vip.move", "vip.pin", "vip.unpin", "vip.prefer", "node.drain", "node.undrain"):
            gateway.control.register(method, self._refuse)

    async def start(self) -> None:
        self._announcer = Announcer(asyncio.get_running_loop(), self._conflict)
        self._gateway.engine.set_lease(LEASE_FOREVER_NS)
        gateway = self._gateway
        self._routes = RouteAnnouncer(gateway.node, gateway.driver.settled, lambda: True, gateway.report, FOREVER)
        self._routes.start(self._routed(gateway.store.current))
        self._gateway.store.on_change(self._changed)
        gateway.on_addresses(self._found)
        await self._take(EMPTY, self._gateway.store.current)

    async def stop(self, planned: bool) -> None:
        """The addresses stay: packets go on while the daemon is away."""
        if self._announcer is not None:
            self._announcer.close()
        if self._routes is not None:
            if not planned:
                await self._routes.leave(self._gateway.store.current.policy.withdrawal_ms / 1000)
            await self._routes.close()

    def release(self) -> None:
        """Takes all VIPs off the interfaces, when the data path is taken out."""
        with Netlink() as netlink:
            for vip in _on_segments(self._gateway.store.current):
                self._off(netlink, _links(netlink), vip)

    def _changed(self, old: ClusterConfig, new: ClusterConfig) -> None:
        self._gateway.spawn(self._take(old, new), "vips")

    def _found(self, present: list[Address], _as_of: float) -> None:
        there = {each.interface for each in present}
        vips = (vip for vip in _on_segments(self._gateway.store.current) if vip.host in self._since)
        if gone := [vip for vip in vips if _interface_of(vip) not in there]:
            self._gateway.spawn(self._put_back(gone), "vips")

    async def _put_back(self, gone: list[Vip]) -> None:
        async with self._change:
            wanted = _on_segments(self._gateway.store.current)
            added = await asyncio.to_thread(self._add, [vip for vip in gone if vip in wanted])
            self._announce(list(added))
            for vip, interface in added.items():
                self._gateway.report(vip_put_back(vip.host, interface))

    def _add(self, vips: list[Vip]) -> dict[Vip, str]:
        """The addresses that were not there → the interfaces they are on now."""
        with Netlink() as netlink:
            links = _links(netlink)
            found = ((vip, self._link_of(links, vip)) for vip in vips)
            return {
                vip: link.name
                for vip, link in found
                if link is not None and netlink.add_address(link.index, _interface_of(vip))
            }

    async def _take(self, old: ClusterConfig, new: ClusterConfig) -> None:
        async with self._change:
            # Whoever finds a new address is to find its services, too. Without them, it is the driver that complains.
            with contextlib.suppress(EngineError):
                await self._gateway.driver.settled()
            await asyncio.to_thread(self._place, old, new)
            held = [vip.host for vip in _on_segments(new) if vip.host not in self._problems]
            await asyncio.to_thread(self._gateway.engine.hold, held)
            before = {vip.host for vip in _on_segments(old)}
            self._announce([vip for vip in _on_segments(new) if vip.host in held and vip.host not in before])
            if self._routes is not None:
                self._routes.want(self._routed(new))

    def _routed(self, config: ClusterConfig) -> frozenset[str]:
        return frozenset(vip.host for vip in config.routed_vips) - self._gateway.own_hosts.keys()

    def _place(self, old: ClusterConfig, new: ClusterConfig) -> None:
        with Netlink() as netlink:
            links = _links(netlink)
            wanted = {(vip.address, vip.segment) for vip in new.vips}
            for vip in _on_segments(old):
                if (vip.address, vip.segment) not in wanted:
                    self._off(netlink, links, vip)
            for vip in _on_segments(new):
                self._on(netlink, links, vip)

    def _on(self, netlink: Netlink, links: dict[str, Link], vip: Vip) -> None:
        link = self._link_of(links, vip)
        if link is None:
            self._problems[vip.host] = f"no interface of this gateway is on segment {vip.segment}"
            log.warning("VIP %s: %s", vip.address, self._problems[vip.host])
            return
        if vip.host in self._gateway.own_hosts:
            self._problems[vip.host] = f"it is this gateway's own address (on {self._gateway.own_hosts[vip.host]})"
            log.warning("VIP %s: %s", vip.address, self._problems[vip.host])
            return
        try:
            netlink.add_address(link.index, _interface_of(vip))
        except NetlinkError as error:
            self._problems[vip.host] = str(error)
            log.warning("VIP %s cannot be put on %s: %s", vip.address, link.name, error)
            return
        self._problems.pop(vip.host, None)
        self._since.setdefault(vip.host, time.time())

    def _off(self, netlink: Netlink, links: dict[str, Link], vip: Vip) -> None:
        self._since.pop(vip.host, None)
        self._problems.pop(vip.host, None)
        link = self._link_of(links, vip)
        if link is not None and vip.host not in self._gateway.own_hosts:
            netlink.delete_address(link.index, _interface_of(vip))

    def _link_of(self, links: dict[str, Link], vip: Vip) -> Link | None:
        names = [interface.name for interface in self._gateway.node.interfaces if interface.segment == vip.segment]
        return next((links[name] for name in names if name in links), None)

    def _announce(self, vips: list[Vip]) -> None:
        with Netlink() as netlink:
            links = _links(netlink)
        for vip in vips:
            link = self._link_of(links, vip)
            if link is not None and len(link.mac) == 6 and self._announcer is not None:
                self._announcer.start(link.name, link.mac, vip.host)

    def _conflict(self, interface: str, claim: Claim) -> None:
        self._gateway.report(vip_duplicate(str(claim.address), claim.mac.hex(":"), interface))

    async def _vips(self, _params: dict[str, Any], _caller: Caller) -> list[dict[str, Any]]:
        return [self._vip(vip) for vip in self._gateway.store.current.vips]

    def _vip(self, vip: Vip) -> dict[str, Any]:
        problem = self._problems.get(vip.host)
        if vip.is_routed and self._routes is not None:
            problem = self._routes.problem
        own = self._gateway.node.node.name
        return {
            "address": vip.address,
            "announce": vip.announce,
            "segment": vip.segment or None,
            "owner": None if problem or vip.is_routed else own,
            "owners": [] if problem else [own],
            "since": self._since.get(vip.host),
            "reason": problem or "the only gateway",
            "lease_ms": None,
            "prefer": list(vip.prefer),
            "pin": vip.pin or None,
            "state": "unplaced" if problem else "held",
        }

    async def _nodes(self, _params: dict[str, Any], _caller: Caller) -> list[dict[str, Any]]:
        routed = self._routes.announced if self._routes is not None else ()
        return [{**self._gateway.node_status(), "in_view": True, "vip_count": len(self._since) + len(routed)}]

    async def _refuse(self, _params: dict[str, Any], _caller: Caller) -> None:
        remedy = "a cluster needs [ring] in each gateway's node file"
        raise ControlError(
            "unavailable", "this gateway stands alone: there is no other to move anything to", remedy=remedy
        )


def _on_segments(config: ClusterConfig) -> list[Vip]:
    return [vip for vip in config.vips if not vip.is_routed]


def _links(netlink: Netlink) -> dict[str, Link]:
    return {link.name: link for link in netlink.links()}


def _interface_of(vip: Vip) -> IPv4Interface | IPv6Interface:
    return ip_interface(vip.address)
