# SPDX-License-Identifier: Apache-2.0
"""VIP ownership over a total order: a small cluster of lagging nodes, checked from outside after every step."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lb.cluster.ownership import (
    NOBODY,
    Cluster,
    Holding,
    NodeFacts,
    Write,
    confirm,
    coordinator,
    decide,
    hand_on,
    in_use,
    pack,
    steering_nodes,
    to_hold,
    transfer,
    unpack,
)
from lb.cluster.placement import Policy, Standing, Wish

ADDRESSES = ("10.0.1.100", "10.0.1.101", "10.0.2.100")
WISHES = tuple(Wish(address, "lan") for address in ADDRESSES)
READY = NodeFacts("gw", int(Standing.READY), segments=("lan",))


def cluster(members: set[int], holdings: Mapping[str, Holding] | None = None, **changes: object) -> Cluster:
    made = Cluster(frozenset(members), True, dict.fromkeys(range(1, 10), READY), frozenset(), holdings or {}, WISHES)
    return replace(made, **changes)  # type: ignore[arg-type]


def owners_after(state: Cluster, writes: list[Write]) -> dict[str, tuple[int, int]]:
    holdings = dict(state.holdings) | {write.address: write.after for write in writes if write.after}
    return {address: (holding.owner, holding.heir) for address, holding in holdings.items()}


def test_first_addresses_are_given_out_at_once() -> None:
    state = cluster({1, 2})
    assert owners_after(state, decide(state, may_rebalance=False, now=0)) == {
        "10.0.1.100": (1, 0),
        "10.0.1.101": (2, 0),
        "10.0.2.100": (1, 0),
    }


def test_an_address_of_a_gateway_is_given_up_and_given_to_nobody() -> None:
    known = dict.fromkeys((1, 2, 3), READY) | {3: replace(READY, addresses=("10.0.2.2", ADDRESSES[0]))}
    others = {ADDRESSES[1]: Holding(1), ADDRESSES[2]: Holding(2)}

    def of_the_first(holding: Holding | None, members: set[int]) -> tuple[int, int] | None:
        state = cluster(members, others | ({ADDRESSES[0]: holding} if holding else {}), facts=known)
        return owners_after(state, decide(state, may_rebalance=False, now=0)).get(ADDRESSES[0])

    assert of_the_first(None, {1, 2, 3}) is None
    assert of_the_first(Holding(NOBODY), {1, 2}) == (NOBODY, NOBODY), "not while that gateway is away either"
    assert of_the_first(Holding(1, NOBODY, True), {1, 2, 3}) == (1, NOBODY), "it is on its way already"
    assert of_the_first(Holding(1), {1, 2, 3}) == (1, NOBODY)
    assert of_the_first(Holding(1), {2, 3}) == (NOBODY, NOBODY)
    held = cluster({1, 2, 3}, others | {ADDRESSES[0]: Holding(1)}, facts=known)
    (write,) = decide(held, may_rebalance=False, now=0)
    assert write.after is not None
    assert (write.after.releasing, write.after.reason) == (True, "gateway_address")


def test_a_state_is_in_use_while_a_member_owns_an_address() -> None:
    holdings = {ADDRESSES[0]: Holding(1), ADDRESSES[1]: Holding(NOBODY)}
    assert in_use(cluster({1, 2}, holdings), routed=False)
    assert not in_use(cluster({2, 3}, holdings), routed=False), "its owner is elsewhere"
    assert not in_use(cluster({1, 2}, holdings, serving=False), routed=False)
    on_its_way = {ADDRESSES[0]: Holding(1, heir=2, releasing=True)}
    assert in_use(cluster({1}, on_its_way), routed=False), "until it is given up"
    assert not in_use(cluster({1, 2}), routed=False)


def test_a_dead_owner_is_not_waited_for_a_living_one_is() -> None:
    holdings = {address: Holding(1) for address in ADDRESSES}
    dead = cluster({2}, holdings)
    assert set(owners_after(dead, decide(dead, may_rebalance=False, now=0)).values()) == {(2, 0)}
    drained = cluster({1, 2}, holdings, drained=frozenset({1}))
    assert set(owners_after(drained, decide(drained, may_rebalance=False, now=0)).values()) == {(1, 2)}


def test_a_drained_last_node_keeps_its_addresses() -> None:
    state = cluster({1}, {address: Holding(1) for address in ADDRESSES}, drained=frozenset({1}))
    assert decide(state, may_rebalance=False, now=0) == []


def test_an_excused_owner_keeps_its_addresses_until_the_excuse_ends() -> None:
    holdings = {address: Holding(1) for address in ADDRESSES}
    state = cluster({2, 3}, holdings, excused=frozenset({1}))
    assert decide(state, may_rebalance=False, now=0) == []
    over = replace(state, excused=frozenset())
    assert {owner for owner, _ in owners_after(over, decide(over, may_rebalance=False, now=0)).values()} == {2, 3}


def test_an_address_that_somebody_else_answers_for_is_left_alone() -> None:
    state = cluster({1})
    writes = decide(state, may_rebalance=False, now=0, occupied={"10.0.1.101"})
    assert owners_after(state, writes) == {"10.0.1.100": (1, 0), "10.0.2.100": (1, 0)}


def test_an_address_that_somebody_else_answers_for_is_given_up() -> None:
    state = cluster({1}, {address: Holding(1) for address in ADDRESSES})
    (write,) = decide(state, may_rebalance=False, now=0, occupied={ADDRESSES[1]})
    assert write.after is not None
    assert (write.address, write.after.heir, write.after.releasing) == (ADDRESSES[1], NOBODY, True)
    state = replace(state, holdings={**state.holdings, ADDRESSES[1]: write.after})
    assert decide(state, may_rebalance=False, now=0, occupied={ADDRESSES[1]}) == [], "once is enough"
    assert ADDRESSES[1] not in to_hold(state, 1)
    (handed,) = hand_on(state, 1, set(), 0)
    assert handed.after is not None
    state = replace(state, holdings={**state.holdings, ADDRESSES[1]: handed.after})
    assert decide(state, may_rebalance=False, now=0, occupied={ADDRESSES[1]}) == []
    (again,) = decide(state, may_rebalance=False, now=0)
    assert again.after is not None
    assert again.after.owner == 1, "nobody answers for it any more"


def test_an_heir_that_dies_leaves_the_address_with_its_owner() -> None:
    holdings = dict.fromkeys(ADDRESSES, Holding(1)) | {ADDRESSES[0]: Holding(1, 2, True)}
    state = cluster({1, 3}, holdings)
    (write,) = decide(state, may_rebalance=False, now=0)
    assert write.after is not None
    assert (write.after.owner, write.after.releasing) == (1, False)


def test_an_owner_that_dies_while_releasing_is_followed_by_its_heir() -> None:
    state = cluster({2, 3}, dict.fromkeys(ADDRESSES, Holding(3)) | {ADDRESSES[0]: Holding(1, 2, True)})
    (write,) = decide(state, may_rebalance=False, now=0)
    assert write.after is not None
    assert (write.after.owner, write.after.heir, write.after.releasing) == (2, 0, False)


def test_an_address_taken_out_of_the_configuration_is_released_then_forgotten() -> None:
    state = cluster({1, 2}, {"10.9.9.9": Holding(1)}, wishes=())
    (release,) = decide(state, may_rebalance=False, now=0)
    assert release.after is not None
    assert release.after.releasing
    state = replace(state, holdings={"10.9.9.9": release.after})
    assert decide(state, may_rebalance=False, now=0) == []
    (handed,) = hand_on(state, 1, set(), 0)
    assert handed.after is not None
    state = replace(state, holdings={"10.9.9.9": handed.after})
    (forget,) = decide(state, may_rebalance=False, now=0)
    assert forget.after is None


def test_a_part_that_may_not_serve_holds_and_steers_nothing() -> None:
    state = cluster({1, 2}, {address: Holding(1) for address in ADDRESSES}, serving=False)
    assert to_hold(state, 1) == frozenset()
    assert steering_nodes(state) == []


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        ((Standing.READY, Standing.READY, Standing.READY), [1, 2, 3]),
        ((Standing.READY, Standing.JOINING, Standing.OUT), [1]),
        ((Standing.DRAINED, Standing.JOINING, Standing.OUT), [1]),
        ((Standing.JOINING, Standing.JOINING, Standing.OUT), [1, 2]),
        ((Standing.OUT, Standing.OUT, Standing.OUT), []),
    ],
)
def test_steering_share_goes_to_the_best_standing(standings: tuple[Standing, ...], expected: list[int]) -> None:
    facts = {node + 1: replace(READY, standing=int(standing)) for node, standing in enumerate(standings)}
    assert steering_nodes(cluster({1, 2, 3}, facts=facts)) == expected


def test_the_coordinator_has_the_state() -> None:
    assert coordinator({3, 1, 2}, frozenset({1})) == 2
    assert coordinator(set(), frozenset()) == NOBODY


@given(st.builds(Holding, st.integers(0, 255), st.integers(0, 255), st.booleans(), st.text("ab"), st.text("ab")))
def test_holdings_are_stored_and_read(holding: Holding) -> None:
    assert unpack(Holding, pack(holding)) == holding


def test_facts_are_stored_and_read() -> None:
    facts = replace(READY, macs=(("lan", b"\x02\0\0\0\0\1"),), started_at=1.5)
    assert unpack(NodeFacts, pack(facts)) == facts


@given(st.binary(max_size=60))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    try:
        assert unpack(Holding, data).term is not None
    except ValueError:
        return


@dataclass
class Node:
    """A node that has applied the order up to `position` and answers for `held`."""

    alive: bool = True
    position: int = 0
    state: Cluster = field(default_factory=lambda: cluster(set()))
    joined: frozenset[int] = frozenset()
    held: frozenset[str] = frozenset()
    unconfirmed: frozenset[str] = frozenset()
    # One batch of writes at a time: nothing more is written before the last of them has come back.
    busy_until: int = 0


@dataclass
class World:
    """The total order and the nodes reading it. Entries are views or compare-and-set writes."""

    chance: random.Random
    order: list[object] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=lambda: {node: Node() for node in (1, 2, 3, 4)})
    drained: frozenset[int] = frozenset()

    def view(self, members: set[int], joined: set[int]) -> None:
        # A view that excludes a node is committed after its lease has ended.
        for number, node in self.nodes.items():
            if number not in members or number in joined:
                node.held = frozenset()
        self.order.append(("view", frozenset(members), frozenset(joined), self.drained))
        for number in joined:
            donor = self.replay(len(self.order))
            self.nodes[number].state, self.nodes[number].position = donor, len(self.order)
            self.nodes[number].joined = frozenset(joined)
            self.nodes[number].unconfirmed = frozenset(donor.holdings)
            self.nodes[number].busy_until = 0
            self.act(number)

    def replay(self, position: int) -> Cluster:
        state = cluster(set())
        for entry in self.order[:position]:
            state = self.applied(state, entry)
        return state

    @staticmethod
    def applied(state: Cluster, entry: object) -> Cluster:
        if isinstance(entry, Write):
            if state.holdings.get(entry.address) != entry.before:
                return state
            holdings = dict(state.holdings)
            if entry.after is None:
                del holdings[entry.address]
            else:
                holdings[entry.address] = entry.after
            return replace(state, holdings=holdings)
        assert isinstance(entry, tuple)
        return replace(state, members=entry[1], drained=entry[3])

    def advance(self, number: int) -> None:
        node = self.nodes[number]
        if not node.alive or node.position >= len(self.order):
            return
        entry = self.order[node.position]
        node.position += 1
        before, node.state = node.state, self.applied(node.state, entry)
        if isinstance(entry, tuple):
            node.joined = entry[2]
        elif isinstance(entry, Write) and node.state is not before:
            node.unconfirmed -= {entry.address}
        self.act(number)

    def act(self, number: int) -> None:
        node = self.nodes[number]
        node.held = to_hold(node.state, number, node.unconfirmed)
        if node.position < node.busy_until:
            return
        writes = confirm(node.state, number, node.unconfirmed) + hand_on(node.state, number, node.held, 0)
        if coordinator(node.state.members, node.joined) == number:
            known = {write.address for write in writes}
            writes += [w for w in decide(node.state, may_rebalance=True, now=0) if w.address not in known]
        if writes:
            self.order += writes
            node.busy_until = len(self.order)

    def check(self) -> None:
        for address in ADDRESSES:
            holders = [number for number, node in self.nodes.items() if node.alive and address in node.held]
            assert len(holders) <= 1, f"{address} is held by {holders}"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
@example(2606)
def test_never_two_owners_and_everything_settles(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance)
    members = {1, 2, 3}
    world.view(members, set())
    for _ in range(chance.randrange(5, 60)):
        roll = chance.random()
        if roll < 0.75:
            world.advance(chance.randrange(1, 5))
        elif roll < 0.85 and len(members) > 1:
            dead = chance.choice(sorted(members))
            world.nodes[dead].alive = False
            members = members - {dead}
            world.view(members, set())
        elif roll < 0.93 and len(members) < 4:
            back = chance.choice(sorted({1, 2, 3, 4} - members))
            world.nodes[back].alive = True
            members = members | {back}
            world.view(members, {back})
        else:
            world.drained = frozenset(chance.sample(range(1, 5), chance.randrange(3)))
            world.view(members, set())
        world.check()
    world.drained = frozenset()
    world.view(members, set())
    for _ in range(2000):
        if all(world.nodes[number].position == len(world.order) for number in members):
            break
        for number in range(1, 5):
            world.advance(number)
            world.check()
    assert all(node.position == len(world.order) for number, node in world.nodes.items() if number in members)
    held = [address for number in members for address in world.nodes[number].held]
    assert sorted(held) == sorted(ADDRESSES)


def test_an_operator_moves_an_address() -> None:
    state = cluster({1, 2}, dict.fromkeys(ADDRESSES, Holding(1, term=4)))
    write = transfer(state, ADDRESSES[0], 2, "operator", "anna", 3.0)
    assert write is not None
    assert write.after == Holding(1, 2, True, "operator", "anna", 3.0, 5)
    state = replace(state, holdings={**state.holdings, ADDRESSES[0]: write.after})
    assert transfer(state, ADDRESSES[0], 2, "operator", "anna", 3.0) is None
    assert decide(state, may_rebalance=False, now=0) == []
    assert Policy() == state.policy
