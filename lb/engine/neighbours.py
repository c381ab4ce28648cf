# SPDX-License-Identifier: Apache-2.0
"""The next hop of every backend: which interface, which MAC address.

The kernel's routing and neighbour tables decide. Packets that XDP forwards do not refresh the kernel's neighbour
entries, so each next hop is asked again in turn, and every change the kernel reports is taken over at once. A backend
whose next hop is unknown is left to the packet path's own lookup, and asked for again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lb.configuration.fields import IpAddress
from lb.configuration.model import ClusterConfig
from lb.engine.plan import Hop
from lb.network.netlink import Netlink, NetlinkError
from lb.network.netlink_messages import Link, Neighbour, Route
from lb.network.netlink_monitor import Monitor

REFRESH_SECONDS = 20.0
RETRY_SECONDS = 1.0
# Changes that come together (a switch that fails, a table that is flushed) are worked through together.
SETTLE_SECONDS = 0.02
SOLICITATIONS_MAX = 1024

log = logging.getLogger("lb.neighbours")
Ask = Literal["all", "missing", "nobody"]
Problem = Literal["no route", "not on a local segment", "interface is down", "next hop does not answer"]


@dataclass(frozen=True, slots=True)
class Want:
    """A target to resolve.

    `direct`: its MAC address itself is needed, a router in between will not do. `tunnel`: packets to it get an outer
    header, whose source is the address that the kernel would use.
    """

    target: int
    address: IpAddress
    direct: bool = False
    tunnel: bool = False


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is known of the ways: hops by target, problems by target, the neighbours in use, and those of them not
    known."""

    hops: dict[int, Hop]
    problems: dict[int, Problem]
    ask: frozenset[tuple[int, IpAddress]]
    unresolved: frozenset[tuple[int, IpAddress]]
    sources: dict[int, IpAddress]


def wants(config: ClusterConfig) -> list[Want]:
    """Every backend, in the order of the configuration."""
    return [
        Want(backend.id, backend.ip, direct=service.forward == "dsr", tunnel=service.forward == "tunnel")
        for service in config.services
        for backend in service.backends
    ]


def resolve(
    wanted: Iterable[Want],
    routes: Mapping[IpAddress, Route],
    links: Mapping[int, Link],
    neighbours: Mapping[tuple[int, IpAddress], Neighbour],
) -> Resolution:
    """The hop of each target, from what the kernel said. Pure."""
    hops: dict[int, Hop] = {}
    problems: dict[int, Problem] = {}
    sources: dict[int, IpAddress] = {}
    ask, unresolved = set(), set()
    for want in wanted:
        route = routes.get(want.address)
        link = links.get(route.index) if route else None
        if route is None or link is None:
            problems[want.target] = "no route"
        elif want.direct and route.gateway is not None:
            problems[want.target] = "not on a local segment"
        elif not link.up:
            problems[want.target] = "interface is down"
        else:
            if want.tunnel and route.source is not None:
                sources.setdefault(route.source.version, route.source)
            next_hop = (route.index, route.gateway or want.address)
            ask.add(next_hop)
            neighbour = neighbours.get(next_hop)
            if neighbour is not None and neighbour.usable and len(neighbour.mac) == len(link.mac) == 6:
                hops[want.target] = Hop(link.index, neighbour.mac, link.mac, link.mtu)
            else:
                problems[want.target] = "next hop does not answer"
                unresolved.add(next_hop)
    return Resolution(hops, problems, frozenset(ask), frozenset(unresolved), sources)


def look_up(netlink: Netlink, wanted: Iterable[Want]) -> Resolution:
    """Asks the kernel. Blocks for some tens of microseconds per backend."""
    wanted = list(wanted)
    links = {link.index: link for link in netlink.links()}
    neighbours = {(entry.index, entry.address): entry for entry in netlink.neighbours()}
    routes: dict[IpAddress, Route] = {}
    for address in {want.address for want in wanted}:
        try:
            routes[address] = netlink.route_to(address)
        except NetlinkError:
            continue
    return resolve(wanted, routes, links, neighbours)


def solicit(netlink: Netlink, neighbours: Iterable[tuple[int, IpAddress]]) -> None:
    """Has the kernel ask these neighbours for their MAC address."""
    for index, address in list(neighbours)[:SOLICITATIONS_MAX]:
        try:
            netlink.solicit(index, address)
        except NetlinkError:
            continue  # the interface went away meanwhile; the monitor tells


class Neighbours:
    """Keeps the hops of a configuration's backends current, and tells `changed` about every difference.

    `changed` gets the hops by target and the sources for outer headers by IP version.
    """

    def __init__(self, changed: Callable[[dict[int, Hop], dict[int, IpAddress]], None]) -> None:
        self.problems: dict[int, Problem] = {}
        self.lookups = 0
        self.failures = 0
        self._changed = changed
        self._wanted: list[Want] = []
        self._told: tuple[dict[int, Hop], dict[int, IpAddress]] | None = None
        self._asked: frozenset[tuple[int, IpAddress]] = frozenset()
        self._lost = 0
        self._netlink = Netlink()
        self._monitor = Monitor(links=True, neighbours=True)
        self._wake = asyncio.Event()
        self._is_new = False
        self._all_known = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def configure(self, config: ClusterConfig) -> None:
        self._wanted = wants(config)
        self._is_new = True
        self._all_known.clear()
        self._wake.set()

    async def settled(self, seconds: float) -> bool:
        """Waits until the next hops of the present configuration are known, so long at most; whether they are."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._all_known.wait()
        return self._all_known.is_set()

    async def start(self) -> None:
        """Resolves once, then follows changes in the background."""
        self._monitor_from = asyncio.get_running_loop()
        self._monitor_from.add_reader(self._monitor.fileno(), self._read_monitor)
        await self._refresh("all")
        self._task = asyncio.create_task(self._run(), name="neighbours")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._monitor_from.remove_reader(self._monitor.fileno())
        self._monitor.close()
        self._netlink.close()

    def _read_monitor(self) -> None:
        for change in self._monitor.read():
            entry = change.object
            if not isinstance(entry, Neighbour) or (entry.index, entry.address) in self._asked:
                self._wake.set()
        if self._monitor.lost != self._lost:
            self._lost = self._monitor.lost
            self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        refresh_at, retry_at = loop.time() + REFRESH_SECONDS, loop.time() + RETRY_SECONDS
        while True:
            until = min(refresh_at, retry_at) if self._missing() else refresh_at
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._wake.wait()
                await asyncio.sleep(SETTLE_SECONDS)
            now = loop.time()
            ask: Ask = "all" if now >= refresh_at else "missing" if self._is_new or now >= retry_at else "nobody"
            if ask == "all":
                refresh_at = now + REFRESH_SECONDS
            if ask != "nobody":
                retry_at = now + RETRY_SECONDS
            try:
                await self._refresh(ask)
            except OSError as error:
                # A dump that was interrupted by changes, or a kernel short of memory: what is known stays.
                self.failures += 1
                log.warning("next hops cannot be looked up now: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    def _missing(self) -> bool:
        return "next hop does not answer" in self.problems.values()

    async def _refresh(self, ask: Ask) -> None:
        self._wake.clear()
        self._is_new = False
        found = await asyncio.to_thread(look_up, self._netlink, self._wanted)
        self.lookups += 1
        self.problems, self._asked = found.problems, found.ask
        if ask != "nobody":
            # Only now: an answer comes at once, and is taken for news only if it is known to be wanted.
            await asyncio.to_thread(solicit, self._netlink, found.ask if ask == "all" else found.unresolved)
        if (found.hops, found.sources) != self._told:
            self._told = found.hops, found.sources
            self._changed(found.hops, found.sources)
        if not self._is_new and not self._missing():
            self._all_known.set()
