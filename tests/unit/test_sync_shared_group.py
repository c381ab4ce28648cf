# SPDX-License-Identifier: Apache-2.0
"""Joining, merging and repairing: how copies become equal while writes go on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.shared import Committed, Complete, Kind, Operation, Phase, Replaced, limits, transfer
from sync.shared.commands import encode
from sync.shared.effects import Effect
from sync.shared.rounds import Report, choose
from tests.unit.sync_shared_bus import Bus

SET, DELETE = Operation.SET, Operation.DELETE


def fill(bus: Bus, node: int, count: int, size: int = 10) -> None:
    for start in range(0, count, 500):
        keys = range(start, min(count, start + 500))
        bus.shared(node).write(bus.now, [(SET, f"item/{n}", b"%d" % n + b"." * size) for n in keys])
    bus.settle()


def test_a_joiner_gets_everything_while_writes_go_on() -> None:
    bus = Bus(seed=1)
    bus.form(1, 2)
    fill(bus, 1, 3000, size=1000)
    bus.start(3)
    bus.commit([1, 2, 3], joined=[3])
    for n in range(300):
        bus.shared(1 + n % 2).write(bus.now, [(SET, f"item/{n * 10}", b"new"), (DELETE, f"item/{n * 10 + 1}")])
        bus.step()
    assert bus.shared(3).phase is Phase.FETCHING, "the writes should have been made during the transfer"
    bus.settle()
    bus.assert_equal()
    assert bus.items(3)["item/2990"] == b"new"
    assert len(bus.items(3)) == 2700
    assert [e.complete for e in bus.members[3].told if isinstance(e, Complete)] == [True]


def test_a_joiners_own_requests_wait_for_its_copy() -> None:
    bus = Bus()
    bus.form(1, 2)
    fill(bus, 1, 2000, size=1000)
    bus.start(3)
    bus.commit([1, 2, 3], joined=[3])
    ticket = bus.shared(3).write(bus.now, [(SET, "late", b"x")])
    bus.settle()
    assert isinstance(bus.answer(3, ticket), Committed)
    assert bus.items(1)["late"] == b"x"


@pytest.mark.parametrize("victim", [1, 2])
def test_the_death_of_a_donor_during_the_transfer_delays_but_does_not_stop_it(victim: int) -> None:
    bus = Bus(seed=3)
    bus.form(1, 2)
    fill(bus, 1, 3000, size=1000)
    bus.start(3)
    bus.commit([1, 2, 3], joined=[3])
    for _ in range(12):
        bus.step()
    assert bus.shared(3).phase is Phase.FETCHING
    bus.kill(victim)
    bus.commit([node for node in (1, 2, 3) if node != victim])
    bus.settle()
    bus.assert_equal()
    assert len(bus.items(3)) == 3000


def test_when_every_complete_copy_dies_the_others_agree_on_what_they_have() -> None:
    bus = Bus(seed=4)
    bus.form(1)
    fill(bus, 1, 3000, size=1000)
    bus.start(2, 3)
    bus.commit([1, 2, 3], joined=[2, 3])
    for _ in range(4):
        bus.step()
    bus.kill(1)
    bus.commit([2, 3])
    bus.wait(10)
    bus.assert_equal()
    fill(bus, 2, 10)
    bus.assert_equal()
    assert len(bus.items(3)) == 10


def test_lost_transfer_messages_are_asked_for_again_from_another_donor() -> None:
    bus = Bus(seed=5)
    bus.form(1, 2)
    fill(bus, 1, 2000, size=1000)
    bus.drop_peer = lambda source, target: source == 1 or target == 1
    bus.start(3)
    bus.commit([1, 2, 3], joined=[3])
    bus.wait(5)
    bus.assert_equal()


def test_a_merge_moves_only_the_buckets_that_differ() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    fill(bus, 1, 20_000, size=500)
    bus.commit([1, 2])
    bus.commit([3])
    bus.settle()
    bus.shared(3).write(bus.now, [(SET, "item/5", b"theirs"), (SET, "only/3", b"")])
    bus.shared(1).write(bus.now, [(SET, "item/7", b"ours")])
    bus.settle()
    before = bus.peer_messages
    bus.commit([1, 2, 3], joined=[3])
    bus.settle()
    bus.assert_equal()
    assert bus.peer_messages - before <= 4, "three buckets fit one part: fetch, part, acknowledgement, last"
    assert bus.items(3)["item/7"] == b"ours"
    assert bus.items(3)["item/5"].startswith(b"5.")
    assert "only/3" not in bus.items(3)
    assert (bus.replaced(1), bus.replaced(3)) == (0, 1)


def test_versions_of_given_up_history_are_not_used_again() -> None:
    bus = Bus()
    bus.form(1, 2)
    bus.commit([1])
    bus.commit([2])
    for node, count in ((1, 3), (2, 50)):
        for _ in range(count):
            bus.shared(node).write(bus.now, [(SET, f"by/{node}", b"")])
    bus.settle()
    given_up = bus.shared(2).replica.clock
    bus.commit([1, 2], joined=[2])
    bus.settle()
    ticket = bus.shared(2).write(bus.now, [(SET, "x", b"")])
    bus.settle()
    result = bus.answer(2, ticket)
    assert isinstance(result, Committed)
    assert result.version > given_up
    bus.assert_equal()


def test_a_replaced_copy_tells_whether_the_lineage_changed() -> None:
    bus = Bus()
    bus.form(1)
    bus.start(2)
    bus.commit([2])
    bus.settle()
    bus.commit([1, 2], joined=[2])
    bus.settle()
    bus.commit([1])
    bus.commit([2])
    bus.commit([1, 2], joined=[2])
    bus.settle()
    assert [e.lineage_changed for e in bus.members[2].told if isinstance(e, Replaced)] == [True, False]


def test_damage_in_one_copy_is_found_and_repaired_by_the_majority() -> None:
    bus = Bus(compare_interval_s=1.0)
    bus.form(1, 2, 3)
    fill(bus, 1, 2000)
    bucket = bus.shared(1).replica.items._buckets[17]
    key = next(iter(bucket))
    bucket[key] = bucket[key]._replace(value=b"damaged")
    bus.members[1].mirror[key] = b"damaged"
    bus.wait(90)
    assert bus.shared(1).counters["buckets_damaged"] == 1
    assert bus.shared(2).counters["comparisons_differing"] == 1
    assert bus.items(1)[key] != b"damaged"
    bus.assert_equal()


def test_a_comparison_of_equal_copies_changes_nothing_and_disturbs_no_request() -> None:
    bus = Bus(compare_interval_s=1.0)
    bus.form(1, 2, 3)
    fill(bus, 1, 100)
    tickets = []
    for n in range(50):
        tickets.append(bus.shared(2).write(bus.now, [(SET, "x", b"%d" % n)]))
        if n % 5 == 0:
            bus.shared(1)._multicast(Kind.COMPARE)
        bus.step()
    bus.settle()
    assert all(isinstance(bus.answer(2, ticket), Committed) for ticket in tickets)
    assert bus.items(3)["x"] == b"49"
    assert bus.replaced(1) == bus.replaced(2) == bus.replaced(3) == 0
    assert bus.shared(3).counters["comparisons"] == 10
    bus.assert_equal()


def test_deferred_commands_are_bounded_and_the_joiner_still_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DEFERRED_BYTES_MAX", 2000)
    bus = Bus(seed=7)
    bus.form(1, 2)
    fill(bus, 1, 2000, size=1000)
    bus.start(3)
    bus.commit([1, 2, 3], joined=[3])
    for n in range(200):
        bus.shared(1).write(bus.now, [(SET, "x", b"%d" % n * 10)])
        bus.step()
    bus.wait(5)
    assert bus.shared(3).counters["deferred_overflows"] > 0
    bus.assert_equal()


def test_leaving_and_coming_back() -> None:
    bus = Bus()
    bus.form(1, 2)
    fill(bus, 1, 10)
    bus.shared(2).on_left()
    bus.commit([1])
    assert not bus.shared(2).complete
    bus.settle()
    fill(bus, 1, 20)
    bus.commit([1, 2], joined=[2])
    bus.settle()
    bus.assert_equal()
    told = [effect.complete for effect in bus.members[2].told if isinstance(effect, Complete)]
    assert told == [True, False, True]


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_equal_streams_make_equal_copies_through_any_history(seed: int) -> None:
    """Random writes, locks and queues, deaths, joins, partitions and merges; in the end all copies are equal."""
    bus = Bus(seed=seed)
    bus.form(1, 2, 3)
    rng = bus.rng
    for _ in range(60):
        node = rng.choice(list(bus.members))
        shared = bus.shared(node)
        match rng.randrange(8):
            case 0 | 1 | 2:
                shared.write(bus.now, [(SET, f"k{rng.randrange(9)}", rng.randbytes(4))])
            case 3:
                shared.submit(bus.now, Kind.ACQUIRE, f"l{rng.randrange(2)}", 1000, rng.random() < 0.7)
            case 4:
                shared.submit(bus.now, Kind.PUT, "q", rng.randbytes(2))
            case 5:
                shared.submit(bus.now, Kind.TAKE, "q", True)
            case 6:
                restart(bus, rng.randint(2, 3))
            case 7:
                split_and_merge(bus)
        for _ in range(rng.randrange(4)):
            bus.step()
    bus.wait(10)
    bus.assert_equal()


def restart(bus: Bus, node: int) -> None:
    if set(bus.members) == {1, 2, 3} and bus.members[1].group == frozenset({1, 2, 3}):
        bus.kill(node)
        bus.commit(sorted(bus.members))
        bus.start(node)
        bus.commit([1, 2, 3], joined=[node])


def split_and_merge(bus: Bus) -> None:
    bus.commit([1, 2])
    bus.commit([3])
    for _ in range(bus.rng.randrange(6)):
        bus.step()
    bus.commit([1, 2, 3], joined=[3])


def report(node: int, *, synchronised: bool = True, lineage: int = 1, clock: int = 5, digest: bytes = b"=") -> Report:
    return Report(node, 0, synchronised, lineage, clock, digest * 16)


@pytest.mark.parametrize(
    ("reports", "winners"),
    [
        ([report(1), report(2), report(3)], (1, 2, 3)),
        ([report(1, digest=b"!"), report(2), report(3)], (2, 3)),
        ([report(1, digest=b"!", clock=6), report(2)], (1,)),
        ([report(1, digest=b"!"), report(2)], (1,)),
        ([report(1, synchronised=False, clock=99, digest=b"!"), report(2)], (2,)),
        ([report(1, lineage=7, clock=4), report(2, lineage=7, clock=4), report(3, lineage=8, clock=400)], (3,)),
        ([report(1, lineage=0, clock=0), report(2, lineage=0, clock=0), report(3, lineage=8, clock=1)], (3,)),
        ([report(1, synchronised=False), report(2, synchronised=False)], (1, 2)),
    ],
)
def test_choice_of_the_state_that_goes_on(reports: list[Report], winners: tuple[int, ...]) -> None:
    assert choose({r.node: r for r in reports}) == winners
    assert choose({r.node: r for r in reversed(reports)}) == winners


@given(st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_no_peer_bytes_crash_a_member(payload: bytes) -> None:
    bus = Bus()
    bus.form(1)
    bus.shared(1).on_peer(bus.now, 2, payload)
    for step in (1, 2, 3, 4):
        bus.shared(1).on_peer(bus.now, 2, bytes([0x95, step, 1, 1, 1]) + payload)
    bus.settle()
    bus.assert_equal()


@pytest.mark.parametrize(
    "message",
    [
        transfer.Fetch(transfer.RoundId(3, 1, 9), 2, 77, tuple(range(limits.BUCKETS))),
        transfer.Part(transfer.RoundId(3, 1, 9), 2, 0, [[5, [["k", b"v", 3, 1]]]]),
        transfer.Last(transfer.RoundId(3, 1, 9), 2, 1, 77, b"rest", b"d" * 16),
        transfer.Ack(transfer.RoundId(3, 1, 9), 2, 1),
    ],
)
def test_transfer_messages_survive_the_wire(message: transfer.Message) -> None:
    assert transfer.decode(transfer.encode(message)) == message


def test_two_replicas_fed_the_same_stream_are_equal_at_every_step() -> None:
    first, second = Bus(seed=1), Bus(seed=2)
    for bus in (first, second):
        bus.form(1)
    session = first.members[1].incarnation
    stream = [encode(Kind.WRITE, n, session, n, [], [[SET, f"k{n % 7}", b"%d" % n]]) for n in range(1, 200)] + [
        encode(Kind.ACQUIRE, 0, session, 900 + n, f"l{n % 3}", 1000, True) for n in range(9)
    ]
    for place, payload in enumerate(stream, start=first.position + 1):
        for bus in (first, second):
            bus.shared(1).on_batch(bus.now, 1, place, [payload])
        assert first.shared(1).digest() == second.shared(1).digest()
    effects: list[list[Effect]] = [bus.shared(1).take() for bus in (first, second)]
    assert effects[0] == effects[1]
