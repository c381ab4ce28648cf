# SPDX-License-Identifier: Apache-2.0
"""Takes and gives up virtual addresses on this gateway, and puts back what others take off its interfaces.

Taking: the address goes onto its interface and is announced at once, on the event loop (a fraction of a millisecond);
the packet path is allowed to answer for it right after, from a thread. Giving up goes the other way round and is
finished only when the packet path no longer answers. The kernel lease stands behind both: without a fresh lease the
packet path answers for nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface

from lb.configuration.model import ClusterConfig, Vip
from lb.configuration.node import NodeConfig
from lb.network.announce import Announcer, Claim
from lb.network.links import LinkWatch
from lb.network.netlink import Netlink, NetlinkError
from lb.network.netlink_messages import Address, IpInterface, Link
from lb.network.own import own as own_of
from lb.process.workers import worker_pool

# RFC 5227 section 2.4: an address is defended against a contender at most that often.
DEFEND_INTERVAL_S = 10.0
# Somebody who takes an address off again and again is told of no more often.
PUT_BACK_TOLD_S = 10.0
log = logging.getLogger("lb.vips")


@dataclass(frozen=True, slots=True)
class Taken:
    """An address this gateway has taken: on which interface, and when (monotonic seconds)."""

    vip: Vip
    interface: str
    at: float


class VipManager:
    """The addresses of this gateway. `hold(hosts)` tells the packet path; it may block and runs in a thread.

    `claimed(interface, claim)` is told of whoever else claims one of them, and `on_put_back(address, interface)` of
    those that somebody has taken off their interface, and that are there again. `entitled()` says whether the lease
    runs: without it no address is announced, nor defended against another gateway that claims it, for that one may
    have become its owner in a view that this gateway does not know of. `own()` gives the addresses that are this
    gateway's own (→ their interface): they are neither taken nor deleted.
    """

    def __init__(
        self,
        node: NodeConfig,
        hold: Callable[[Iterable[str]], None],
        links: LinkWatch,
        claimed: Callable[[str, Claim], None],
        on_put_back: Callable[[str, str], None],
        entitled: Callable[[], bool] = lambda: True,
        own: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._segments = {interface.name: interface.segment for interface in node.interfaces}
        self._hold = hold
        self._links = links
        self._told_of_claim = claimed
        self._on_put_back = on_put_back
        self._kernel = Netlink()
        self._entitled = entitled
        self._own = own
        self._announcer = Announcer(self._loop, self._claimed, entitled)
        self._worker = worker_pool(node, 1, "vips")
        self._taken: dict[str, Taken] = {}
        self._held: frozenset[str] = frozenset()
        self._wanted: frozenset[str] = frozenset()
        self._disowned: frozenset[str] = frozenset()
        self._vips: dict[str, Vip] = {}
        self._settled = asyncio.Event()
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unannounced: set[str] = set()
        self._defended: dict[str, float] = {}
        self._missing: frozenset[str] = frozenset()
        self._told_put_back: dict[str, float] = {}
        self.problems: dict[str, str] = {}

    @property
    def held(self) -> frozenset[str]:
        """The addresses that the packet path may answer for, or may still be answering for."""
        return self._held | frozenset(self._taken)

    @property
    def taken(self) -> dict[str, Taken]:
        """The addresses on this gateway's interfaces."""
        return self._taken

    @property
    def disowning(self) -> bool:
        """Whether the packet path may hold addresses that others own by now: the lease must not run meanwhile."""
        return bool(self._disowned)

    def start(self, config: ClusterConfig, *, keep: Iterable[str] = ()) -> None:
        """Find what an earlier daemon left on the interfaces; `keep` is what the packet path still answers for."""
        self.configure(config)
        found, vips = self._kernel.addresses(), {vip.ip for vip in self._vips.values()}
        not_ours = set(own_of(found, vips))
        present = {(each.index, each.interface) for each in found if each not in not_ours}
        for host, vip in self._vips.items():
            for link in self._links_of(vip):
                if (link.index, ip_interface(vip.address)) in present:
                    self._taken[host] = Taken(vip, link.name, time.monotonic())
        self._held = frozenset(keep)
        self._wanted = frozenset(keep)
        self._task = self._loop.create_task(self._run(), name="vips")

    async def close(self) -> None:
        """Stop; addresses and the packet path stay as they are."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._announcer.close()
        self._worker.shutdown(wait=True)
        self._kernel.close()

    def configure(self, config: ClusterConfig) -> None:
        """The addresses that may be taken: those of the configuration that the packet path has. One that has gone from
        it stays known until it is released."""
        self._vips = {host: taken.vip for host, taken in self._taken.items()}
        self._vips |= {vip.host: vip for vip in config.vips}

    def want(self, hosts: frozenset[str]) -> None:
        """From now on this gateway holds exactly these addresses. Taking happens before this returns."""
        self._wanted = hosts
        self._disowned -= hosts
        for host in sorted(hosts - self._taken.keys()):
            self._take(host)
        if hosts & self._taken.keys() != self._held or self._taken.keys() - hosts:
            self._settled.clear()
            self._change.set()
        else:
            self._settled.set()

    def disown(self) -> None:
        """Give up everything: whatever this gateway owned, others may own by now."""
        self._disowned |= self.held
        self.want(frozenset())

    def announce_again(self) -> None:
        """Tell all segments once more who has the addresses, after a merge or a new link."""
        for host, taken in self._taken.items():
            if host in self._wanted:
                self._announce(taken)

    def lease_renewed(self) -> None:
        """Announce what could not be announced for want of a lease. Cheap when there is nothing of the kind."""
        if self._unannounced:
            waiting, self._unannounced = self._unannounced & self._wanted & self._taken.keys(), set()
            for host in sorted(waiting):
                self._announce(self._taken[host])

    def question_all(self) -> None:
        """Ask whether others use the addresses: what they said before now was not judged."""
        for host, taken in self._taken.items():
            self._announcer.question(taken.interface, host)

    def links_changed(self) -> None:
        """Links came or went: what could not be placed may be now, and what is on a new link is announced."""
        self.want(self._wanted)
        self._put_back()
        self.announce_again()

    def found(self, present: Iterable[Address], as_of: float) -> None:
        """What the kernel has on the interfaces, as of then (monotonic seconds). An address that somebody has taken off
        (the kernel takes IPv6 ones off a link that is set down) is put back."""
        there = {(each.index, each.interface) for each in present}
        gone = (host for host, taken in self._taken.items() if taken.at < as_of and not self._is_on(taken, there))
        self._missing = frozenset(gone)
        self._put_back()

    async def settled(self) -> None:
        """Returns when the packet path answers for exactly what is wanted."""
        await self._settled.wait()

    def _is_on(self, taken: Taken, there: Collection[tuple[int, IpInterface]]) -> bool:
        return any((link.index, ip_interface(taken.vip.address)) in there for link in self._links_of(taken.vip))

    def _put_back(self) -> None:
        for host in sorted(self._missing & self._wanted & self._taken.keys()):
            link = self._link_of(self._taken[host].vip)
            if link is None:
                continue
            self._missing -= {host}
            self._take(host)
            now = time.monotonic()
            if now - self._told_put_back.get(host, -PUT_BACK_TOLD_S) >= PUT_BACK_TOLD_S and host not in self.problems:
                self._told_put_back[host] = now
                self._on_put_back(host, link.name)

    async def _run(self) -> None:
        while True:
            await self._change.wait()
            self._change.clear()
            wanted = self._wanted & self._taken.keys()
            try:
                await self._loop.run_in_executor(self._worker, self._hold, wanted)
            except OSError as error:
                log.error("the packet path does not take the addresses to hold: %s", error)
                await asyncio.sleep(0.1)
                self._change.set()
                continue
            self._held = wanted
            self._disowned &= wanted
            for host in sorted(self._taken.keys() - self._wanted):
                self._release(host)
            if not self._change.is_set():
                self._settled.set()

    def _take(self, host: str) -> None:
        vip = self._vips.get(host)
        if vip is None:
            self.problems[host] = "the packet path of this gateway does not have its services yet"
            return
        link = self._link_of(vip)
        if link is None:
            self.problems[host] = f"no interface of this gateway that is up is on segment {vip.segment}"
            return
        if host in self._own():
            self.problems[host] = f"it is this gateway's own address (on {self._own()[host]})"
            return
        try:
            self._kernel.add_address(link.index, ip_interface(vip.address))
        except NetlinkError as error:
            self.problems[host] = str(error)
            log.error("VIP %s cannot be put on %s: %s", host, link.name, error)
            return
        self.problems.pop(host, None)
        taken = self._taken[host] = Taken(vip, link.name, time.monotonic())
        self._announce(taken)

    def _release(self, host: str) -> None:
        taken = self._taken.pop(host)
        self._announcer.stop(taken.interface, host)
        link = self._links.links.get(taken.interface)
        if link is not None and host not in self._own():
            try:
                self._kernel.delete_address(link.index, ip_interface(taken.vip.address))
            except NetlinkError as error:
                log.error("VIP %s cannot be taken off %s: %s", host, taken.interface, error)

    def _announce(self, taken: Taken) -> None:
        link = self._links.links.get(taken.interface)
        if link is None or not link.up or len(link.mac) != 6:
            return
        if not self._entitled():
            # This gateway may have been stopped, and be reading now what it missed: others have the address by then.
            self._unannounced.add(taken.vip.host)
            return
        try:
            self._announcer.start(taken.interface, link.mac, taken.vip.host)
        except OSError as error:
            log.error("VIP %s cannot be announced on %s: %s", taken.vip.host, taken.interface, error)

    def _links_of(self, vip: Vip) -> list[Link]:
        names = [name for name, segment in self._segments.items() if segment == vip.segment]
        return [self._links.links[name] for name in names if name in self._links.links]

    def _link_of(self, vip: Vip) -> Link | None:
        return next((link for link in self._links_of(vip) if link.up), None)

    def _claimed(self, interface: str, claim: Claim) -> None:
        host = str(claim.address)
        if host not in self._wanted or host not in self._taken:
            return
        now = time.monotonic()
        if self._entitled() and now - self._defended.get(host, -DEFEND_INTERVAL_S) >= DEFEND_INTERVAL_S:
            self._defended[host] = now
            self._announce(self._taken[host])
        self._told_of_claim(interface, claim)
