# SPDX-License-Identifier: Apache-2.0
"""A simulated cluster: product nodes, clocks that drift and jump, processes that stall and die, one event at a time."""

from __future__ import annotations

import heapq
import random
from collections import deque
from math import inf
from typing import Any

from sync.config import Policy, RingConfig
from sync.events import (
    CriticalResource,
    Datagrams,
    Deliver,
    Direct,
    Done,
    Effect,
    Event,
    Leave,
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
from sync.ring.lineage import EpochId
from sync.ring.regeneration import Ring
from sync.transport.effects import Path, PeerConfig, Transmit
from tests.sim import outsiders
from tests.sim.checkers import WORKLOAD_CHANNEL, Checkers, Violation
from tests.sim.network import Address, Network
from tests.sim.scenario import Scenario
from tests.sim.shared import SharedWorkload

SETTLE_BOUND_S = 20.0
"""After healing, everything must have converged within this simulated time."""
TIMELINE_MAX = 400


class Clock:
    """A node's own clock over the simulated time."""

    def __init__(self, offset: float, rate: float) -> None:
        self.offset = offset
        self.rate = rate

    def read(self, now: float) -> float:
        return now * self.rate + self.offset

    def when(self, local: float) -> float:
        return (local - self.offset) / self.rate


class Instance:
    """One life of a node."""

    def __init__(self, config: RingConfig, incarnation: int, node: Node) -> None:
        self.config = config
        self.incarnation = incarnation
        self.node = node
        self.identity = (config.node, incarnation)
        self.absent = False
        """Asked to leave, or shut out."""
        self.shut_out = False
        self.paused_until = 0.0
        self.waiting: list[Event] = []
        """What happens to it while it is stalled."""
        self.timer_at = inf
        self.epoch_before: EpochId | None = None
        """Epoch of its token when the current step began."""
        self.crash_after: int | None = None
        """Die after that many effects of the next step."""
        self.open_tags: dict[int, list[bytes]] = {}
        self.shared: SharedWorkload | None = None

    @property
    def ring(self) -> Ring:
        return self.node._ring


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
        self.checkers = Checkers(scenario.mode, leases=not scenario.jump_rate)
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
        self._probes: list[bytes] = []
        """Sent after healing; everybody must deliver them."""
        for node in self.clocks:
            self.at(self.rng.random() * scenario.join_spread_ms / 1000, "start", node)
        for kind in (
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
        ):
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
        getattr(self, f"_do_{kind}")(what)

    def note(self, text: str) -> None:
        self.timeline.append(f"{self.now * 1000:10.3f} ms  {text}")

    @property
    def living(self) -> list[Instance]:
        return list(self.instances.values())

    # ---------------------------------------------------------------------------------------------------- the run

    def run(self, steps: int) -> None:
        """The safety phase, then healing and convergence."""
        while self.steps < steps:
            self.advance()
        self.heal()
        self.converge()

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

    def converge(self) -> None:
        limit = self.now + SETTLE_BOUND_S
        probed: set[object] = set()
        check = self.steps
        while True:
            self.advance()
            if self.now > limit:
                raise Violation(
                    "convergence", self._unsettled() or self._unprobed() or "nothing is missing, but it came too late"
                )
            if self.steps < check:
                continue
            check = self.steps + 20
            if self._unsettled() is not None:
                continue
            view = self.living[0].node.view
            if view in probed and self._unprobed() is None:
                break
            if view not in probed:
                probed.add(view)
                self._probe()
        self._compare_digests()

    def _probe(self) -> None:
        self._probes = [f"{self._next()} {i.incarnation} 0 probe".encode() for i in self.living]
        for instance, probe in zip(self.living, self._probes, strict=True):
            self.multicast(instance, [probe], Order.SAFE)

    def _unprobed(self) -> str | None:
        for instance in self.living:
            missed = [probe for probe in self._probes if probe not in self.checkers.record(instance).seen]
            if missed:
                return f"{instance.identity[0]} has not delivered {missed[0]!r}"
        return None

    def _unsettled(self) -> str | None:
        """What is still missing to a settled cluster; None when nothing is."""
        if len(self.instances) < len(self.clocks):
            return f"nodes {sorted(set(self.clocks) - set(self.instances))} are not up"
        away = [instance.identity[0] for instance in self.living if instance.absent]
        if away:
            return f"nodes {away} have not come back yet"
        views = {instance.node.view for instance in self.living}
        if len(views) != 1 or None in views:
            return f"different views: { {i.identity[0]: i.node.view and i.node.view[:2] for i in self.living} }"
        view = next(iter(views))
        current = {instance.identity for instance in self.living}
        if view is None or set(zip(view.members, view.incarnations, strict=True)) != current:
            return f"view {view} does not hold all nodes"
        open_tags = {i.identity[0]: list(i.open_tags)[:3] for i in self.living if i.open_tags}
        if open_tags:
            return f"requests without an outcome: {open_tags}"
        for instance in self.living:
            if instance.shared is not None and (missing := instance.shared.unsettled()) is not None:
                return f"shared data of {instance.identity[0]}: {missing}"
        digests = {i.identity[0]: i.shared.digest() for i in self.living if i.shared is not None}
        if len(set(digests.values())) > 1:
            return f"digests differ: {digests}"
        return None

    def _compare_digests(self) -> None:
        counts = {i.identity[0]: self.checkers.record(i).count for i in self.living}
        keys = {self.checkers.record(i).key for i in self.living}
        digests = {self.checkers.record(i).digest for i in self.living}
        if len(keys) == 1 and len(digests) != 1:
            raise Violation("atomicity", f"after healing, delivered in the same view: {counts}")

    # ------------------------------------------------------------------------------------------------- life, death

    def _do_start(self, node: int) -> None:
        if node in self.instances:
            return
        scenario = self.scenario
        config = RingConfig(
            node=node,
            peers={peer: self._paths(peer) for peer in self.clocks if peer != node},
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
        if scenario.shared_rate:
            instance.shared = SharedWorkload(node, incarnation, self.checkers)
        self.note(f"{node} starts as {incarnation}" + (f", remembers view {remembered}" if remembered else ""))
        self._step(instance, Timer())

    def _paths(self, peer: int) -> PeerConfig:
        paths = tuple(Path(link, Address(peer, link)) for link in range(self.scenario.links))
        return PeerConfig(paths, parallel=self.scenario.parallel)

    def _do_crash(self, _: Any) -> None:
        if self.healed:
            return
        if self.instances:
            self.rng.choice(self.living).crash_after = self.rng.randrange(6)
        self._again("crash")

    def _die(self, instance: Instance) -> None:
        node = instance.identity[0]
        self.note(f"{node} dies")
        self.remembered[node] = instance.ring.view_number
        del self.instances[node]
        instance.timer_at = inf
        self.at(self.now + self.scenario.restart_ms / 1000 * self.rng.uniform(0.2, 1.5), "start", node)

    def _do_pause(self, _: Any) -> None:
        if self.healed:
            return
        if self.instances:
            instance = self.rng.choice(self.living)
            instance.paused_until = self.now + self.scenario.pause_ms / 1000 * self.rng.uniform(0.2, 1.5)
            self.note(f"{instance.identity[0]} stalls for {(instance.paused_until - self.now) * 1000:.1f} ms")
            self.at(instance.paused_until, "resume", instance)
        self._again("pause")

    def _do_resume(self, instance: Instance) -> None:
        if instance.paused_until > self.now and not self.healed:
            return
        instance.paused_until = 0.0
        waiting, instance.waiting = instance.waiting, []
        for event in waiting or [Timer()]:
            self._step(instance, event)

    # ------------------------------------------------------------------------------------------------------ faults

    def _do_partition(self, _: Any) -> None:
        if self.healed:
            return
        side = {node for node in self.clocks if self.rng.random() < 0.5}
        cut = {
            (a, b, link)
            for a in self.clocks
            for b in self.clocks
            for link in range(self.scenario.links)
            if (a in side) != (b in side)
        }
        self._cut(cut, f"partition {sorted(side)} | {sorted(set(self.clocks) - side)}")
        self._again("partition")

    def _do_one_way(self, _: Any) -> None:
        if self.healed:
            return
        a, b = self.rng.sample(sorted(self.clocks), 2)
        self._cut({(a, b, link) for link in range(self.scenario.links)}, f"{a} no longer reaches {b}")
        self._again("one_way")

    def _do_link(self, _: Any) -> None:
        if self.healed:
            return
        a, b = self.rng.sample(sorted(self.clocks), 2)
        link = self.rng.randrange(self.scenario.links)
        self._cut({(a, b, link), (b, a, link)}, f"link {link} between {a} and {b} is cut")
        self._again("link")

    def _cut(self, cut: set[tuple[int, int, int]], text: str) -> None:
        self.note(text)
        self.network.cut |= cut
        self.at(self.now + self.scenario.fault_ms / 1000 * self.rng.uniform(0.3, 2), "mend", (cut, text))

    def _do_mend(self, what: tuple[set[tuple[int, int, int]], str]) -> None:
        if not self.healed:
            self.note(f"mended: {what[1]}")
            self.network.cut -= what[0]

    def _do_jump(self, _: Any) -> None:
        if self.healed:
            return
        node = self.rng.choice(sorted(self.clocks))
        low = -0.1 if self.scenario.jump_back else 0.0
        jump = self.rng.uniform(low, 0.1)
        self.clocks[node].offset += jump
        self.note(f"clock of {node} jumps by {jump * 1000:.1f} ms")
        if node in self.instances:
            self._arm(self.instances[node])
        self._again("jump")

    def _do_leave(self, _: Any) -> None:
        if self.healed:
            return
        if self.instances:
            instance = self.rng.choice(self.living)
            if not instance.absent:
                instance.absent = True
                instance.shut_out = self.scenario.policy is Policy.CRITICAL and self.rng.random() < 0.5
                self.note(f"{instance.identity[0]} is told to leave")
                self._step(instance, CriticalResource(False) if instance.shut_out else Leave())
                self.at(self.now + self.rng.uniform(0.01, 0.3), "rejoin", instance)
        self._again("leave")

    def _do_rejoin(self, instance: Instance) -> None:
        if instance.absent and self.instances.get(instance.identity[0]) is instance:
            instance.absent = False
            self._step(instance, CriticalResource(True) if instance.shut_out else Rejoin())

    # --------------------------------------------------------------------------------------------------- outsiders

    def _do_strike(self, _: Any) -> None:
        if not self.healed:
            outsiders.strike_off(self)
            self._again("strike")

    def _do_eligible(self, what: tuple[Instance, int | None]) -> None:
        outsiders.set_eligible(self, *what)

    def _do_relay(self, _: Any) -> None:
        if not self.healed:
            outsiders.relay(self)
            self._again("relay")

    # ---------------------------------------------------------------------------------------------------- workload

    def _next(self) -> int:
        self._message += 1
        return self._message

    def _do_multicast(self, _: Any) -> None:
        if self.healed:
            return
        rng, scenario = self.rng, self.scenario
        if self.instances:
            instance = rng.choice(self.living)
            bulk = rng.random() < 0.3
            count = rng.randrange(2, 40) if rng.random() < scenario.burst else 1
            size = rng.randrange(1500, 90_000) if rng.random() < scenario.large else rng.randrange(60)
            payloads = [
                f"{self._next()} {instance.incarnation} {int(bulk)} ".encode().ljust(size, b".") for _ in range(count)
            ]
            order = rng.choice((Order.AGREED, Order.SAFE))
            self.multicast(instance, payloads, order, bulk=bulk, urgent=rng.random() < 0.7)
        self._again("multicast")

    def multicast(
        self, instance: Instance, payloads: list[bytes], order: Order, *, bulk: bool = False, urgent: bool = True
    ) -> None:
        self._tag += 1
        self.checkers.sent.update(payloads)
        instance.open_tags[self._tag] = payloads
        self._step(instance, Multicast(self._tag, WORKLOAD_CHANNEL, payloads, order, bulk, urgent))

    def _do_shared(self, _: Any) -> None:
        if self.healed:
            return
        users = [instance for instance in self.living if instance.shared is not None]
        if users:
            instance = self.rng.choice(users)
            assert instance.shared is not None
            instance.shared.act(self.clocks[instance.identity[0]].read(self.now), self.rng)
            self._drain_shared(instance)
        self._again("shared")

    # ------------------------------------------------------------------------------------------------------- steps

    def _do_datagram(self, what: tuple[Address, Address, bytes]) -> None:
        source, target, data = what
        instance = self.instances.get(target.node)
        if instance is not None:
            self._step(instance, Datagrams([(target.link, source, data, 0)]))

    def _do_timer(self, what: tuple[Instance, float]) -> None:
        instance, when = what
        if instance.timer_at == when and self.instances.get(instance.identity[0]) is instance:
            instance.timer_at = inf
            self._step(instance, Timer())

    def _step(self, instance: Instance, event: Event) -> None:
        node = instance.identity[0]
        if self.instances.get(node) is not instance:
            return
        if instance.paused_until > self.now:
            instance.waiting.append(event)
            return
        self.steps += 1
        token = instance.ring.token
        instance.epoch_before = token.epoch if token is not None else None
        effects = instance.node.step(self.clocks[node].read(self.now), event)
        self.checkers.tokens(instance, self.living)
        for effect in effects:
            if instance.crash_after is not None and type(effect) is not Trace:
                if instance.crash_after == 0:
                    self._die(instance)
                    return
                instance.crash_after -= 1
            self._carry_out(instance, effect)
            if self.instances.get(node) is not instance:
                return
        if self.steps % 16 == 0:
            self.checkers.bounds(instance)
        if instance.shared is not None:
            self._drain_shared(instance)
        self._arm(instance)

    def _arm(self, instance: Instance) -> None:
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
                for after, source, target, data in self.network.send(node, effect):
                    self.at(self.now + after, "datagram", (source, target, data))
            case Deliver():
                self.checkers.deliver(instance, effect, self.living)
                if instance.shared is not None:
                    instance.shared.delivered(self.clocks[node].read(self.now), effect)
            case ViewChanged(view):
                self.note(f"{node} commits view {view.number} {view.members} joined {sorted(view.joined)}")
                self.checkers.view_changed(instance, view, self.living, self.now)
                if instance.shared is not None:
                    instance.shared.view_changed(self.clocks[node].read(self.now), view)
            case TokenVisit():
                self.checkers.record(instance).lease = self.clocks[node].when(effect.lease_until)
            case Done(tag):
                self._done(instance, tag)
            case Refused(tag, refusal):
                if instance.open_tags.pop(tag, None) is None and instance.shared is not None:
                    instance.shared.refused(tag, refusal)
            case PeerMessage(peer, _, _, payload):
                if instance.shared is not None:
                    instance.shared.from_peer(self.clocks[node].read(self.now), peer, bytes(payload))
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
            missing = [p for p in payloads if p not in self.checkers.record(instance).seen]
            if missing:
                raise Violation("done means delivered", f"{instance.identity}: {missing[0][:40]!r} was not delivered")

    def _drain_shared(self, instance: Instance) -> None:
        shared = instance.shared
        assert shared is not None
        node = instance.identity[0]
        if self.instances.get(node) is not instance or instance.paused_until > self.now:
            return
        for _ in range(16):
            events: list[Multicast | Direct | Event] = shared.take(self.clocks[node].read(self.now))
            if not events:
                return
            for event in events:
                self._inner_step(instance, event)

    def _inner_step(self, instance: Instance, event: Event) -> None:
        if self.instances.get(instance.identity[0]) is not instance:
            return
        self.steps += 1
        for effect in instance.node.step(self.clocks[instance.identity[0]].read(self.now), event):
            self._carry_out(instance, effect)
        self._arm(instance)
