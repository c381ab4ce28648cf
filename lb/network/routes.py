# SPDX-License-Identifier: Apache-2.0
"""VIPs announced as routes: addresses on an interface of this gateway where a routing daemon finds them.

What is put there is lent by the kernel for LIFETIME_S and prolonged while the daemon lives and its lease runs. A hung
or killed daemon so ceases to attract traffic, as with the lease for ARP, but late enough for it to be restarted:
until then packets come and are forwarded by the packet path, as it was left.
"""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_interface

from lb.configuration.node import NodeConfig
from lb.engine.packet_engine import EngineError
from lb.events import Event
from lb.network.netlink import Netlink, NetlinkError
from lb.network.netlink_messages import FOREVER, Link
from lb.process.workers import worker_pool

# Longer than peers wait for a gateway that restarts (lb.cluster.planned_restart).
LIFETIME_S = 30
RENEWAL_S = 10.0
RETRY_S = 0.2
# A gateway that is taken out does not wait longer for the kernel to take its addresses off.
WITHDRAWAL_TIMEOUT_S = 3.0
NAMES_TOLD_MAX = 3
log = logging.getLogger("lb.routes")


class RouteAnnouncer:
    """The routed VIPs on this gateway.

    `ready()` returns when the packet path serves what is configured: before that nothing is announced. `entitled()`
    says whether the lease runs: without it nothing is announced or prolonged. `tell(event)` says what has become of
    it. With `lifetime_s` FOREVER the addresses outlast the daemon.
    """

    def __init__(
        self,
        node: NodeConfig,
        ready: Callable[[], Awaitable[None]],
        entitled: Callable[[], bool],
        tell: Callable[[Event], object],
        lifetime_s: int = LIFETIME_S,
    ) -> None:
        self._interface = node.routes.interface
        self._ready, self._entitled, self._tell = ready, entitled, tell
        self._lifetime_s = lifetime_s
        self._worker = worker_pool(node, 1, "routes")
        self._wanted: frozenset[str] = frozenset()
        self._change = asyncio.Event()
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.announced: frozenset[str] = frozenset()
        # Why what should be announced is not; empty while all is well.
        self.problem = ""

    def start(self, known: Iterable[str]) -> None:
        """Find which of the `known` addresses an earlier daemon left; these stay until `want` says otherwise."""
        self.announced = self._wanted = present(self._interface, known)
        self._settled.set()
        # What is left of their time is not known.
        self._change.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="routes")

    async def close(self) -> None:
        """Stop; what is announced stays, lent for a whole lifetime once more if that is permitted."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.announced and self._entitled():
            with contextlib.suppress(OSError):
                await self._work(announce, self.announced, self._lifetime_s)
        self._worker.shutdown(wait=True)

    def want(self, hosts: frozenset[str]) -> None:
        """From now on exactly these addresses are to be announced here."""
        if hosts != self._wanted:
            self._wanted = hosts
            self._settled.clear()
            self._change.set()

    async def leave(self, wait_s: float) -> None:
        """Withdraw everything, and give the routers this time to send their packets elsewhere."""
        if self.announced:
            self.want(frozenset())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WITHDRAWAL_TIMEOUT_S):
                    await self._settled.wait()
            await asyncio.sleep(wait_s)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL_S):
                    await self._change.wait()
            self._change.clear()
            try:
                await self._withdraw()
                done = await self._announce()
                self.problem = ""
            except (OSError, EngineError) as error:
                self._say_problem(str(error))
                done = False
            if not done:
                await asyncio.sleep(RETRY_S)
                self._change.set()
            elif not self._change.is_set():
                self._settled.set()

    async def _withdraw(self) -> None:
        gone = self.announced - self._wanted
        if gone:
            await self._work(withdraw, gone)
            self.announced -= gone
            self._say("vip.withdrawn", gone, "no longer announced as")

    async def _announce(self) -> bool:
        """Announces what is new and prolongs the rest; False if that is not permitted now."""
        wanted = self._wanted
        if wanted - self.announced:
            await self._ready()
        # While waiting, something may have been taken back.
        wanted &= self._wanted
        if wanted and not self._entitled():
            return False
        if wanted:
            await self._work(announce, wanted, self._lifetime_s)
        fresh = wanted - self.announced
        self.announced |= fresh
        if fresh:
            self._say("vip.announced", fresh, "announced as")
        return True

    async def _work(self, function: Callable[..., None], hosts: frozenset[str], *options: int) -> None:
        await asyncio.get_running_loop().run_in_executor(self._worker, function, self._interface, hosts, *options)

    def _say(self, kind: str, hosts: frozenset[str], what: str) -> None:
        names = sorted(hosts)
        more = len(names) - NAMES_TOLD_MAX
        text = ", ".join(names[:NAMES_TOLD_MAX]) + (f" and {more} more" if more > 0 else "")
        verb, noun = ("is", "a route") if len(names) == 1 else ("are", "routes")
        self._tell(Event(kind, f"{text} {verb} {what} {noun} here", subject=names[0] if len(names) == 1 else ""))

    def _say_problem(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            log.error("VIPs cannot be announced as routes: %s; it is tried again", problem)
            self._tell(Event("vip.unannounced", f"not announced as routes: {problem}", severity="error"))


def present(interface: str, hosts: Iterable[str]) -> frozenset[str]:
    """Those of the addresses that are on the interface."""
    wanted = {ip_interface(host) for host in hosts}
    with Netlink() as netlink:
        index = next((link.index for link in netlink.links() if link.name == interface), None)
        there = {each.interface for each in netlink.addresses() if each.index == index}
    return frozenset(str(each.ip) for each in wanted & there)


def announce(interface: str, hosts: Iterable[str], lifetime_s: int = FOREVER) -> None:
    """Put the addresses on the interface, or prolong their stay. Raises NetlinkError."""
    with Netlink() as netlink:
        link = _link(netlink, interface)
        if link is None or not link.up:
            raise NetlinkError(errno.ENODEV, _lacking(interface, link))
        for host in sorted(hosts):
            netlink.lend_address(link.index, ip_interface(host), lifetime_s)


def withdraw(interface: str, hosts: Iterable[str]) -> None:
    """Take the addresses off the interface; without the interface they are gone already. Raises NetlinkError."""
    with Netlink() as netlink:
        link = _link(netlink, interface)
        if link is not None:
            for host in sorted(hosts):
                netlink.delete_address(link.index, ip_interface(host))


def _link(netlink: Netlink, name: str) -> Link | None:
    return next((link for link in netlink.links() if link.name == name), None)


def _lacking(interface: str, link: Link | None) -> str:
    up = f"ip link set {interface} up"
    if link is not None:
        return f"interface {interface} is down: {up}"
    make = f"ip link add {interface} type dummy && {up}"
    return f"there is no interface {interface}: {make}, or name another one as routes.interface in the node file"
