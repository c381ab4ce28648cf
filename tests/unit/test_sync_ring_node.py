# SPDX-License-Identifier: Apache-2.0
"""Whole nodes on a perfect wire: what the simulator's random workload does not use, and what a user sees first."""

from __future__ import annotations

import heapq
import random

import pytest

from sync.config import Mode, Policy, RingConfig
from sync.events import (
    CriticalResource,
    Datagrams,
    Deliver,
    Direct,
    Done,
    Effect,
    Eligible,
    Event,
    Leave,
    Left,
    Multicast,
    Order,
    PeerMessage,
    Refusal,
    Refused,
    Rejoin,
    Standing,
    Timer,
    TokenVisit,
    ViewChanged,
)
from sync.node import Node
from sync.ring.membership import TokenState
from sync.transport.effects import Path, PeerConfig, Transmit

DELAY = 0.0002


class Wire:
    """Nodes 1..n, one clock, every datagram arrives after ``DELAY``; ``dead`` nodes neither send nor receive."""

    def __init__(self, count: int, **settings: object) -> None:
        self.now = 0.0
        self.dead: set[int] = set()
        self.seen: dict[int, list[Effect]] = {}
        self.nodes: dict[int, Node] = {}
        self._queue: list[tuple[float, int, int, int, bytes, int]] = []
        self._order = 0
        self._rng = random.Random(7)
        self._everyone = range(1, count + 1)
        self._settings = settings
        for node in self._everyone:
            self.start(node)

    def start(self, node: int) -> None:
        peers = {peer: PeerConfig((Path(0, peer),)) for peer in self._everyone if peer != node}
        config = RingConfig(node=node, peers=peers, **self._settings)  # type: ignore[arg-type]
        self.nodes[node] = Node(config, incarnation=self._rng.getrandbits(40) + 1, rng=self._rng, now=self.now)
        self.seen[node] = []
        self.dead.discard(node)

    def feed(self, node: int, event: Event) -> list[Effect]:
        effects = self.nodes[node].step(self.now, event)
        for effect in effects:
            if isinstance(effect, Transmit):
                self._order += 1
                assert isinstance(effect.address, int)
                arrival = (self.now + DELAY, self._order, effect.address, node, bytes(effect.data), effect.segment_size)
                heapq.heappush(self._queue, arrival)
        self.seen[node] += effects
        return effects

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            timer, node = min((n.deadline(), i) for i, n in self.nodes.items() if i not in self.dead)
            if self._queue and self._queue[0][0] <= timer:
                self.now, _, target, source, data, segment_size = heapq.heappop(self._queue)
                if target not in self.dead:
                    self.feed(target, Datagrams([(0, source, data, segment_size)]))
            else:
                self.now = max(self.now, min(timer, end))
                if timer <= end:
                    self.feed(node, Timer())

    def of(self, node: int, kind: type) -> list[Effect]:
        return [effect for effect in self.seen[node] if isinstance(effect, kind)]

    def delivered(self, node: int) -> list[bytes]:
        return [bytes(p) for batch in self.of(node, Deliver) if isinstance(batch, Deliver) for p in batch.payloads()]

    def members(self, node: int) -> set[int]:
        view = self.nodes[node].view
        return set(view.members) if view is not None else set()


@pytest.fixture
def ring() -> Wire:
    wire = Wire(3)
    wire.run(0.5)
    assert all(wire.members(node) == {1, 2, 3} for node in (1, 2, 3))
    return wire


def test_everybody_delivers_the_same_in_the_same_order(ring: Wire) -> None:
    for node in (1, 2, 3):
        ring.feed(node, Multicast(node, 20, [b"%d-%d" % (node, i) for i in range(5)], Order.SAFE))
    ring.run(0.1)
    assert len(ring.delivered(1)) == 15
    assert ring.delivered(1) == ring.delivered(2) == ring.delivered(3)
    assert any(isinstance(effect, Done) and effect.tag == 2 for effect in ring.seen[2])


def test_a_large_message_arrives_whole(ring: Wire) -> None:
    large = bytes(range(256)) * 2000
    ring.feed(1, Multicast(1, 20, [large], bulk=True))
    ring.run(0.3)
    assert ring.delivered(3) == [large]


def test_detection_and_return(ring: Wire) -> None:
    ring.dead.add(1)
    died = ring.now
    while ring.members(2) != {2, 3} or ring.members(3) != {2, 3}:
        ring.run(0.001)
        assert ring.now < died + 0.15, "death to new view at all survivors"
    ring.start(1)
    ring.run(0.3)
    assert all(ring.members(node) == {1, 2, 3} for node in (1, 2, 3))
    view = ring.nodes[1].view
    assert view is not None
    assert view.joined == {1}


@pytest.mark.parametrize("mode", Mode)
def test_a_lease_outlives_an_idle_turn_and_ends_before_the_others_go_on(mode: Mode) -> None:
    ring = Wire(3, mode=mode)
    ring.run(0.5)
    for _ in range(40):
        ring.run(0.003)
        for node in (1, 2, 3):
            lease = ring.of(node, TokenVisit)[-1]
            assert isinstance(lease, TokenVisit)
            assert lease.lease_until > ring.now + 0.005, "an idle ring's members never lose their leases"
    visits = [effect for effect in ring.of(2, TokenVisit) if isinstance(effect, TokenVisit)]
    ring.dead.add(2)
    while 2 in ring.members(1) or 2 in ring.members(3):
        ring.run(0.0005)
    assert visits[-1].lease_until < ring.now


def test_idle_members_pass_the_token_at_once_and_the_lowest_rests(ring: Wire) -> None:
    before = len(ring.of(3, TokenVisit))
    ring.run(1.0)
    visits = len(ring.of(3, TokenVisit)) - before
    assert 42 <= visits <= 46, f"{visits} turns a second"


def test_a_question_about_an_idle_token_is_passed_on_from_member_to_member() -> None:
    """Only its resting place misses it early; the one that cannot hand it on learns of it in time."""
    ring = Wire(5)
    ring.run(0.5)
    view = ring.nodes[1].view
    assert view is not None
    order = view.members[view.members.index(1) :] + view.members[: view.members.index(1)]
    while ring.nodes[1].states.token is TokenState.EATING:
        ring.run(0.0001)
    begin, last = ring.now, order[-1]
    ring.dead.add(last)
    while last in ring.members(1):
        ring.run(0.0005)
    assert ring.now - begin < 0.040 + 0.006


def test_what_is_not_urgent_waits_for_the_idle_token_and_does_not_speed_it_up(ring: Wire) -> None:
    before = len(ring.of(3, TokenVisit))
    for i in range(100):
        ring.feed(2, Multicast(i, 20, [b"x" * 100], urgent=False))
        ring.run(0.01)
    assert len(ring.delivered(1)) >= 98
    assert len(ring.of(3, TokenVisit)) - before < 80


def test_an_urgent_message_does_not_wait_for_the_idle_token(ring: Wire) -> None:
    ring.run(0.1)
    ring.feed(3, Multicast(1, 20, [b"now"]))
    ring.run(8 * DELAY)
    assert ring.delivered(3) == [b"now"]


@pytest.mark.parametrize("sender", [1, 2, 3])
@pytest.mark.parametrize(("order", "turns"), [(Order.AGREED, 2), (Order.SAFE, 4)])
def test_an_urgent_message_hastens_the_token_for_as_long_as_its_order_needs(
    ring: Wire, order: Order, turns: int, sender: int
) -> None:
    while ring.nodes[1].states.token is not TokenState.EATING:
        ring.run(0.0005)
    before = sum(len(ring.of(node, TokenVisit)) for node in (1, 2, 3))
    ring.feed(sender, Multicast(1, 20, [b"now"], order))
    ring.run(0.01)  # the token rests for longer than that
    assert all(ring.delivered(node) == [b"now"] for node in (1, 2, 3))
    assert sum(len(ring.of(node, TokenVisit)) for node in (1, 2, 3)) - before <= 3 * turns


def test_leave_and_rejoin(ring: Wire) -> None:
    ring.feed(2, Leave())
    ring.run(0.05)
    assert ring.of(2, Left)
    assert ring.members(1) == ring.members(3) == {1, 3}
    assert ring.feed(2, Multicast(9, 20, [b"x"])) == [Refused(9, Refusal.LEFT)]
    ring.run(0.5)
    assert ring.members(1) == {1, 3}, "it stays away"
    ring.feed(2, Rejoin())
    ring.run(0.3)
    assert ring.members(2) == {1, 2, 3}


def test_a_node_in_no_ring_multicasts_through_a_member(ring: Wire) -> None:
    ring.feed(3, Leave())
    ring.run(0.05)
    ring.feed(3, Multicast(77, 20, [b"from outside"], Order.SAFE, via=1))
    ring.run(0.05)
    assert ring.delivered(1) == ring.delivered(2) == [b"from outside"]
    assert [effect.tag for effect in ring.of(3, Done) if isinstance(effect, Done)] == [77]
    ring.dead.add(1)
    ring.feed(3, Multicast(78, 20, [b"lost"], via=1))
    ring.run(0.2)
    assert Refused(78, Refusal.UNREACHABLE) in ring.seen[3]


def test_a_lost_critical_resource_shuts_a_node_out() -> None:
    ring = Wire(3, policy=Policy.CRITICAL)
    ring.run(0.5)
    ring.feed(1, CriticalResource(False))
    ring.run(0.05)
    assert ring.members(2) == {2, 3}
    ring.feed(1, CriticalResource(True))
    ring.run(0.3)
    assert ring.members(1) == {1, 2, 3}


def test_without_majority_nobody_serves() -> None:
    ring = Wire(3, policy=Policy.MAJORITY)
    ring.run(0.5)
    ring.dead |= {1, 2}
    ring.run(0.3)
    view = ring.nodes[3].view
    assert view is not None
    assert (view.members, view.serving) == ((3,), False)
    assert ring.feed(3, Multicast(1, 20, [b"x"])) == [Refused(1, Refusal.NOT_SERVING)]


def test_direct_messages(ring: Wire) -> None:
    ring.feed(1, Direct(5, 2, 30, b"hello"))
    ring.feed(1, Direct(6, 9, 30, b"nobody"))
    ring.run(0.05)
    assert [(m.peer, m.channel, bytes(m.payload)) for m in ring.of(2, PeerMessage) if isinstance(m, PeerMessage)] == [
        (1, 30, b"hello")
    ]
    assert Done(5, -1) in ring.seen[1]
    assert Refused(6, Refusal.UNKNOWN_PEER) in ring.seen[1]
    with pytest.raises(ValueError, match="belongs to the ring"):
        ring.feed(1, Direct(7, 2, 0, b"x"))


def _strike_off_node_3(ring: Wire, *nodes: int) -> None:
    for node in nodes:
        ring.feed(node, Eligible({peer: PeerConfig((Path(0, peer),)) for peer in (1, 2) if peer != node}))


def test_a_member_that_is_no_longer_eligible_takes_its_leave_before_the_others_go_on(ring: Wire) -> None:
    _strike_off_node_3(ring, 1, 2)
    while ring.members(1) == {1, 2, 3} and ring.members(2) == {1, 2, 3}:
        ring.run(0.0001)
    visits = [effect for effect in ring.seen[3] if isinstance(effect, TokenVisit)]
    lease = [visit for visit in visits if visit.members][-1]
    end = visits[visits.index(lease) + 1]
    assert end.lease_until < ring.now < lease.lease_until, "the others went on after its end, but did not wait for it"
    ring.run(0.3)
    assert ring.members(1) == ring.members(2) == {1, 2}
    assert any(isinstance(effect, Left) for effect in ring.seen[3])
    assert ring.nodes[1].counters["peer_unreachable"] + ring.nodes[2].counters["peer_unreachable"] == 0


def test_a_member_that_will_not_go_is_removed_when_it_has_had_the_token(ring: Wire) -> None:
    ring.nodes[3]._ring._must_go = lambda token, own: False  # type: ignore[method-assign]
    _strike_off_node_3(ring, 1, 2)
    ring.run(0.3)
    assert ring.members(1) == ring.members(2) == {1, 2}
    assert sum(ring.nodes[node].counters["stayed_on"] for node in (1, 2)) == 1


def test_a_member_whose_address_goes_to_another_is_given_up_only_after_the_failure_budget(ring: Wire) -> None:
    begin = ring.now
    for node in (1, 2):
        peers = {peer: PeerConfig((Path(0, peer),)) for peer in (1, 2) if peer != node}
        ring.feed(node, Eligible({**peers, 4: PeerConfig((Path(0, 3),))}))
    while ring.members(1) == {1, 2, 3} or ring.members(2) == {1, 2, 3}:
        ring.run(0.001)
        assert ring.now < begin + 1
    assert ring.members(1) == ring.members(2) == {1, 2}
    assert ring.now - begin >= ring.nodes[1].config.timers.failure_after


def test_the_group_of_higher_standing_keeps_its_history() -> None:
    ring = Wire(3)
    ring.dead |= {2, 3}
    ring.run(0.5)
    ring.feed(1, Standing(5))
    others = Wire(3)
    others.dead.add(1)
    others.now = ring.now
    others.run(0.5)
    ring.nodes.update({2: others.nodes[2], 3: others.nodes[3]})
    ring.now = max(ring.now, others.now)
    assert (ring.members(1), ring.members(2)) == ({1}, {2, 3})
    ring.dead.clear()
    ring.run(1.5)
    joined = [e.view.joined for e in ring.of(1, ViewChanged) if isinstance(e, ViewChanged)]
    assert ring.members(1) == {1, 2, 3}
    assert frozenset({2, 3}) in joined or {2, 3} <= set().union(*joined)
    assert not any(1 in each for each in joined), "one member of higher standing is not absorbed by two"
