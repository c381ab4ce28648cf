# SPDX-License-Identifier: Apache-2.0
"""The planner of VIP ownership: a table of situations, then properties over random clusters."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.cluster.placement import Move, Policy, Reason, Seat, Standing, Wish, plan

LAN = frozenset({"lan"})
BOTH = frozenset({"lan", "wan"})


def seat(node: int, standing: Standing = Standing.READY, segments: frozenset[str] = LAN) -> Seat:
    return Seat(node, segments, standing)


def wish(address: str, **options: object) -> Wish:
    return Wish(address, **{"segment": "lan", **options})  # type: ignore[arg-type]


SITUATIONS = [
    ("a first VIP goes to the lowest id", [seat(2), seat(1)], [wish("a")], {}, Policy(), [("a", None, 1, "no_owner")]),
    (
        "VIPs without owner spread over the nodes",
        [seat(1), seat(2)],
        [wish("a"), wish("b"), wish("c")],
        {},
        Policy(),
        [("a", None, 1, "no_owner"), ("b", None, 2, "no_owner"), ("c", None, 1, "no_owner")],
    ),
    (
        "the dead node's VIPs move and nobody else's",
        [seat(2), seat(3)],
        [wish("a"), wish("b"), wish("c")],
        {"a": 1, "b": 2, "c": 3},
        Policy(),
        [("a", 1, 2, "owner_left")],
    ),
    ("a joiner takes nothing", [seat(1), seat(2)], [wish("a"), wish("b")], {"a": 1, "b": 1}, Policy(), []),
    (
        "a preferred node that returns takes nothing by itself",
        [seat(1), seat(2)],
        [wish("a", prefer=(2,))],
        {"a": 1},
        Policy(),
        [],
    ),
    (
        "with failback it does",
        [seat(1), seat(2)],
        [wish("a", prefer=(2,))],
        {"a": 1},
        Policy(failback=True),
        [("a", 1, 2, "failback")],
    ),
    (
        "but not before its table is complete",
        [seat(1), seat(2, Standing.JOINING)],
        [wish("a", prefer=(2,))],
        {"a": 1},
        Policy(failback=True),
        [],
    ),
    (
        "the second preferred stands in for the first",
        [seat(1), seat(3)],
        [wish("a", prefer=(2, 3))],
        {"a": 2},
        Policy(),
        [("a", 2, 3, "owner_left")],
    ),
    ("a pin moves it", [seat(1), seat(2)], [wish("a", pin=2)], {"a": 1}, Policy(), [("a", 1, 2, "pinned")]),
    (
        "a pinned VIP still fails over",
        [seat(1), seat(3)],
        [wish("a", pin=2)],
        {"a": 2},
        Policy(),
        [("a", 2, 1, "owner_left")],
    ),
    (
        "a drained node gives up what it has",
        [seat(1, Standing.DRAINED), seat(2)],
        [wish("a")],
        {"a": 1},
        Policy(),
        [("a", 1, 2, "owner_drained")],
    ),
    ("unless nobody else is left", [seat(1, Standing.DRAINED)], [wish("a")], {"a": 1}, Policy(), []),
    (
        "a joiner stands in when nobody else is left",
        [seat(1, Standing.JOINING)],
        [wish("a")],
        {"a": 2},
        Policy(),
        [("a", 2, 1, "owner_left")],
    ),
    (
        "a node that is out holds nothing, even alone",
        [seat(1, Standing.OUT)],
        [wish("a")],
        {"a": 1},
        Policy(),
        [("a", 1, None, "no_candidate")],
    ),
    (
        "a cut link moves that segment's VIPs only",
        [seat(1, segments=frozenset({"wan"})), seat(2, segments=BOTH)],
        [wish("a"), wish("b", segment="wan")],
        {"a": 1, "b": 1},
        Policy(),
        [("a", 1, 2, "link_down")],
    ),
    (
        "no load move unless the policy says so",
        [seat(1), seat(2)],
        [wish("a"), wish("b"), wish("c")],
        {"a": 1, "b": 1, "c": 1},
        Policy(),
        [],
    ),
    (
        "one load move a time",
        [seat(1), seat(2)],
        [wish("a"), wish("b"), wish("c")],
        {"a": 1, "b": 1, "c": 1},
        Policy("count"),
        [("a", 1, 2, "rebalance")],
    ),
    (
        "a sticky VIP does not move for load",
        [seat(1), seat(2)],
        [wish("a", sticky=True), wish("b", sticky=True), wish("c")],
        {"a": 1, "b": 1, "c": 1},
        Policy("count"),
        [("c", 1, 2, "rebalance")],
    ),
    (
        "a heavy VIP stays and a light one moves",
        [seat(1), seat(2)],
        [wish("a", load=100), wish("b", load=40)],
        {"a": 1, "b": 1},
        Policy("load"),
        [("b", 1, 2, "rebalance")],
    ),
    (
        "a difference within the hysteresis stays",
        [seat(1), seat(2)],
        [wish("a", load=100), wish("b", load=10), wish("c", load=95)],
        {"a": 1, "b": 1, "c": 2},
        Policy("load"),
        [],
    ),
]


@pytest.mark.parametrize(("name", "seats", "wishes", "owners", "policy", "expected"), SITUATIONS)
def test_situation(
    name: str,
    seats: list[Seat],
    wishes: list[Wish],
    owners: dict[str, int | None],
    policy: Policy,
    expected: list[tuple[str, int | None, int | None, str]],
) -> None:
    moves = plan(seats, wishes, owners, policy, may_rebalance=True)
    assert [(m.address, m.source, m.target, m.reason.value) for m in moves] == expected, name


NODES = st.integers(1, 6)
SEGMENTS = st.frozensets(st.sampled_from(["lan", "wan"]), min_size=0)
CLUSTERS = st.lists(
    st.builds(Seat, NODES, SEGMENTS, st.sampled_from(Standing)), min_size=0, max_size=6, unique_by=lambda s: s.node
)
WISHES = st.lists(
    st.builds(
        Wish,
        st.text("abcdefgh", min_size=1, max_size=2),
        st.sampled_from(["lan", "wan"]),
        st.lists(NODES, max_size=3, unique=True).map(tuple),
        st.none() | NODES,
        st.booleans(),
        st.integers(0, 100).map(float),
    ),
    max_size=10,
    unique_by=lambda w: w.address,
)
POLICIES = st.builds(Policy, st.sampled_from(["off", "count", "load"]), st.booleans(), st.sampled_from([0.0, 25.0]))
OWNERS = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.none() | NODES, max_size=10)


def settle(owners: dict[str, int | None], moves: list[Move]) -> dict[str, int | None]:
    return owners | {move.address: move.target for move in moves}


@given(CLUSTERS, WISHES, OWNERS, POLICIES, st.booleans())
def test_owners_are_able_and_every_vip_that_can_have_one_has_one(
    seats: list[Seat], wishes: list[Wish], owners: dict[str, int | None], policy: Policy, may: bool
) -> None:
    after = settle(owners, plan(seats, wishes, owners, policy, may_rebalance=may))
    by_node = {s.node: s for s in seats}
    for vip in wishes:
        able = [s for s in seats if vip.segment in s.segments and s.standing is not Standing.OUT]
        owner = after.get(vip.address)
        assert (owner is None) == (not able)
        if owner is not None:
            assert by_node[owner].standing == min(s.standing for s in able)
            assert vip.segment in by_node[owner].segments


@given(CLUSTERS, WISHES, OWNERS, POLICIES, st.integers())
def test_order_of_the_lists_does_not_matter(
    seats: list[Seat], wishes: list[Wish], owners: dict[str, int | None], policy: Policy, seed: int
) -> None:
    first = plan(seats, wishes, owners, policy, may_rebalance=True)
    shuffle = random.Random(seed)
    again = plan(
        shuffle.sample(seats, len(seats)),
        shuffle.sample(wishes, len(wishes)),
        dict(shuffle.sample(sorted(owners.items()), len(owners))),
        policy,
        may_rebalance=True,
    )
    assert sorted(first, key=lambda m: m.address) == sorted(again, key=lambda m: m.address)


@given(CLUSTERS, WISHES, OWNERS, POLICIES)
def test_a_plan_leaves_nothing_to_do_but_balancing_which_ends(
    seats: list[Seat], wishes: list[Wish], owners: dict[str, int | None], policy: Policy
) -> None:
    after = settle(owners, plan(seats, wishes, owners, policy))
    assert plan(seats, wishes, after, policy) == []
    for _ in range(len(wishes) * 6 + 1):
        moves = plan(seats, wishes, after, policy, may_rebalance=True)
        assert len(moves) <= 1
        if not moves:
            return
        after = settle(after, moves)
    pytest.fail("balancing does not end")


@given(CLUSTERS, WISHES, OWNERS, NODES)
def test_when_a_node_goes_only_its_vips_move(
    seats: list[Seat], wishes: list[Wish], owners: dict[str, int | None], gone: int
) -> None:
    policy = Policy()
    before = settle(owners, plan(seats, wishes, owners, policy))
    # A pinned VIP or the best standing may change when a node goes: those moves have other causes.
    equal = [Seat(s.node, s.segments) for s in seats if s.standing is not Standing.OUT]
    free = [Wish(w.address, w.segment, w.prefer, None, w.sticky, w.load) for w in wishes]
    before = settle(before, plan(equal, free, before, policy))
    moves = plan([s for s in equal if s.node != gone], free, before, policy)
    assert {m.address for m in moves} == {w.address for w in free if before.get(w.address) == gone}
    assert all(m.reason in (Reason.OWNER_LEFT, Reason.NO_CANDIDATE) for m in moves)


@given(st.integers(1, 6), st.integers(0, 20))
def test_equal_vips_spread_evenly(nodes: int, count: int) -> None:
    moves = plan([seat(n) for n in range(1, nodes + 1)], [wish(f"v{i}") for i in range(count)], {})
    held = [sum(1 for m in moves if m.target == n) for n in range(1, nodes + 1)]
    assert sum(held) == count
    assert max(held) - min(held) <= 1
