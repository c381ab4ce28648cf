# SPDX-License-Identifier: Apache-2.0
"""Locks and primitives over the ordered stream, with participants dying at every stage."""

from sync.shared import (
    BarrierMode,
    Committed,
    Done,
    Granted,
    Kind,
    LockLost,
    Passed,
    QueuesChanged,
    Refusal,
    Refused,
    Result,
    Taken,
    Unknown,
)
from tests.unit.sync_shared_bus import Bus

LEASE_MS = 3000


def acquire(bus: Bus, node: int, *, name: str = "vip", wait: bool = True) -> int:
    ticket = bus.shared(node).submit(bus.now, Kind.ACQUIRE, name, LEASE_MS, wait)
    bus.settle()
    return ticket


def ask(bus: Bus, node: int, kind: Kind, *arguments: object) -> int:
    ticket = bus.shared(node).submit(bus.now, kind, *arguments)
    bus.settle()
    return ticket


def fencing(result: Result | None) -> int:
    assert isinstance(result, Granted)
    return result.fencing


def test_a_lock_passes_in_the_order_of_asking_with_growing_fencing_numbers() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    tickets = [(node, acquire(bus, node)) for node in (2, 3, 1, 2)]
    seen = []
    for index, (node, ticket) in enumerate(tickets):
        seen.append(fencing(bus.answer(node, ticket)))
        assert all(bus.answer(n, t) is None for n, t in tickets[index + 1 :])
        ask(bus, node, Kind.RELEASE, "vip", ticket)
    assert seen == sorted(set(seen))
    assert bus.shared(1).replica.locks.get("vip") is None


def test_without_waiting_a_taken_lock_is_refused() -> None:
    bus = Bus()
    bus.form(1, 2)
    acquire(bus, 1)
    assert bus.answer(2, acquire(bus, 2, wait=False)) == Refused(Refusal.LOCK_TAKEN)


def test_only_the_holder_releases() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = acquire(bus, 1)
    assert bus.answer(2, ask(bus, 2, Kind.RELEASE, "vip", ticket)) == Refused(Refusal.NOT_HOLDER)
    assert bus.shared(2).replica.locks.get("vip") is not None


def test_a_dead_holders_lock_goes_to_the_next_living() -> None:
    bus = Bus()
    bus.form(1, 2, 3, 4)
    acquire(bus, 3)
    acquire(bus, 4)
    waiting = acquire(bus, 2)
    bus.kill(3)
    bus.kill(4)
    bus.commit([1, 2])
    bus.settle()
    assert isinstance(bus.answer(2, waiting), Granted)
    bus.assert_equal()


def test_a_restarted_holder_does_not_hold_what_it_held_before() -> None:
    bus = Bus()
    bus.form(1, 2)
    acquire(bus, 2)
    waiting = acquire(bus, 1)
    bus.kill(2)
    bus.start(2)
    bus.commit([1, 2], joined=[2])
    bus.settle()
    assert isinstance(bus.answer(1, waiting), Granted)
    bus.assert_equal()


def test_a_living_holder_renews_by_itself() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = acquire(bus, 2)
    bus.wait(10 * LEASE_MS / 1000)
    lock = bus.shared(1).replica.locks.get("vip")
    assert lock is not None
    assert lock.holder.ticket == ticket
    assert lock.renewals >= 10
    assert bus.lost_locks(2) == []


def test_a_hung_holder_loses_its_lock_and_gives_up_before_the_next_has_it() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    acquire(bus, 3)
    waiting = acquire(bus, 2)
    granted_at = bus.now
    while bus.answer(2, waiting) is None:
        bus.wait(0.1, only=[1, 2])  # node 3 receives, but its program does nothing
        assert bus.now < granted_at + 3 * LEASE_MS / 1000
    assert bus.now - granted_at > LEASE_MS / 1000, "ended before the holder knew by its own clock"
    assert bus.lost_locks(3) == ["vip"]
    bus.assert_equal()


def test_a_holder_counts_its_lease_from_before_it_asked() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = bus.shared(2).submit(bus.now, Kind.ACQUIRE, "vip", LEASE_MS, True)
    asked_at = bus.now
    bus.now += 1.0  # the grant is on its way
    bus.settle()
    held = bus.shared(2).requests.held[ticket]
    assert held.valid_until == max(asked_at + LEASE_MS / 1000, bus.now + LEASE_MS / 2000)


def test_an_expiry_that_crosses_a_renewal_is_void() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = acquire(bus, 2)
    lock = bus.shared(1).replica.locks.get("vip")
    assert lock is not None
    seen = (lock.fencing, lock.renewals)
    bus.shared(2).submit(bus.now, Kind.RENEW, "vip", ticket)
    bus.settle()
    ask(bus, 1, Kind.EXPIRE, "vip", *seen)
    assert bus.shared(1).replica.locks.get("vip") is not None
    assert bus.lost_locks(2) == []


def test_where_nobody_serves_no_lock_changes_hands() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    taken, waiting = acquire(bus, 1), acquire(bus, 3)
    bus.commit([1, 2])
    bus.commit([3], serving=False)
    assert isinstance(bus.answer(3, acquire(bus, 3, name="other")), Refused), "it was on its way when the view changed"
    assert bus.answer(3, waiting) is None
    bus.commit([1, 2, 3], joined=[3])
    bus.settle()
    ask(bus, 1, Kind.RELEASE, "vip", taken)
    assert bus.answer(3, waiting) == Unknown()
    assert bus.shared(2).replica.locks.get("vip") is None


def test_what_nobody_served_changes_hands_once_somebody_does() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    acquire(bus, 1)
    waiting = acquire(bus, 3)
    bus.commit([2, 3], serving=False)
    bus.settle()
    assert bus.answer(3, waiting) is None
    bus.commit([2, 3])
    bus.settle()
    assert isinstance(bus.answer(3, waiting), Granted)


def test_a_lock_is_ours_for_certain_only_as_long_as_nobody_can_have_gone_on_without_us() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = acquire(bus, 1)
    member = bus.shared(1)
    assert not member.holds(bus.now, ticket), "the ring has promised nothing yet"
    member.on_token(bus.now + 0.05)
    assert member.holds(bus.now, ticket)
    assert not member.holds(bus.now + 0.06, ticket), "it may be excluded by now"
    member.on_token(bus.now + 2 * LEASE_MS / 1000)
    assert not member.holds(bus.now + 1.5 * LEASE_MS / 1000, ticket), "asked before the clock could tell it"
    bus.commit([1, 2], serving=False)
    bus.settle()
    assert not member.holds(bus.now, ticket)


def test_a_release_that_is_lost_ends_with_the_lease() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = acquire(bus, 2)
    lost = bus.shared(2).submit(bus.now, Kind.RELEASE, "vip", ticket)
    bus.shared(2).take()  # it goes nowhere
    bus.shared(2).on_lost(lost)
    bus.wait(2 * LEASE_MS / 1000)
    assert bus.answer(2, lost) == Unknown()
    assert bus.shared(1).replica.locks.get("vip") is None


def test_a_holder_without_a_complete_copy_does_not_spin() -> None:
    bus = Bus()
    bus.form(1, 2)
    acquire(bus, 2)
    member = bus.shared(2)
    bus.drop_peer = lambda source, target: True
    bus.commit([1, 2], joined=[2])
    bus.settle()
    bus.now += LEASE_MS / 2000
    member.tick(bus.now)
    assert not member.complete
    assert member.deadline() > bus.now, "a renewal that is due has to wait"


def test_numbers_of_a_history_given_up_are_not_used_again_though_its_news_got_lost() -> None:
    bus = Bus()
    bus.form(1)
    bus.form(2)
    for _ in range(20):
        ask(bus, 2, Kind.RELEASE, "vip", acquire(bus, 2))
    given_up = bus.shared(2).replica.clock
    assert bus.shared(1).replica.clock < given_up
    bus.drop_multicast = lambda source: source == 2
    bus.commit([1, 2], joined=[2])
    bus.settle()
    assert bus.shared(2).complete
    assert bus.shared(1).replica.clock < given_up, "the news did not get lost"
    bus.drop_multicast = lambda source: False
    bus.commit([1, 2])
    bus.settle()
    assert fencing(bus.answer(1, acquire(bus, 1))) > given_up


def test_a_withdrawn_waiter_is_skipped() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    first = acquire(bus, 1)
    second = acquire(bus, 2)
    third = acquire(bus, 3)
    ask(bus, 2, Kind.WITHDRAW, second)
    assert bus.answer(2, second) == Refused(Refusal.WITHDRAWN)
    ask(bus, 1, Kind.RELEASE, "vip", first)
    assert isinstance(bus.answer(3, third), Granted)


def test_the_absorbed_half_learns_that_its_lock_is_gone() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    bus.commit([1, 2])
    bus.commit([3])
    bus.settle()
    acquire(bus, 3)
    mine = acquire(bus, 1)
    bus.commit([1, 2, 3], joined=[3])
    bus.settle()
    assert bus.lost_locks(3) == ["vip"]
    assert bus.lost_locks(1) == []
    lock = bus.shared(3).replica.locks.get("vip")
    assert lock is not None
    assert lock.holder == bus.shared(1).requests.owner(mine)


def test_a_waiter_absorbed_by_a_merge_is_told_that_its_request_is_gone() -> None:
    bus = Bus()
    bus.form(1, 2, 3, 4)
    bus.commit([1, 2])
    bus.commit([3, 4])
    bus.settle()
    acquire(bus, 3)
    waiting = acquire(bus, 4)
    bus.commit([1, 2, 3, 4], joined=[3, 4])
    bus.settle()
    assert type(bus.answer(4, waiting)).__name__ == "Unknown"


def test_the_all_barrier_opens_when_everybody_is_there() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    tickets = {node: ask(bus, node, Kind.ENTER, "b", BarrierMode.ALL, 0) for node in (2, 3)}
    assert all(bus.answer(node, ticket) is None for node, ticket in tickets.items())
    tickets[1] = ask(bus, 1, Kind.ENTER, "b", BarrierMode.ALL, 0)
    results = {node: bus.answer(node, ticket) for node, ticket in tickets.items()}
    assert [n for n, r in results.items() if isinstance(r, Passed) and r.first] == [2]
    assert all(isinstance(r, Passed) for r in results.values())
    again = ask(bus, 1, Kind.ENTER, "b", BarrierMode.ALL, 0)
    assert bus.answer(1, again) is None, "the next generation starts empty"


def test_the_all_barrier_does_not_wait_for_the_dead() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    tickets = {node: ask(bus, node, Kind.ENTER, "b", BarrierMode.ALL, 0) for node in (1, 2)}
    bus.kill(3)
    bus.commit([1, 2])
    bus.settle()
    assert all(isinstance(bus.answer(node, ticket), Passed) for node, ticket in tickets.items())


def test_a_barrier_of_n_does_not_count_arrivals_that_died() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    ask(bus, 3, Kind.ENTER, "b", BarrierMode.ALL, 2)
    bus.kill(3)
    bus.commit([1, 2])
    bus.settle()
    one = ask(bus, 1, Kind.ENTER, "b", BarrierMode.ALL, 2)
    assert bus.answer(1, one) is None
    assert bus.answer(2, ask(bus, 2, Kind.ENTER, "b", BarrierMode.FIRST, 0)) == Refused(Refusal.BARRIER_MISMATCH)
    two = ask(bus, 2, Kind.ENTER, "b", BarrierMode.ALL, 2)
    assert isinstance(bus.answer(1, one), Passed)
    assert isinstance(bus.answer(2, two), Passed)


def test_first_comer_acts_alone_and_its_death_promotes_the_next() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    tickets = {node: ask(bus, node, Kind.ENTER, "b", BarrierMode.FIRST, 0) for node in (3, 2, 1)}
    assert [node for node, ticket in tickets.items() if bus.answer(node, ticket) is not None] == [3]
    bus.kill(3)
    bus.commit([1, 2])
    bus.settle()
    promoted = bus.answer(2, tickets[2])
    assert isinstance(promoted, Passed)
    assert promoted.first
    assert bus.answer(1, tickets[1]) is None
    ask(bus, 2, Kind.LEAVE, "b", tickets[2])
    last = bus.answer(1, tickets[1])
    assert isinstance(last, Passed)
    assert not last.first
    assert bus.shared(1).replica.barriers.get("b") is None


def test_a_queue_hands_elements_out_once_in_order_and_tells_of_it() -> None:
    bus = Bus()
    bus.form(1, 2)
    waiting = ask(bus, 2, Kind.TAKE, "q", True)
    for value in (b"a", b"b", b"c"):
        assert isinstance(bus.answer(1, ask(bus, 1, Kind.PUT, "q", value)), Done)
    taken = [bus.answer(2, waiting), *(bus.answer(1, ask(bus, 1, Kind.TAKE, "q", False)) for _ in range(2))]
    assert [result.value for result in taken if isinstance(result, Taken)] == [b"a", b"b", b"c"]
    assert bus.answer(1, ask(bus, 1, Kind.TAKE, "q", False)) == Refused(Refusal.QUEUE_EMPTY)
    assert {"q"} in [effect.names for effect in bus.members[2].told if isinstance(effect, QueuesChanged)]


def test_unacknowledged_elements_of_a_dead_taker_are_handed_out_again_in_order() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    for value in (b"a", b"b", b"c", b"d"):
        ask(bus, 1, Kind.PUT, "q", value)
    finished = ask(bus, 3, Kind.TAKE, "q", False)
    ask(bus, 3, Kind.ACKNOWLEDGE, "q", finished)
    ask(bus, 3, Kind.TAKE, "q", False)
    ask(bus, 3, Kind.TAKE, "q", False)
    bus.kill(3)
    bus.commit([1, 2])
    bus.settle()
    results = [bus.answer(2, ask(bus, 2, Kind.TAKE, "q", False)) for _ in range(3)]
    assert [result.value for result in results if isinstance(result, Taken)] == [b"b", b"c", b"d"]
    bus.assert_equal()


def test_an_element_given_back_keeps_its_place() -> None:
    bus = Bus()
    bus.form(1, 2)
    for value in (b"a", b"b"):
        ask(bus, 1, Kind.PUT, "q", value)
    taking = ask(bus, 1, Kind.TAKE, "q", False)
    waiting = [ask(bus, 2, Kind.TAKE, "q", True), ask(bus, 2, Kind.TAKE, "q", True)]
    ask(bus, 1, Kind.WITHDRAW, taking)
    values = [bus.answer(2, ticket) for ticket in waiting]
    assert [result.value for result in values if isinstance(result, Taken)] == [b"b", b"a"]


def test_nothing_is_left_of_primitives_that_are_no_longer_used() -> None:
    bus = Bus()
    bus.form(1, 2)
    ticket = acquire(bus, 1)
    ask(bus, 1, Kind.RELEASE, "vip", ticket)
    entered = ask(bus, 1, Kind.ENTER, "b", BarrierMode.FIRST, 0)
    ask(bus, 1, Kind.LEAVE, "b", entered)
    ask(bus, 1, Kind.PUT, "q", b"x")
    taking = ask(bus, 2, Kind.TAKE, "q", False)
    ask(bus, 2, Kind.ACKNOWLEDGE, "q", taking)
    replica = bus.shared(2).replica
    assert (len(replica.locks), replica.barriers.all(), replica.queues.all()) == (0, {}, {})
    assert len(bus.shared(1).requests) == len(bus.shared(2).requests) == 0


def test_an_orphans_command_acquires_nothing() -> None:
    """A command ordered after its origin has left must not take what nobody would release."""
    bus = Bus()
    bus.form(1, 2, 3)
    bus.shared(3).submit(bus.now, Kind.ACQUIRE, "vip", LEASE_MS, True)
    orphan = bus.shared(3).take()[0]
    bus.kill(3)
    bus.commit([1, 2])
    bus.position += 1
    for node in (1, 2):
        bus.members[node].inbox.append(("batch", (3, bus.position, [orphan.payload])))  # type: ignore[union-attr]
    bus.settle()
    assert bus.shared(1).replica.locks.get("vip") is None
    assert not [effect for effect in bus.members[1].told if isinstance(effect, LockLost)]


def test_a_counter_is_shared() -> None:
    bus = Bus()
    bus.form(1, 2)
    from sync.shared import Operation

    for node in (1, 2, 2):
        ticket = bus.shared(node).write(bus.now, [(Operation.ADD, "n", 2)])
        bus.settle()
    result = bus.answer(2, ticket)
    assert isinstance(result, Committed)
    assert result.counters == (6,)
