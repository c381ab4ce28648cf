# SPDX-License-Identifier: Apache-2.0
"""This gateway's part in the cluster: the ring, and everything that is decided over it.

What happens when: a committed view or a change of the shared data is taken into `ClusterState`; `_react` then makes
this gateway hold what the state says it owns, hands on what it has released, and, on the coordinator, plans. All
decisions are pure functions of the replicated state (`lb.cluster.ownership`); this file carries them out.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from lb.cluster.alone import Alone
from lb.cluster.figures import ClusterFigures
from lb.cluster.in_force import InForce
from lb.cluster.journal import ClusterJournal
from lb.cluster.lease import KernelLease
from lb.cluster.load import LoadMeter
from lb.cluster.membership import forget_strangers, struck_off, take_peers
from lb.cluster.occupancy import Occupancy
from lb.cluster.own_node import OwnNode
from lb.cluster.ownership import Holding, NodeFacts, confirm, decide, hand_on, in_use, to_hold
from lb.cluster.ownership_writer import OwnershipWriter
from lb.cluster.placement import Standing
from lb.cluster.planned_restart import PlannedRestart
from lb.cluster.refusals import Refusals
from lb.cluster.resources import Resources, ResourceState
from lb.cluster.ring_settings import ids_of, ring_config
from lb.cluster.routed_vips import RoutedVips
from lb.cluster.shared_config import SharedStore
from lb.cluster.state import ClusterState
from lb.cluster.stats import ClusterStats, VipFigures
from lb.cluster.steering import peering
from lb.cluster.steering_task import SteeringTask
from lb.cluster.strangers import Strangers
from lb.cluster.traffic import TrafficExchange
from lb.cluster.vip_manager import VipManager
from lb.configuration.model import ClusterConfig, Vip
from lb.connections.replication import Replication
from lb.conntrack.replication import ConntrackReplication
from lb.engine.packet_engine import read_held
from lb.events import Event
from lb.gateway import Gateway
from lb.health.board import REPORT_PREFIX, SLOW_START_PREFIX
from lb.process.workers import worker_pool
from sync.data import OutcomeUnknown, RequestRefused
from sync.driver import MulticastFailed, Ring
from sync.events import Left, TokenVisit, View
from sync.shared import Change, Replaced

FIRST_VIEW_TIMEOUT_S = 10.0
RELEASE_TIMEOUT_S = 3.0
TICK_S = 1.0
# After a view, members' addresses may be unknown for a while: a claim from them is no stranger's.
JUDGE_AFTER_S = 3.0
# A gateway that the others have struck off asks for admission again after this time: they may not have done it all.
STRUCK_OFF_S = 10.0
log = logging.getLogger("lb.cluster")


class Cluster:
    """The daemon's component for a gateway with a ring."""

    name = "cluster"

    def __init__(self, gateway: Gateway) -> None:
        node = gateway.node
        assert node.ring is not None
        self.gateway = gateway
        self.node = node.node.id
        # The loop keeps the executor that the daemon has given it.
        self.ring = Ring(ring_config(node), list(node.ring.listen), scheduling=node.ring.scheduling, workers=0)
        self.state = ClusterState(self.ring, self.node, ids_of(node), self._react, self._holding_changed)
        self.journal = ClusterJournal(node.node.name, self.ring, gateway.record, self.state.name)
        self.store = SharedStore(node.state_dir, tell=self.journal.tell_config)
        self.strangers = Strangers(self.journal.duplicate)
        self.lease: KernelLease
        self.vips: VipManager
        self.routed: RoutedVips
        self.own: OwnNode
        self.in_force: InForce
        self.alone: Alone
        self.stats: ClusterStats
        self.traffic: TrafficExchange
        self.replication: Replication
        self.conntrack: ConntrackReplication | None = None
        self.resources = Resources(node.resources, self._resource_changed)
        self._steering: SteeringTask
        self._loads: LoadMeter
        self._restart: PlannedRestart
        self.refusals = Refusals(self.state.name)
        # For the steering table, for the tables prepared for the next departure, and for the load meter.
        self._workers = worker_pool(node, 3, "cluster")
        self._first_view = asyncio.Event()
        self._owns_nothing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._writer = OwnershipWriter(self.ring, self.state, self._react)
        self._stopping = False
        self._moved_at = 0.0
        self._view_at = time.monotonic()
        gateway.store = self.store
        gateway.report = self.journal.tell
        gateway.view = self.view_plain
        gateway.told_addresses = self._told_addresses
        gateway.take_peers = lambda node: take_peers(self.ring, self.state, node)
        gateway.use_board(self._share)
        self._figures = ClusterFigures(gateway.metrics)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the ring and take part. Returns when this gateway has its first view."""
        gateway, loop, engine = self.gateway, asyncio.get_running_loop(), self.gateway.engine
        self._restart = PlannedRestart(gateway.node.run_dir, self.ring, self.state, self.journal.tell)
        keep = read_held(engine.maps) if self._restart.kept_until else frozenset()
        self.lease = KernelLease(engine.maps.lease)
        if not self._restart.kept_until:
            self.lease.end()
        await asyncio.to_thread(engine.hold, keep)
        self._steering = SteeringTask(engine, self._workers)
        self.in_force = InForce(self.store, gateway.driver, self.state, self._config_in_force)
        gateway.everywhere = self.in_force.everywhere
        self.own = OwnNode(
            gateway.node,
            gateway.started_at,
            self.ring,
            self.state,
            self.resources,
            self.in_force,
            gateway.set_state,
            self._links_changed,
            lambda: gateway.own_addresses,
            lambda: gateway.own_hosts,
        )
        segments = {interface.name: interface.segment for interface in gateway.node.interfaces}
        occupancy = Occupancy(segments, lambda: self.own.links.links)
        self.alone = Alone(occupancy, self._untaken, self._yielding, self._react, self.journal.tell)
        self.vips = VipManager(
            gateway.node,
            engine.hold,
            self.own.links,
            self.strangers.heard,
            self.journal.put_back,
            self.lease.runs,
            lambda: gateway.own_hosts,
        )
        gateway.on_addresses(self.vips.found)
        self.vips.start(self.store.current, keep=keep)
        self.routed = self.own.routed = RoutedVips(gateway, self.lease.runs, self.journal.tell)
        self.routed.start(self.store.current)
        self.replication = Replication(gateway.node, engine.maps, self.ring, gateway.spawn, self._table_complete)
        self.own.replication = self.replication
        if gateway.node.conntrack.replicate:
            self.conntrack = self.own.conntrack = ConntrackReplication(
                gateway.node, self.ring, lambda: gateway.own_addresses, lambda _: self._publish()
            )
        self._loads = LoadMeter(engine.maps, lambda: self.store.current, self._workers)
        self.traffic = TrafficExchange(
            self.node, self.ring, lambda: gateway.control.publish("traffic", {"kind": "traffic.wanted"})
        )
        self.stats = ClusterStats(
            self.node, self.ring, engine.maps, self.resources, self._status, self._vip_figures, self._figures.turn
        )
        self.store.attach(self.ring)
        self.store.on_change(self._config_changed)
        self._subscribe()
        await self.resources.start()
        self._look_for_others()
        self.alone.look_around()
        self.ring.start()
        self.replication.start()
        if self.conntrack is not None:
            self.conntrack.start()
        self._tasks = [
            loop.create_task(self._steering.run(), name="steering"),
            loop.create_task(self.in_force.run(), name="configuration in force"),
            loop.create_task(self._tick(), name="cluster tick"),
            loop.create_task(self.stats.run(), name="cluster stats"),
            loop.create_task(self._loads.run(), name="VIP loads"),
        ]
        try:
            async with asyncio.timeout(FIRST_VIEW_TIMEOUT_S):
                await self._first_view.wait()
        except TimeoutError:
            log.warning("no view of the ring within %.0f s: going on, waiting for one", FIRST_VIEW_TIMEOUT_S)
        self._figures.collect(self.ring, self.replication, self.conntrack)

    def _subscribe(self) -> None:
        ring = self.ring
        ring.on_view(self._view)
        ring.on_token(self._token)
        ring.on_left(self._left)
        ring.on_complete(self._data_complete)
        ring.on_replaced(self._data_replaced)
        for prefix in (REPORT_PREFIX, SLOW_START_PREFIX):
            ring.data.watch(prefix, self._health_shared)

    async def stop(self, planned: bool) -> None:
        """Leave the cluster: for a moment (`planned`: addresses stay, peers wait), or for good (addresses go first)."""
        if not planned:
            await self.routed.leave(self.store.current.policy.withdrawal_ms / 1000)
        self._stopping = self.own.stopping = True
        await self.resources.stop()
        with contextlib.suppress(TimeoutError, OutcomeUnknown, RequestRefused, MulticastFailed):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await (self._excuse_myself() if planned else self._give_up_all())
        await self.ring.leave()
        self.ring.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._restart.close()
        await self.replication.close()
        if self.conntrack is not None:
            await self.conntrack.close()
        await self.store.close()
        await self.vips.close()
        await self.routed.close()
        self.alone.found_others()
        self.own.close()
        self._workers.shutdown(wait=True)

    async def _excuse_myself(self) -> None:
        """Ask the others to wait, then let the kernel answer without us."""
        if self.state.serving:
            self.lease.renew(await self._restart.excuse())

    async def _give_up_all(self) -> None:
        """Hand every address to somebody else before leaving."""
        self.own.publish()
        if self.state.view is not None and len(self.state.view.members) > 1:
            self._react()
            await self._owns_nothing.wait()
        self.vips.want(frozenset())
        await self.vips.settled()

    # --- what the ring says ------------------------------------------------------------------------------------------

    def _view(self, view: View) -> None:
        before = self.state.view
        self.state.take_view(view)
        if len(view.members) > 1:
            self.alone.found_others()
        self.state.shut_out = self._has_left()
        self._view_at = time.monotonic()
        self.strangers.judging = False
        if self.node in view.joined and not self._restart.keeping:
            # Whatever this gateway owned, the group may have given to others.
            self.vips.disown()
        self._figures.view(before, view)
        if view.joined and self.node not in view.joined:
            # Whoever joins may have claimed the addresses while it was on its own: the keeper has the last word.
            self.vips.announce_again()
        self._react()
        self.replication.take_view(view)
        if self.conntrack is not None:
            self.conntrack.take_view(view)
        self.gateway.board.members_changed(view.members)
        self.journal.view(before, view)
        self._first_view.set()
        self._publish(anew=self.node in view.joined)

    def _token(self, visit: TokenVisit) -> None:
        if not self.state.serving or not self.state.complete or self._stopping or self.vips.disowning:
            return
        # A lease stretched for a restart is not cut short by the first visits after it.
        self.lease.renew(max(visit.lease_until, self._restart.kept_until))
        self.vips.lease_renewed()

    def _left(self, left: Left) -> None:
        """The others have this gateway no more: they have its addresses from now on, and it takes none alone."""
        if left.struck_off:
            self.state.struck_off, self.state.view = True, None
            self.ring.stay_out(STRUCK_OFF_S)
            self._hold_nothing()
            self._publish()
            self.journal.tell(struck_off(self.gateway.name))

    def _data_complete(self, complete: bool) -> None:
        if complete:
            self.state.read_all()
            self.gateway.spawn(self._settle(self.store.settle()), "shared configuration")
            self._publish(anew=True)
            self._react()

    async def _settle(self, decided: Coroutine[Any, Any, None]) -> None:
        await decided
        self._publish()
        self._react()

    def _data_replaced(self, _replaced: Replaced) -> None:
        """Two groups became one and this node's state was not the one that was kept."""
        self.journal.merged()

    # --- deciding and acting -----------------------------------------------------------------------------------------

    def _react(self) -> None:
        """Bring this gateway, and on the coordinator the cluster, to where the state says it should be."""
        state = self.state
        self.in_force.news()
        if state.view is None or not state.complete or not self._tasks:
            return
        if any(holding.owner == self.node for holding in state.holdings.values()):
            self._owns_nothing.clear()
        else:
            self._owns_nothing.set()
        cluster = state.cluster(self.store.current)
        # The way to the others first: what a new address attracts must not be steered to a node that is gone.
        self._steering.want(peering(cluster, self.node, self.own.local_links()))
        hold = to_hold(cluster, self.node, () if self._restart.keeping else state.unconfirmed)
        new = hold - self.vips.taken.keys()
        self.vips.want(hold)
        taken = new & self.vips.taken.keys() & state.holdings.keys()
        self._figures.taken(state.holdings[address] for address in taken)
        self.ring.set_in_use(in_use(cluster, routed=bool(self.store.current.routed_vips)))
        self.strangers.member_macs |= frozenset(mac for fact in cluster.facts.values() for _, mac in fact.macs)
        self._restart.watch()
        if not self._restart.keeping and not self._is_patient() and not self._stopping:
            self.routed.follow(cluster, self.own.standing(), self.store.current)
        if self._writer.busy or self._is_patient():
            return
        now = time.time()
        writes = confirm(cluster, self.node, state.unconfirmed)
        writes += hand_on(cluster, self.node, self.vips.held, now)
        if state.coordinator == self.node:
            known = {write.address for write in writes}
            due = decide(cluster, may_rebalance=self._may_move(), now=now, occupied=self.alone.left_alone())
            writes += [write for write in due if write.address not in known]
        if writes:
            self.gateway.spawn(self._writer.write(writes), "VIP ownership")
        elif self._waits_for_release(cluster.holdings):
            self.gateway.spawn(self._after_release(), "VIP release")

    def _look_for_others(self) -> None:
        ring = self.gateway.node.ring
        if ring is not None and ring.peers:
            self.alone.wait()

    def _is_patient(self) -> bool:
        """Whether to wait for others before anything is taken: this gateway is alone, or in a splinter.

        Gateways that come back together may find each other before they find the rest, who have everything by then.
        """
        view, ring = self.state.view, self.gateway.node.ring
        if view is None or ring is None or not self.alone.waits:
            return False
        if len(view.members) == 1:
            return True
        known = self.state.holdings.items()
        holders = {holding.owner for address, holding in known if address not in self.state.unconfirmed}
        return len(view.members) <= len(ring.peers) and holders.isdisjoint(view.members)

    def _untaken(self) -> Iterator[Vip]:
        return (vip for vip in self.store.current.vips if vip.host not in self.vips.taken and not self._stopping)

    def _yielding(self) -> Iterator[Vip]:
        there = self.refusals.others_there(time.monotonic())
        return (vip for vip in self.store.current.vips if there and vip.host in self.vips.taken)

    def _may_move(self) -> bool:
        return time.monotonic() - self._moved_at >= self.store.current.policy.hold_after_move_s

    def _waits_for_release(self, holdings: Mapping[str, Holding]) -> bool:
        return any(
            holding.owner == self.node and holding.releasing and address in self.vips.held
            for address, holding in holdings.items()
        )

    async def _after_release(self) -> None:
        await self.vips.settled()
        self._react()

    def _holding_changed(self, address: str, before: Holding | None, after: Holding | None) -> None:
        reason = self.journal.holding(address, before, after)
        if reason is not None:
            self._moved_at = time.monotonic()
            self._figures.moved(reason)

    # --- this node ---------------------------------------------------------------------------------------------------

    def _publish(self, *, anew: bool = False) -> None:
        facts = self.own.publish(anew=anew)
        if self._is_back(facts):
            self._restart.over()

    def _is_back(self, facts: NodeFacts) -> bool:
        """Whether nobody has to wait for this gateway any more: it has what it had before its restart, or something has
        failed meanwhile and others are to have it."""
        able = facts.standing in (Standing.READY, Standing.IMPAIRED) or bool(self.resources.failed)
        return able and self.state.serving and self.state.complete and not self.state.doubts_own

    def _table_complete(self, complete: bool) -> None:
        self._publish()
        if complete:
            self.journal.tell(Event("node.ready", "the connection table is complete"))

    def _resource_changed(self, resource: ResourceState) -> None:
        self._judge_critical()
        kind, severity = ("resource.good", "info") if resource.healthy else ("resource.failed", "warning")
        what = "is good" if resource.healthy else "has failed"
        required = "required" if resource.required else "advisory"
        text = f"{required} resource {resource.name} {what}: {resource.detail}"
        self.journal.tell(Event(kind, text, subject=resource.name, severity=severity))
        self._publish()

    def _judge_critical(self) -> None:
        """Under the policy that asks for it, a gateway without its critical resources leaves the ring. It serves
        nothing from then on until it is in a view again."""
        self.ring.set_critical_resource(self.resources.critical_ok)
        if self._has_left() and not self.state.shut_out:
            self.state.shut_out = True
            # Those who go on decide without this gateway from now on.
            self.state.unconfirmed = set(self.state.holdings)
            self._hold_nothing()
        elif self.state.shut_out and not self._has_left():
            # What has brought the critical resources back may bring the others back in a moment.
            self._look_for_others()

    def _hold_nothing(self) -> None:
        """At once, whatever the copy of the shared data is worth by now."""
        self.lease.end()
        self.vips.want(frozenset())
        self.routed.withdraw()

    def _has_left(self) -> bool:
        ring = self.gateway.node.ring
        return ring is not None and ring.partition_policy == "critical" and not self.resources.critical_ok

    def _links_changed(self, came_up: bool) -> None:
        if came_up:
            self._look_for_others()
        self._publish()
        self.vips.links_changed()
        self._react()

    def _config_changed(self, _old: ClusterConfig, _new: ClusterConfig) -> None:
        self.in_force.follow()
        self._react()

    def _config_in_force(self, config: ClusterConfig) -> None:
        self.vips.configure(config)
        self._publish()
        self._react()

    def _share(self, key: str, value: bytes | None) -> None:
        if value is None:
            del self.ring.data[key]
        else:
            self.ring.data[key] = value

    def _health_shared(self, changes: list[Change]) -> None:
        for change in changes:
            self.gateway.board.shared(change.key, change.item.value if change.item else None)

    async def _tick(self) -> None:
        """What may be due without anything having been said: a move for balance, facts that time changes."""
        while True:
            await asyncio.sleep(TICK_S)
            self._judge_strangers()
            self._publish()
            for event in self.refusals.take(time.monotonic(), self.ring.turned_away()):
                self.journal.tell(event)
            forget_strangers(self.ring, self.state)
            self.state.loads = self.stats.vip_loads(self.state.view.members) if self.state.view is not None else {}
            self._react()

    def _judge_strangers(self) -> None:
        could, can = self.strangers.judging, self.state.complete and time.monotonic() - self._view_at > JUDGE_AFTER_S
        self.strangers.judging = can
        if can and not could:
            self.vips.question_all()

    # --- showing -----------------------------------------------------------------------------------------------------

    def view_plain(self) -> dict[str, Any] | None:
        """The committed view as the API shows it."""
        view = self.state.view
        if view is None:
            return None
        return {
            "number": view.number,
            "group": view.group,
            "members": [self.state.name(node) for node in view.members],
            "serving": self.state.serving,
            "coordinator": self.state.name(self.state.coordinator),
        }

    def _told_addresses(self) -> dict[str, str]:
        told = self.state.cluster(self.store.current).gateway_addresses
        return {address: self.state.name(node) for address, node in told.items()}

    def _status(self) -> dict[str, Any]:
        connections = self.gateway.census.seen
        tracked = {} if self.conntrack is None else {"conntrack": self.conntrack.counts()}
        replicated = {"replication": self.replication.counts(), **tracked}
        return self.gateway.node_status() | {"connections": connections, **replicated}

    def _vip_figures(self) -> VipFigures:
        return VipFigures(self._loads.rates, max(0.0, (self.lease.until - time.monotonic()) * 1000))
