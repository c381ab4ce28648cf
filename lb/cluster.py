# SPDX-License-Identifier: Apache-2.0
"""This gateway's part in the cluster: the ring, and everything that is decided over it.

What happens when: a committed view or a change of the shared data is taken into `ClusterState`; `_react` then makes
this gateway hold what the state says it owns, hands on what it has released, and, on the coordinator, plans. All
decisions are pure functions of the replicated state (`lb.ownership`); this file carries them out.
"""

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from ebpf.layout import Setting
from ebpf.reasons import REASONS
from lb import __version__
from lb.announce import Claim
from lb.cluster_methods import register_methods
from lb.cluster_state import ClusterState
from lb.config import NodeConfig
from lb.events import Event, pack_event, unpack_event
from lb.health.board import REPORT_PREFIX, SLOW_START_PREFIX, HealthBoard
from lb.links import LinkWatch
from lb.model import ClusterConfig
from lb.ownership import (
    HOLDING_PREFIX,
    NOBODY,
    NODE_PREFIX,
    RESTART_PREFIX,
    Holding,
    NodeFacts,
    Write,
    confirm,
    decide,
    hand_on,
    pack,
    reason_text,
    to_hold,
)
from lb.packet_engine import read_held
from lb.placement import Standing
from lb.replication import Replication
from lb.resources import Resources, ResourceState
from lb.shared_config import SharedStore
from lb.steering import LocalLink, Peering, SteeringWriter, peering
from lb.vip_manager import VipManager
from sync.config import Mode, Policy, RingConfig
from sync.data import OutcomeUnknown, RequestRefused, VersionConflict
from sync.driver import MulticastFailed, Ring, peer_paths
from sync.events import Deliver, TokenVisit, View
from sync.key_file import load_key_file
from sync.shared import Change, Replaced

if TYPE_CHECKING:
    from lb.daemon import Daemon

CHANNEL_EVENTS = 17
CHANNEL_STATS = 19
# A planned restart: how long the kernel may answer without the daemon, and how long the others wait for it.
RESTART_LEASE_S = 20.0
RESTART_GRACE_S = RESTART_LEASE_S + 1.0
RESTART_FILE = "restart.msgpack"
FIRST_VIEW_TIMEOUT_S = 10.0
RELEASE_TIMEOUT_S = 3.0
STATS_INTERVAL_S = 1.0
# A gateway that is alone because it has just started, or because its links have just come back, first looks for the
# others before it takes what may be theirs.
PATIENCE_S = 1.0
LEASE_NEVER_NS = 0
SERVED_REASONS = [reason.number for reason in REASONS if reason.kind == "sent" or reason.name == "PASS_LOCAL"]
_STATES = {
    Standing.READY: "in_service",
    Standing.DRAINED: "draining",
    Standing.JOINING: "joining",
    Standing.OUT: "out_of_service",
}
_MODES = {"consistent": Mode.CONSISTENT, "fast": Mode.FAST}
_POLICIES = {"continue": Policy.ALL, "majority": Policy.MAJORITY, "critical": Policy.CRITICAL}
log = logging.getLogger("lb.cluster")


def ring_config(node: NodeConfig) -> RingConfig:
    """The ring's settings from the node file. Raises what the key file and the addresses raise, with the remedy."""
    ring = node.ring
    assert ring is not None
    return RingConfig(
        node=node.node.id,
        peers={peer.id: peer_paths(ring.listen, peer.addresses) for peer in ring.peers.values()},
        cluster=node.cluster,
        keys=load_key_file(Path(ring.key_file)),
        encrypt=ring.encrypt,
        failure_detection_ms=float(ring.failure_detection_ms),
        mode=_MODES[ring.mode],
        policy=_POLICIES[ring.partition_policy],
    )


class Cluster:
    """The daemon's component for a gateway with a ring."""

    name = "cluster"

    def __init__(self, daemon: "Daemon") -> None:
        node = daemon.node
        assert node.ring is not None
        self.daemon = daemon
        self.node = node.node.id
        self.store = SharedStore(node.state_dir, tell=self._tell_config)
        ids = {name: peer.id for name, peer in node.ring.peers.items()} | {node.node.name: self.node}
        self.ring = Ring(ring_config(node), list(node.ring.listen), scheduling=node.ring.scheduling)
        self.state = ClusterState(self.ring, self.node, ids, self._react, self._holding_changed)
        self.lease_until = 0.0
        self.token_visits = 0
        self.stats: dict[int, tuple[float, dict[str, Any]]] = {}
        self.vips: VipManager
        self.links: LinkWatch
        self.replication: Replication
        self.resources = Resources(node.resources, self._resource_changed)
        self._steering: SteeringWriter
        self._links_up: set[str] = set()
        self._steering_wanted: Peering | None = None
        self._steering_change = asyncio.Event()
        self._first_view = asyncio.Event()
        self._owns_nothing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._published: NodeFacts | None = None
        self._writing = False
        self._stopping = False
        self._patient_until = 0.0
        # Under a planned restart's stretched lease the packet path goes on answering until this node has confirmed.
        self._kept_until = 0.0
        self._excuses: dict[int, asyncio.TimerHandle] = {}
        self._moved_at = 0.0
        self._left_at: dict[int, float] = {}
        self._token_rate = self._packets_per_s = self._bits_per_s = 0.0
        daemon.store = self.store
        daemon.report = self.report  # type: ignore[method-assign]
        daemon.view = self.view_plain  # type: ignore[method-assign]
        daemon.board = HealthBoard(self.node, self._share, daemon._health_changed)
        self._moves = daemon.metrics.counter("vip_moves_total", "Changes of a VIP's owner seen.", ["reason"])
        self._takeover = daemon.metrics.histogram(
            "takeover_seconds", "From the view that excludes an owner to its VIP being announced here."
        )
        daemon.metrics.collect(self._collect)
        register_methods(self)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the ring and take part. Returns when this gateway has a view and a complete copy of the shared data."""
        daemon, loop = self.daemon, asyncio.get_running_loop()
        engine = daemon.engine
        self._kept_until = read_restart_file(daemon.node.run_dir)
        keep = read_held(engine.maps) if self._kept_until > time.monotonic() else frozenset()
        if not keep:
            self._kept_until = 0.0
            engine.set_lease(LEASE_NEVER_NS)
        await asyncio.to_thread(engine.hold, keep)
        names = [interface.name for interface in daemon.node.interfaces]
        self.links = LinkWatch(loop, names, self._links_changed)
        self.vips = VipManager(daemon.node, engine.hold, self.links, self._duplicate)
        self.vips.start(self.store.current, keep=keep)
        self.replication = Replication(self.node, engine.maps, self.ring, daemon.spawn, self._table_complete)
        self._steering = SteeringWriter(engine.maps)
        self.store.attach(self.ring)
        self.store.on_change(self._config_changed)
        self._subscribe()
        await self.resources.start()
        self._be_patient()
        self.ring.start()
        self.replication.start()
        self._tasks = [
            loop.create_task(self._write_steering(), name="steering"),
            loop.create_task(self._tick(), name="cluster tick"),
        ]
        try:
            await asyncio.wait_for(self._first_view.wait(), FIRST_VIEW_TIMEOUT_S)
        except TimeoutError:
            log.warning("no view of the ring within %.0f s: going on, waiting for one", FIRST_VIEW_TIMEOUT_S)

    def _subscribe(self) -> None:
        ring = self.ring
        ring.on_view(self._view)
        ring.on_token(self._token)
        ring.on_complete(self._data_complete)
        ring.on_replaced(self._data_replaced)
        ring.subscribe(CHANNEL_EVENTS, self._events)
        ring.subscribe(CHANNEL_STATS, self._stats)
        for prefix in (REPORT_PREFIX, SLOW_START_PREFIX):
            ring.data.watch(prefix, self._health_shared)

    async def stop(self, planned: bool) -> None:
        """Leave the cluster: for a moment (`planned`: addresses stay, peers wait), or for good (addresses go first)."""
        self._stopping = True
        await self.resources.stop()
        with contextlib.suppress(TimeoutError, OutcomeUnknown, RequestRefused, MulticastFailed):
            await asyncio.wait_for(self._excuse_myself() if planned else self._give_up_all(), RELEASE_TIMEOUT_S)
        await self.ring.leave()
        self.ring.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for timer in self._excuses.values():
            timer.cancel()
        await self.replication.close()
        await self.store.close()
        await self.vips.close()
        self.links.close()

    async def _excuse_myself(self) -> None:
        """Ask the others to wait, then let the kernel answer without us."""
        if self.state.view is None or self.standing() is Standing.OUT:
            return
        await self.ring.data.put(f"{RESTART_PREFIX}{self.node}", msgpack.packb(RESTART_GRACE_S))
        until = time.monotonic() + RESTART_LEASE_S
        write_restart_file(self.daemon.node.run_dir, until)
        self.daemon.engine.set_lease(int(until * 1e9))

    async def _give_up_all(self) -> None:
        """Hand every address to somebody else before leaving."""
        self._publish_facts()
        if self.state.view is not None and len(self.state.view.members) > 1:
            self._react()
            await self._owns_nothing.wait()
        self.vips.want(frozenset())
        await self.vips.settled()

    # --- what the ring says ------------------------------------------------------------------------------------------

    def _view(self, view: View) -> None:
        before = self.state.view
        self.state.take_view(view)
        now = time.monotonic()
        if self.node in view.joined and self._kept_until <= now:
            # Whatever this gateway owned, the group may have given to others.
            self.vips.want(frozenset())
        gone = set(before.members) - set(view.members) if before is not None else set()
        for node in gone:
            self._left_at[node] = now
        if view.joined and self.node not in view.joined:
            # Whoever joins may have claimed the addresses while it was on its own: the keeper has the last word.
            self.vips.announce_again()
        self.replication.take_view(view)
        self.daemon.board.members_changed(view.members)
        self._journal_view(before, view)
        self._first_view.set()
        if self.node in view.joined:
            self._published = None
        self._publish_facts()
        self._react()

    def _token(self, visit: TokenVisit) -> None:
        self.token_visits += 1
        view = self.state.view
        if view is None or not view.serving or not self.state.complete or self._stopping:
            return
        # A lease stretched for a restart is not cut short by the first visits after it.
        until = max(visit.lease_until, self._kept_until)
        self.lease_until = until
        self.daemon.engine.set_lease(int(until * 1e9))

    def _data_complete(self, complete: bool) -> None:
        if complete:
            self.state.read_all()
            self.daemon.spawn(self.store.settle(), "shared configuration")
            self._publish_facts()
            self._react()

    def _data_replaced(self, _replaced: Replaced) -> None:
        """Two groups became one and this node's state was not the one that was kept."""
        self._published = None
        self._record(Event("cluster.merged", "this gateway's group was merged into another and took over its state"))
        self.vips.announce_again()

    def _events(self, batch: Deliver) -> None:
        for payload in batch.payloads():
            try:
                self.daemon.record(unpack_event(bytes(payload)))
            except ValueError as error:
                log.warning("node %d: %s", batch.origin, error)

    def _stats(self, batch: Deliver) -> None:
        with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
            self.stats[batch.origin] = (time.monotonic(), dict(msgpack.unpackb(bytes(batch.payloads()[-1]))))

    # --- deciding and acting -----------------------------------------------------------------------------------------

    def _react(self) -> None:
        """Bring this gateway, and on the coordinator the cluster, to where the state says it should be."""
        state = self.state
        if state.view is None or not state.complete:
            return
        if any(holding.owner == self.node for holding in state.holdings.values()):
            self._owns_nothing.clear()
        else:
            self._owns_nothing.set()
        cluster = state.cluster(self.store.current)
        now = time.time()
        hold = to_hold(cluster, self.node, () if self._keeping() else state.unconfirmed)
        before = self.vips.taken.keys()
        self.vips.want(hold)
        self._note_takeovers(hold - before)
        self.vips.member_macs = frozenset(mac for fact in cluster.facts.values() for _, mac in fact.macs)
        self._steer(peering(cluster, self.node, self._local_links()))
        self._watch_excuses()
        if self._writing or self._is_patient():
            return
        writes = confirm(cluster, self.node, state.unconfirmed)
        if not self._stopping or writes:
            writes += hand_on(cluster, self.node, self.vips.held, now)
        if state.coordinator == self.node:
            known = {write.address for write in writes}
            writes += [w for w in decide(cluster, may_rebalance=self._may_move(), now=now) if w.address not in known]
        if writes:
            self._writing = True
            self.daemon.spawn(self._write(writes), "VIP ownership")
        elif self._waits_for_release(cluster.holdings):
            self.daemon.spawn(self._after_release(), "VIP release")

    def _be_patient(self) -> None:
        ring = self.daemon.node.ring
        if ring is not None and ring.peers:
            self._patient_until = time.monotonic() + PATIENCE_S
            asyncio.get_running_loop().call_later(PATIENCE_S + 0.001, self._react)

    def _is_patient(self) -> bool:
        view = self.state.view
        return view is not None and len(view.members) == 1 and time.monotonic() < self._patient_until

    def _keeping(self) -> bool:
        return self._kept_until > time.monotonic()

    def _may_move(self) -> bool:
        return time.monotonic() - self._moved_at >= self.store.current.policy.hold_after_move_s

    def _waits_for_release(self, holdings: dict[str, Holding] | Any) -> bool:
        return any(
            holding.owner == self.node and holding.releasing and address in self.vips.held
            for address, holding in holdings.items()
        )

    async def _after_release(self) -> None:
        await self.vips.settled()
        self._react()

    async def _write(self, writes: list[Write]) -> None:
        try:
            async with self.ring.transaction() as change:
                for write in writes:
                    key = HOLDING_PREFIX + write.address
                    change.require(key, self.state.versions.get(write.address, 0) if write.before is not None else 0)
                    if write.after is None:
                        del change[key]
                    else:
                        change[key] = pack(write.after)
        except VersionConflict:
            pass  # somebody was first; what they made of it is decided on anew
        except (OutcomeUnknown, RequestRefused) as error:
            log.info("ownership not written: %s", error)
        finally:
            self._writing = False
            self._react()

    def _note_takeovers(self, taken: frozenset[str]) -> None:
        now = time.monotonic()
        for address in taken:
            holding = self.state.holdings.get(address)
            if holding is not None and holding.reason == "owner_left" and self._left_at:
                self._takeover.observe(now - max(self._left_at.values()))

    def _holding_changed(self, address: str, before: Holding | None, after: Holding | None) -> None:
        """An address changed hands: every gateway writes the same line into its journal."""
        owner, was = after.owner if after else NOBODY, before.owner if before else NOBODY
        if owner == was:
            return
        self._moved_at = time.monotonic()
        reason = after.reason if after else "removed"
        self._moves.add(1, reason)
        name, old = self.state.name(owner), self.state.name(was)
        text = f"{address} is at {name}" if owner else f"{address} is at nobody"
        text += f" (was at {old})" if was else ""
        text += f": {reason_text(reason)}"
        severity = "info" if owner else "error"
        who = after.who if after else ""
        node = self.state.name(owner) if owner else ""
        self._record(Event("vip.moved", text, node=node, subject=address, why=reason, who=who, severity=severity))

    # --- steering ----------------------------------------------------------------------------------------------------

    def _local_links(self) -> list[LocalLink]:
        segments = {interface.name: interface.segment for interface in self.daemon.node.interfaces}
        return [LocalLink(link.index, segments[name], link.mac) for name, link in self.links.links.items()]

    def _steer(self, wanted: Peering) -> None:
        if wanted != self._steering_wanted:
            self._steering_wanted = wanted
            self._steering_change.set()

    async def _write_steering(self) -> None:
        while True:
            await self._steering_change.wait()
            self._steering_change.clear()
            wanted = self._steering_wanted
            assert wanted is not None
            try:
                await asyncio.to_thread(self._put_steering, wanted)
            except OSError as error:
                log.error("steering is not in the packet path: %s", error)
                await asyncio.sleep(0.2)
                self._steering_change.set()

    def _put_steering(self, wanted: Peering) -> None:
        self._steering.write(wanted)
        self.daemon.engine.set_setting(Setting.STEERING, bool(wanted.sharing) and wanted.sharing != (self.node,))

    # --- this node's standing ----------------------------------------------------------------------------------------

    def standing(self) -> Standing:
        """How fit this gateway is, drains left aside (those are shared data of their own)."""
        view = self.state.view
        if self.resources.failed or not self.resources.settled or self._stopping:
            return Standing.OUT
        if view is None or not view.serving:
            return Standing.OUT
        return Standing.READY if self.replication.complete else Standing.JOINING

    def _reason(self) -> str:
        failed = self.resources.failed
        if failed:
            return f"required resource failed: {', '.join(failed)}"
        if not self.resources.settled:
            return "required resources have not been tried yet"
        view = self.state.view
        if view is not None and not view.serving:
            return "the partition policy takes this part of the cluster out of service"
        if not self.replication.complete:
            return "the connection table is not complete yet"
        return "drained by an operator" if self.node in self.state.drained else ""

    def facts(self) -> NodeFacts:
        """What this gateway tells the others of itself."""
        node = self.daemon.node
        up = {i.segment: self.links.links[i.name].mac for i in node.interfaces if self.links.up(i.name)}
        macs = tuple((i.segment, self.links.links[i.name].mac) for i in node.interfaces if i.name in self.links.links)
        tunnel = node.engine.tunnel_sources[0].partition("/")[0] if node.engine.tunnel_sources else ""
        return NodeFacts(
            name=node.node.name,
            standing=int(self.standing()),
            reason=self._reason(),
            segments=tuple(sorted(up)),
            macs=macs,
            tunnel_address=tunnel,
            version=__version__,
            config_version=self.store.current.version,
            started_at=self.daemon.started_at,
        )

    def _publish_facts(self) -> None:
        facts = self.facts()
        drained = self.node in self.state.drained and facts.standing == Standing.READY
        self.daemon.set_state(_STATES[Standing.DRAINED if drained else Standing(facts.standing)], self._reason())
        if facts != self._published and self.state.view is not None:
            self._published = facts
            self.ring.data[f"{NODE_PREFIX}{self.node}"] = pack(facts)
            if facts.standing == Standing.READY:
                self._restart_is_over()

    def _restart_is_over(self) -> None:
        self._kept_until = 0.0
        with contextlib.suppress(OSError):
            os.unlink(self.daemon.node.run_dir / RESTART_FILE)
        if self.node in self.state.restarting:
            del self.ring.data[f"{RESTART_PREFIX}{self.node}"]

    def _table_complete(self, complete: bool) -> None:
        self._publish_facts()
        if complete:
            self.report(Event("node.ready", "the connection table is complete"))

    def _resource_changed(self, resource: ResourceState) -> None:
        self.ring.set_critical_resource(self.resources.critical_ok)
        kind, severity = ("resource.good", "info") if resource.healthy else ("resource.failed", "warning")
        what = "is good" if resource.healthy else "has failed"
        required = "required" if resource.required else "advisory"
        text = f"{required} resource {resource.name} {what}: {resource.detail}"
        self.report(Event(kind, text, subject=resource.name, severity=severity))
        self._publish_facts()

    def _links_changed(self) -> None:
        up = {name for name in self.links.links if self.links.up(name)}
        if up - self._links_up:
            self._be_patient()
        self._links_up = up
        self._publish_facts()
        self.vips.links_changed()
        self._react()

    def _config_changed(self, _old: ClusterConfig, new: ClusterConfig) -> None:
        self.vips.configure(new)
        self._publish_facts()
        self._react()

    def _watch_excuses(self) -> None:
        """A node that asked for patience gets it for a time; the coordinator ends it."""
        for node in self.state.restarting - self._excuses.keys():
            loop = asyncio.get_running_loop()
            self._excuses[node] = loop.call_later(RESTART_GRACE_S, self._end_excuse, node)
        for node in self._excuses.keys() - self.state.restarting:
            self._excuses.pop(node).cancel()

    def _end_excuse(self, node: int) -> None:
        if node not in self.state.restarting:
            return
        if self.state.coordinator == self.node:
            name = self.state.name(node)
            self.report(Event("node.overdue", f"{name} has not come back from its restart in time", severity="warning"))
            del self.ring.data[f"{RESTART_PREFIX}{node}"]
        # Whoever coordinates by then sees to it.
        self._excuses[node] = asyncio.get_running_loop().call_later(1.0, self._end_excuse, node)

    # --- telling -----------------------------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """An event of this gateway, for all journals."""
        named = event if event.node else _with_node(event, self.daemon.node.node.name)
        told = self.state.view is not None and not self._stopping
        if not told or not self.ring.offer(CHANNEL_EVENTS, pack_event(_with_time(named)), bulk=False):
            self._record(named)

    def _record(self, event: Event) -> None:
        self.daemon.record(event)

    def _tell_config(self, kind: str, text: str) -> None:
        self.report(Event(kind, text, severity="warning"))

    def _share(self, key: str, value: bytes | None) -> None:
        if value is None:
            del self.ring.data[key]
        else:
            self.ring.data[key] = value

    def _health_shared(self, changes: list[Change]) -> None:
        for change in changes:
            self.daemon.board.shared(change.key, change.item.value if change.item else None)

    def _duplicate(self, address: str, mac: str, interface: str) -> None:
        text = f"another host ({mac}) on {interface} uses {address}: take it off there"
        self.report(Event("vip.duplicate", text, subject=address, severity="error"))

    def _journal_view(self, before: View | None, view: View) -> None:
        members = ", ".join(self.state.name(node) for node in sorted(view.members))
        left = sorted(set(before.members) - set(view.members)) if before is not None else []
        came = sorted(set(view.members) - set(before.members)) if before is not None else []
        text = f"view {view.number}: {members}"
        text += f"; left: {', '.join(map(self.state.name, left))}" if left else ""
        text += f"; joined: {', '.join(map(self.state.name, came))}" if came else ""
        text += "" if view.serving else "; out of service by the partition policy"
        severity = "warning" if left or not view.serving else "info"
        self._record(Event("view.changed", text, subject=f"view {view.number}", severity=severity))

    def view_plain(self) -> dict[str, Any] | None:
        """The committed view as the API shows it."""
        view = self.state.view
        if view is None:
            return None
        names = [self.state.name(node) for node in view.members]
        coordinator = self.state.name(self.state.coordinator)
        return {
            "number": view.number,
            "group": view.group,
            "members": names,
            "serving": view.serving,
            "coordinator": coordinator,
        }

    async def _tick(self) -> None:
        visits, traffic, at = self.token_visits, self._traffic(), time.monotonic()
        while True:
            await asyncio.sleep(STATS_INTERVAL_S)
            now, before = time.monotonic(), traffic
            traffic = self._traffic()
            self._token_rate = (self.token_visits - visits) / (now - at)
            self._packets_per_s = (traffic[0] - before[0]) / (now - at)
            self._bits_per_s = (traffic[1] - before[1]) * 8 / (now - at)
            visits, at = self.token_visits, now
            packed = msgpack.packb(self.own_stats())
            self.ring.offer(CHANNEL_STATS, packed, bulk=False)
            self._publish_facts()
            self._react()

    def _traffic(self) -> tuple[int, int]:
        """Packets and bytes that this gateway has forwarded or served."""
        _, counters = self.daemon.engine.maps.reason_counters.dump()
        served = counters[SERVED_REASONS]
        return int(served["packets"].sum()), int(served["bytes"].sum())

    def own_stats(self) -> dict[str, Any]:
        """Figures of this gateway that change all the time."""
        return self.daemon.node_status() | {
            "token_rate": self._token_rate,
            "packets_per_s": self._packets_per_s,
            "bits_per_s": self._bits_per_s,
            "connections": self.daemon.sweeps.last.seen,
            "resources": [
                {
                    "name": r.name,
                    "kind": r.kind,
                    "required": r.required,
                    "healthy": r.healthy is not False,
                    "detail": r.detail,
                }
                for r in self.resources.states()
            ],
            "replication": self.replication.counts(),
        }

    def _collect(self) -> None:
        if self._first_view.is_set():
            counts = {name: float(count) for name, count in self.replication.counts().items()}
            self.daemon.metrics.import_counts("replication_total", "Replication by kind.", "what", counts)
            self.daemon.metrics.import_counts("ring_total", "The ring's counters.", "what", self.ring.stats())


def _with_node(event: Event, name: str) -> Event:
    return Event(event.kind, event.message, name, event.subject, event.why, event.who, event.severity, event.time)


def _with_time(event: Event) -> Event:
    at = event.time or time.time()
    return Event(event.kind, event.message, event.node, event.subject, event.why, event.who, event.severity, at)


def write_restart_file(directory: Path, until: float) -> None:
    """Note that the addresses stay answered until then (monotonic seconds; worthless after a reboot, as its clock)."""
    (directory / RESTART_FILE).write_bytes(msgpack.packb([_boot_id(), until]))


def read_restart_file(directory: Path) -> float:
    """Until when an earlier daemon of this boot let the kernel answer; 0 if it did not."""
    try:
        boot, until = msgpack.unpackb((directory / RESTART_FILE).read_bytes())
    except (OSError, ValueError, TypeError, msgpack.UnpackException):
        return 0.0
    return float(until) if boot == _boot_id() else 0.0


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


__all__ = ["Claim", "Cluster", "ring_config"]
