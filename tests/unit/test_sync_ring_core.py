# SPDX-License-Identifier: Apache-2.0
"""Pure parts of the ring as tables: lineage, votes, token operations, queues, states, settings."""

from __future__ import annotations

from typing import Any

import pytest

from sync.config import ConfigError, Policy, RingConfig
from sync.events import Deliver, Order, Refusal
from sync.ring.discovery import FREE_EXCLUSIONS, Discovery, Newcomer
from sync.ring.lineage import NO_EPOCH, Epoch, EpochId, divergence, extends, pruned, related
from sync.ring.membership import (
    TOKEN_TRANSITIONS,
    VIEW_TRANSITIONS,
    States,
    TokenEvent,
    TokenState,
    ViewEvent,
    ViewState,
    diagram,
)
from sync.ring.messages import Call, Verdict
from sync.ring.multicast import Limits, Load, Outbox, Stream, pack
from sync.ring.recovery import judge
from sync.ring.token import FRESH, JOINER, Kind, Member, Parcel, Proposal, Token
from sync.transport.effects import Path, PeerConfig

A, B, C = EpochId(1, 1, 10), EpochId(2, 2, 20), EpochId(3, 3, 30)
LINE = [Epoch(A, 1), Epoch(B, 10), Epoch(C, 20)]


def ring_of(*nodes: int, hop: int = 30, lineage: list[Epoch] | None = None) -> Token:
    """A token that has just visited the last of these nodes; the first had it longest ago."""
    token = Token()
    token.hop = hop
    token.lineage = list(lineage or LINE)
    token.members = [Member(node, node * 10, hop - len(nodes) + 1 + i) for i, node in enumerate(nodes)]
    return token


@pytest.mark.parametrize(
    ("epoch", "last_hop", "continues", "why"),
    [
        (C, 29, True, "same epoch, later hop"),
        (C, 30, False, "the same token again"),
        (B, 19, True, "the fork is behind what it has seen"),
        (B, 20, False, "it has followed the other branch beyond the fork"),
        (A, 9, True, "two forks ago"),
        (A, 15, False, "diverged at the first fork"),
        (EpochId(9, 9, 9), 0, False, "a stranger"),
    ],
)
def test_which_token_continues_what_a_node_has_seen(epoch: EpochId, last_hop: int, continues: bool, why: str) -> None:
    assert extends(LINE, 30, epoch, last_hop) is continues, why


def test_branches_of_one_group_know_where_they_parted() -> None:
    other = [Epoch(A, 1), Epoch(B, 10), Epoch(EpochId(4, 4, 40), 25)]
    assert related(LINE, other)
    assert divergence(LINE, other) == divergence(other, LINE) == 20
    assert not related(LINE, [Epoch(EpochId(7, 7, 7), 1)])


def test_old_epochs_are_forgotten_once_everyone_has_passed_them() -> None:
    line = [Epoch(EpochId(n, 1, 1), n * 10) for n in range(1, 9)]
    assert pruned(line, 85) == line[-4:]
    assert pruned(line, 25) == line[1:]


def call(epoch: EpochId = C, hop: int = 28, *, member: bool = True, members: int = 3) -> Call:
    return Call(1, member, True, epoch, hop, 0, members)


@pytest.mark.parametrize(
    ("question", "caller", "incarnation", "lives", "verdict", "why"),
    [
        (call(), 2, 20, True, Verdict.NO, "the token is here"),
        (call(), 2, 20, False, Verdict.NO, "our copy is newer"),
        (call(hop=31), 2, 20, False, Verdict.YES, "the caller's copy is newer"),
        (call(hop=30), 2, 20, False, Verdict.NO, "equal: the higher id (ours) wins"),
        (call(B, 15), 2, 20, False, Verdict.NO, "ours descends from its epoch"),
        (call(EpochId(9, 2, 20), 40), 2, 20, False, Verdict.YES, "it comes from a newer branch"),
        (call(), 2, 21, False, Verdict.REJECTED, "another incarnation than the member"),
        (call(), 7, 70, False, Verdict.REJECTED, "excluded: same history, not on the list"),
        (call(members=9), 7, 70, False, Verdict.LEFT_OUT, "our splinter does not swallow a large group"),
        (call(EpochId(9, 9, 9), 5), 7, 70, False, Verdict.LEFT_OUT, "a stranger's group"),
        (call(NO_EPOCH, 0, member=False), 7, 70, False, Verdict.REJECTED, "asks to join"),
    ],
)
def test_votes_on_a_911(question: Call, caller: int, incarnation: int, lives: bool, verdict: Verdict, why: str) -> None:
    assert judge(question, caller, incarnation, 3, ring_of(1, 2, 3), lives) is verdict, why


def test_a_node_without_a_ring_says_so() -> None:
    assert judge(call(), 2, 20, 3, None, False) is Verdict.STARTING


def test_messages_leave_the_token_when_all_have_them() -> None:
    token = ring_of(1, 2, 3)
    token.append(3, 16, Order.AGREED, 2, pack([b"a", b"b"]))
    token.settle()
    assert (len(token.parcels), token.stable) == (1, 0)
    token.hop, token.members[0].last_hop = 31, 31
    token.hop, token.members[1].last_hop = 32, 32
    token.settle()
    assert (token.parcels, token.stable) == ([], 2), "the last receiver drops it, whoever sent it"


def test_a_view_is_cancelled_only_while_its_lost_member_has_not_got_it() -> None:
    token = ring_of(1, 2, 3)
    token.propose(3, Order.SAFE, True)
    token.remove(1)
    assert [parcel.kind for parcel in token.parcels] == [Kind.CANCELLED]
    again = token.propose(3, Order.SAFE, True)
    assert token.parcels == [again], "the new view takes the cancelled one's place"
    assert Proposal.decode(again.body).number == 2
    received = ring_of(1, 2, 3)
    received.propose(3, Order.SAFE, True)
    received.members[0].last_hop = received.hop
    received.remove(1)
    assert [parcel.kind for parcel in received.parcels] == [Kind.VIEW]


def test_a_newcomer_follows_its_inviter_and_owes_nothing_older() -> None:
    token = ring_of(1, 2, 3)
    token.append(1, 16, Order.AGREED, 1, pack([b"new"]))
    token.invite(1, 9, 90, 41)
    assert [member.id for member in token.members] == [1, 9, 2, 3]
    entry = token.member(9)
    assert entry is not None
    assert entry.flags == JOINER | FRESH
    assert entry.last_hop == token.hop - 1, "what was added in this visit still has to reach it"
    proposal = Proposal.decode(token.propose(1, Order.SAFE, True).body)
    assert (proposal.number, proposal.joined) == (42, frozenset({9}))


def test_a_view_of_the_past_does_not_make_a_member_that_is_invited_again_less_new() -> None:
    token = ring_of(1, 2, 3)
    token.propose(3, Order.SAFE, True)
    token.hop += 5
    token.members[0].last_hop = token.members[1].last_hop = token.hop
    token.invite(1, 3, 30, 0)
    entry = token.member(3)
    assert entry is not None
    token.settle()
    assert not token.parcels, "all have the old view"
    assert entry.flags & FRESH, "but it was for the life of the member that is over"
    token.propose(1, Order.SAFE, True)
    for member in token.members:
        member.last_hop = token.hop
    token.settle()
    assert not entry.flags & FRESH


def test_rank_puts_state_before_size_before_id() -> None:
    small, large = ring_of(8), ring_of(1, 2)
    assert small.rank() < large.rank()
    small.standing = 1
    assert small.rank() > large.rank()
    assert ring_of(2).rank() > ring_of(1).rank()


LIMITS = Limits(queue_bytes=1000, queue_requests=5, message_bytes=400, visit_bytes=300)


def taken(outbox: Outbox) -> list[Load]:
    return outbox.take(10_000)


def test_small_requests_travel_packed_and_before_bulk() -> None:
    outbox = Outbox(LIMITS)
    assert outbox.put(1, 16, Order.AGREED, [b"bulk" * 20], True) is None
    assert outbox.put(2, 16, Order.AGREED, [b"a"], False) is None
    assert outbox.put(3, 16, Order.AGREED, [b"b", b"c"], False) is None
    assert outbox.put(4, 17, Order.SAFE, [b"d"], False) is None
    loads = taken(outbox)
    assert [(load.channel, load.messages, load.tags) for load in loads] == [
        (16, 3, [(2, 0), (3, 2)]),
        (17, 1, [(4, 0)]),
        (16, 1, [(1, 0)]),
    ]
    assert not outbox
    assert outbox.bytes == 0


def test_a_request_larger_than_a_visit_is_spread_over_several() -> None:
    outbox = Outbox(LIMITS)
    assert outbox.put(1, 16, Order.AGREED, [bytes([i]) * 100 for i in range(7)], False) is None
    counts = [[(load.messages, load.tags) for load in taken(outbox)] for _ in range(3)]
    assert counts == [[(3, [])], [(3, [])], [(1, [(1, 0)])]]


def test_a_message_larger_than_a_visit_goes_alone() -> None:
    outbox = Outbox(LIMITS)
    outbox.put(1, 16, Order.AGREED, [b"x" * 400], False)
    outbox.put(2, 16, Order.AGREED, [b"y"], False)
    assert [load.tags for load in taken(outbox)] == [[(1, 0)]]
    assert [load.tags for load in taken(outbox)] == [[(2, 0)]]


@pytest.mark.parametrize(
    ("payloads", "refusal"),
    [([b"x" * 401], Refusal.TOO_LARGE), ([], Refusal.TOO_LARGE), ([b"x" * 300] * 3, Refusal.QUEUE_FULL)],
)
def test_back_pressure(payloads: list[bytes], refusal: Refusal) -> None:
    outbox = Outbox(LIMITS)
    outbox.put(0, 16, Order.AGREED, [b"x" * 200], False)
    assert outbox.put(1, 16, Order.AGREED, payloads, False) is refusal
    for tag in range(10, 20):
        refused = outbox.put(tag, 16, Order.AGREED, [b"y"], False)
    assert refused is Refusal.QUEUE_FULL


def test_what_was_begun_is_failed_when_its_history_is_lost() -> None:
    outbox = Outbox(LIMITS)
    outbox.put(1, 16, Order.AGREED, [b"x" * 200] * 3, False)
    outbox.put(2, 16, Order.AGREED, [b"y"], False)
    taken(outbox)
    assert outbox.drop_started() == [1]
    assert [load.tags for load in taken(outbox)] == [[(2, 0)]]


def parcel(position: int, order: Order, kind: Kind = Kind.MESSAGES) -> Parcel:
    return Parcel(position, 1, 1, 16, order, kind, 1, b"")


def test_nothing_overtakes_a_safe_message_that_waits() -> None:
    stream = Stream()
    stream.take([parcel(0, Order.AGREED), parcel(1, Order.SAFE), parcel(2, Order.AGREED)])
    stream.take([parcel(1, Order.SAFE), parcel(2, Order.AGREED)])
    assert [p.position for p in stream.ready()] == [0]
    stream.stable = 2
    assert [p.position for p in stream.ready()] == [1, 2]


def test_a_cancelled_view_no_longer_blocks() -> None:
    stream = Stream()
    stream.take([parcel(0, Order.SAFE, Kind.VIEW), parcel(1, Order.AGREED)])
    assert list(stream.ready()) == []
    stream.take([parcel(0, Order.SAFE, Kind.CANCELLED)])
    assert [p.position for p in stream.ready()] == [0, 1]


def test_payloads_come_apart_as_they_were_packed() -> None:
    payloads = [b"", b"a", b"bc" * 50]
    body = memoryview(pack(payloads))
    batch = Deliver(16, 1, Order.AGREED, 1, 7, 3, body[:12], body[12:])
    assert [bytes(payload) for payload in batch.payloads()] == payloads


def test_transitions_outside_of_the_table_are_defects() -> None:
    states = States()
    assert (states.token, states.view) == (TokenState.STARVING, ViewState.CHAOS)
    with pytest.raises(KeyError):
        states.on_token(TokenEvent.PASS)
    states.on_token(TokenEvent.ALONE)
    states.on_view(ViewEvent.RESERVED)
    states.on_view(ViewEvent.COMMITTED)
    assert (states.token, states.view) == (TokenState.EATING, ViewState.AGREEMENT)
    states.on_token(TokenEvent.ABANDON)
    assert states.view is ViewState.CHAOS, "who starves is in Chaos (thesis figure 11)"


def test_the_diagram_in_the_docs_is_the_table() -> None:
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "docs" / "protocol.md").read_text()
    assert diagram() in text, "run python -m sync.ring.membership and paste its output into docs/protocol.md"
    assert len(diagram().splitlines()) > len(TOKEN_TRANSITIONS) + len(VIEW_TRANSITIONS)


def test_a_node_that_keeps_failing_is_left_alone_for_longer_and_longer() -> None:
    discovery = Discovery(RingConfig(node=1))
    for _ in range(FREE_EXCLUSIONS):
        discovery.failed(5, 0.0, invited=False)
    assert discovery.invitable(5, 0.0)
    discovery.failed(5, 0.0, invited=False)
    assert not discovery.invitable(5, 0.07)
    assert discovery.invitable(5, 0.09)
    discovery.failed(5, 0.1, invited=False)
    assert not discovery.invitable(5, 0.25)
    assert discovery.invitable(6, 0.0)


def test_only_who_hears_us_is_invited() -> None:
    discovery = Discovery(RingConfig(node=1))
    discovery.offered(77, Newcomer(5, 50, 3, 0.0))
    assert discovery.take(0.0) == []
    assert discovery.acknowledged(77, 0.01)
    assert [newcomer.node for newcomer in discovery.take(0.02)] == [5]
    discovery.offered(78, Newcomer(5, 50, 3, 0.0))
    discovery.unacknowledged(78)
    assert not discovery.acknowledged(78, 0.01)


PEER = PeerConfig((Path(0, "x"),))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"node": 0}, "1..255"),
        ({"node": 2, "peers": {2: PEER}}, "list only the others"),
        ({"peers": {300: PEER}}, "300"),
        ({"failure_detection_ms": 1}, "looks dead"),
        ({"turn_idle_ms": 36}, "lease"),
        ({"hungry_ms": 10}, "healthy ring calls 911"),
        ({"hungry_ms": 500}, "lower it"),
        ({"beacon_ms": 10}, "raise it"),
        ({"visit_bytes_max": 10}, "1 KiB"),
        ({"message_bytes_max": 99 << 20}, "queue_bytes_max"),
        ({"message_bytes_max": 30 << 20, "queue_bytes_max": 60 << 20}, "in pieces"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RingConfig(**{"node": 1, **settings})


def test_timers_follow_from_one_number() -> None:
    slow, fast = RingConfig(node=1, failure_detection_ms=400).timers, RingConfig(node=1).timers
    assert slow.turn_idle == pytest.approx(10 * fast.turn_idle)
    assert 1.2 * fast.turn_idle < fast.failure_after, "the lease outlives a rest of the token"
    assert 1.3 * fast.turn_idle < fast.hungry_idle, "a healthy ring does not call 911"


def test_majority_needs_more_than_half() -> None:
    config = RingConfig(node=1, peers={2: PEER, 3: PEER, 4: PEER}, policy=Policy.MAJORITY)
    assert [config.serving(members, 4) for members in (1, 2, 3, 4)] == [False, False, True, True]
