# SPDX-License-Identifier: Apache-2.0
"""A simulated cluster: product nodes, clocks that drift and jump, processes that stall and die, one event at a time."""

from __future__ import annotations

import heapq
import random
from collections import deque
from math import inf
from typing import Any

from sync.config import RingConfig
from sync.events import (
    CriticalResource,
    Datagrams,
    Deliver,
    Done,
    Effect,
    Event,
    Left,
    Multicast,
    Order,
    PeerMessage,
    Refused,
    Rejoin,
    Timer,
    TokenVisit,
    Trace,
    ViewChanged,
)
from sync.node import Node
from sync.transport.effects import Path, PeerConfig, Resolve, Transmit
from tests.sim import faults, outsiders
from tests.sim.checkers import WORKLOAD_CHANNEL, Checkers, Record
from tests.sim.convergence import converge
from tests.sim.instance import Clock, Instance
from tests.sim.network import Address, Network
from tests.sim.scenario import Scenario
from tests.sim.shared import SharedWorkload
from tests.sim.violation import Violation
from tests.sim.workload import WORKLOAD

TIMELINE_MAX = 400
RECURRING = (
    "multicast",
    "crash",
    "pause",
    "partition",
    "one_way",
    "link",
    "jump",
    "leave",
    "shared",
    "relay",
    "strike",
    "cable",
    "hang",
    "lock",
)
"""In the order in which their first instants are drawn: with another one every seed would mean something else."""


class Cluster:
    """Runs one scenario. ``run`` raises ``Violation`` when a rule is broken."""

    def __init__(self, scenario: Scenario, *, trace: bool = False) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed ^ 0x5EED)
        self.now = 0.0
        self.steps = 0
        self.bytes_sent = 0
        self.trace = trace
        self.timeline: deque[str] = deque(maxlen=None if trace else TIMELINE_MAX)
        self.network = Network(scenario, self.rng)
        self.checkers = Checkers(scenario.mode, scenario.policy, leases=not scenario.jump_rate)
        self.clocks = {
            i: Clock(self.rng.uniform(0, 1000), 1 + self.rng.uniform(-1, 1) * scenario.drift)
            for i in range(1, scenario.nodes + 1)
        }
        self.instances: dict[int, Instance] = {}
        self.remembered: dict[int, int] = {}
        self._queue: list[tuple[float, int, str, Any]] = []
        self._order = 0
        self._tag = 0
        self._message = 0
        self.healed = False
        self.eligible_from = 0.0
        """From then on all have the same list of eligible members again."""
        for node in self.clocks:
            self.at(self.rng.random() * scenario.join_spread_ms / 1000, "start", node)
        for kind in RECURRING:
            self._again(kind)

    # ---------------------------------------------------------------------------------------------------- schedule

    def at(self, when: float, kind: str, what: Any) -> None:
        self._order += 1
        heapq.heappush(self._queue, (max(when, self.now), self._order, kind, what))

    def _again(self, kind: str) -> None:
        rate = getattr(self.scenario, f"{kind}_rate")
        if rate:
            self.at(self.now + self.rng.expovariate(rate), kind, None)

    def advance(self) -> None:
        """One event."""
        self.now, _, kind, what = heapq.heappop(self._queue)
        if kind not in RECURRING:
            getattr(self, f"_do_{kind}")(what)
        elif not self.healed:
            (WORKLOAD.get(kind) or faults.FAULTS[kind])(self)
            self._again(kind)

    def note(self, text: str) -> None:
        self.timeline.append(f"{self.now * 1000:10.3f} ms  {text}")

    def local_time(self, instance: Instance) -> float:
        """What this node's clock shows."""
        return self.clocks[instance.identity[0]].read(self.now)

    @property
    def living(self) -> list[Instance]:
        return list(self.instances.values())

    # ---------------------------------------------------------------------------------------------------- the run

    def run(self, steps: int) -> None:
        """The safety phase, then healing and convergence."""
        while self.steps < steps:
            self.advance()
        self.heal()
        converge(self)

    def heal(self) -> None:
        self.note("-- healed")
        self.healed = True
        self.network.heal()
        for node in self.clocks:
            if node not in self.instances:
                self.at(self.now, "start", node)
        for instance in self.living:
            instance.crash_after = None
            self.at(self.now, "resume", instance)
            if self.scenario.strike_rate:
                self.at(self.now, "eligible", (instance, None))
            if instance.absent:
                self.at(self.now, "rejoin", instance)

    # ------------------------------------------------------------------------------------------------- life, death

    def _do_start(self, node: int) -> None:
        if node in self.instances:
            return
        scenario = self.scenario
        config = RingConfig(
            node=node,
            peers={peer: self.paths(peer) for peer in self.clocks if peer != node},
            cluster="sim",
            mode=scenario.mode,
            policy=scenario.policy,
            visit_bytes_max=65536,
            trace=self.trace,
        )
        incarnation = self.rng.getrandbits(40) + 1
        clock = self.clocks[node]
        remembered = self.remembered.get(node, 0) if self.rng.random() < scenario.remember else 0
        product = Node(config, incarnation=incarnation, rng=self.rng, now=clock.read(self.now), view_number=remembered)
        instance = self.instances[node] = Instance(config, incarnation, product)
        if scenario.shared_rate or scenario.lock_rate:
            instance.shared = SharedWorkload(node, incarnation, self.checkers, scenario.lock_lease_ms)
        self.note(f"{node} starts as {incarnation}" + (f", remembers view {remembered}" if remembered else ""))
        self.step(instance, Timer())

    def paths(self, peer: int) -> PeerConfig:
        paths = tuple(Path(link, Address(peer, link)) for link in range(self.scenario.links))
        return PeerConfig(paths, parallel=self.scenario.parallel)

    def die(self, instance: Instance) -> None:
        node = instance.identity[0]
        self.note(f"{node} dies")
        self.remembered[node] = instance.ring.view_number
        del self.instances[node]
        instance.timer_at = inf
        self.at(self.now + self.scenario.restart_ms / 1000 * self.rng.uniform(0.2, 1.5), "start", node)

    def _do_resume(self, instance: Instance) -> None:
        if instance.paused_until > self.now and not self.healed:
            return
        instance.paused_until = 0.0
        waiting, instance.waiting = instance.waiting, []
        for event in waiting or [Timer()]:
            self.step(instance, event)

    def _do_mend(self, what: tuple[set[faults.Way], str]) -> None:
        faults.mend(self, what)

    def _do_eligible(self, what: tuple[Instance, int | None]) -> None:
        outsiders.set_eligible(self, *what)

    def _do_rejoin(self, instance: Instance) -> None:
        if instance.absent and self.instances.get(instance.identity[0]) is instance:
            instance.absent = False
            self.step(instance, CriticalResource(True) if instance.shut_out else Rejoin())

    def next_message(self) -> int:
        self._message += 1
        return self._message

    def next_tag(self) -> int:
        self._tag += 1
        return self._tag

    def multicast(
        self, instance: Instance, payloads: list[bytes], order: Order, *, bulk: bool = False, urgent: bool = True
    ) -> None:
        tag = self.next_tag()
        self.checkers.sent.update(payloads)
        instance.open_tags[tag] = payloads
        self.step(instance, Multicast(tag, WORKLOAD_CHANNEL, payloads, order, bulk, urgent))

    # ------------------------------------------------------------------------------------------------------- steps

    def _do_datagram(self, what: tuple[Address, Address, bytes]) -> None:
        source, target, data = what
        instance = self.instances.get(target.node)
        if instance is not None:
            self.step(instance, Datagrams([(target.link, source, data, 0)]))

    def _do_timer(self, what: tuple[Instance, float]) -> None:
        instance, when = what
        if instance.timer_at == when and self.instances.get(instance.identity[0]) is instance:
            instance.timer_at = inf
            self.step(instance, Timer())

    def step(self, instance: Instance, event: Event) -> None:
        node = instance.identity[0]
        if self.instances.get(node) is not instance:
            return
        if instance.paused_until > self.now:
            instance.waiting.append(event)
            return
        self.steps += 1
        token = instance.ring.token
        instance.epoch_before = token.epoch if token is not None else None
        effects = instance.node.step(self.local_time(instance), event)
        self.checkers.tokens(instance, self.living)
        for effect in effects:
            if instance.crash_after is not None and type(effect) not in (Trace, Resolve):
                if instance.crash_after == 0:
                    self.die(instance)
                    return
                instance.crash_after -= 1
            self._carry_out(instance, effect)
            if self.instances.get(node) is not instance:
                return
        if self.steps % 16 == 0:
            self.checkers.bounds(instance)
        if instance.shared is not None:
            self.drain_shared(instance)
        self.arm(instance)

    def arm(self, instance: Instance) -> None:
        node = instance.identity[0]
        clock = self.clocks[node]
        local = instance.node.deadline()
        if instance.shared is not None:
            local = min(local, instance.shared.deadline())
        when = inf if local == inf else max(self.now, clock.when(local))
        if when == self.now:
            when += 1e-6
        when = max(when, instance.paused_until)
        if when != instance.timer_at and when != inf:
            self.at(when, "timer", (instance, when))
        instance.timer_at = when

    def _carry_out(self, instance: Instance, effect: Effect) -> None:
        node = instance.identity[0]
        match effect:
            case Transmit():
                self.bytes_sent += len(effect.data)
                for after, source, target, data in self.network.send(self.now, node, effect):
                    self.at(self.now + after, "datagram", (source, target, data))
            case Resolve(link, Address(peer)):
                self.network.resolve((node, peer, link))
            case Deliver():
                self.checkers.deliver(instance, effect, self.living)
                if instance.shared is not None:
                    instance.shared.delivered(self.local_time(instance), effect)
            case ViewChanged(view):
                self.note(f"{node} commits view {view.number} {view.members} joined {sorted(view.joined)}")
                self.checkers.view_changed(instance, view, self.living, self.now)
                if instance.shared is not None:
                    instance.shared.view_changed(self.local_time(instance), view)
            case TokenVisit():
                self.checkers.record(instance).lease = self.clocks[node].when(effect.lease_until)
                if instance.shared is not None:
                    instance.shared.shared.on_token(effect.lease_until)
            case Done(tag):
                self._done(instance, tag)
            case Refused(tag, refusal):
                if instance.open_tags.pop(tag, None) is None and instance.shared is not None:
                    instance.shared.refused(tag, refusal)
            case PeerMessage(peer, _, _, payload):
                if instance.shared is not None:
                    instance.shared.from_peer(self.local_time(instance), peer, bytes(payload))
            case Left():
                self.note(f"{node} is out")
                self.checkers.record(instance).view = None
                if instance.shared is not None:
                    instance.shared.left()
            case Trace(reason, peer, detail):
                self.note(f"{node} {reason.name.lower()} {peer or ''} {detail}")

    def _done(self, instance: Instance, tag: int) -> None:
        payloads = instance.open_tags.pop(tag, None)
        if instance.shared is not None:
            instance.shared.done(tag)
        if payloads is not None:
            missing = [p for p in payloads if p not in self.checkers.record(instance).delivered]
            if missing:
                raise Violation("done means delivered", f"{instance.identity}: {missing[0][:40]!r} was not delivered")

    def drain_shared(self, instance: Instance) -> None:
        shared = instance.shared
        assert shared is not None
        node = instance.identity[0]
        if self.instances.get(node) is not instance or instance.paused_until > self.now:
            return
        for _ in range(16):
            events = shared.take(self.local_time(instance))
            if self.checkers.leases and self._holds(instance):
                self.checkers.exclusive.holders(self._holders())
            if not events:
                return
            for event in events:
                self._inner_step(instance, event)

    def _holders(self) -> list[Record]:
        """Of the nodes that run, those that act as the lock's holder, each by its own clock."""
        return [self.checkers.record(instance) for instance in self.living if self._holds(instance)]

    def _holds(self, instance: Instance) -> bool:
        shared = instance.shared
        return instance.paused_until <= self.now and shared is not None and shared.acting(self.local_time(instance))

    def _inner_step(self, instance: Instance, event: Event) -> None:
        if self.instances.get(instance.identity[0]) is not instance:
            return
        self.steps += 1
        for effect in instance.node.step(self.local_time(instance), event):
            self._carry_out(instance, effect)
        self.arm(instance)
