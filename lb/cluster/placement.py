# SPDX-License-Identifier: Apache-2.0
"""Who owns which virtual address: a pure function from the cluster's state to owners.

The rules, in order of strength:

1. A VIP goes only to a node that reaches its segment, in the best standing available there: READY before DRAINED
   before JOINING before IMPAIRED. A node that is OUT gets nothing. So a VIP disappears only when nobody can hold it.
2. A pinned VIP is at its node whenever that node is in the best standing.
3. A VIP stays where it is. Only what lost its owner moves, so a failure of one node moves that node's VIPs alone.
4. A VIP without an owner goes to its first preferred node, else to the least loaded one, of equals the lowest id.
5. With `failback`, a VIP returns to its preferred node. Without it a joining node takes nothing from a healthy owner.
6. With `rebalance`, one VIP a time moves from the most to the least loaded node of a segment, when that lowers the
   higher of the two loads by more than the hysteresis. Each such move lowers the sum of the squared loads, so a
   sequence of them ends.

The same state gives the same answer on every node, whatever the order in which it is listed.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


class Standing(enum.IntEnum):
    """How fit a node is to hold addresses; lower is better."""

    READY = 0
    DRAINED = 1  # healthy, but the operator asked it to hold nothing
    JOINING = 2  # healthy, but it does not have everything yet: connection table, configuration
    IMPAIRED = 3  # one of its links is down, so it cannot pass packets between all segments
    OUT = 4  # a required resource failed, or its partition may not serve


class Reason(enum.StrEnum):
    """Why a VIP moves."""

    NO_OWNER = "no_owner"
    OWNER_LEFT = "owner_left"
    OWNER_OUT = "owner_out"
    OWNER_DRAINED = "owner_drained"
    OWNER_JOINING = "owner_joining"
    OWNER_IMPAIRED = "owner_impaired"
    LINK_DOWN = "link_down"
    PINNED = "pinned"
    FAILBACK = "failback"
    REBALANCE = "rebalance"
    OPERATOR = "operator"
    NO_CANDIDATE = "no_candidate"
    GATEWAY_ADDRESS = "gateway_address"


_BY_STANDING = {
    Standing.DRAINED: Reason.OWNER_DRAINED,
    Standing.JOINING: Reason.OWNER_JOINING,
    Standing.IMPAIRED: Reason.OWNER_IMPAIRED,
    Standing.OUT: Reason.OWNER_OUT,
}


@dataclass(frozen=True, slots=True)
class Seat:
    """A member of the group as the planner sees it: where it can hold addresses, and how fit it is."""

    node: int
    segments: frozenset[str]
    standing: Standing = Standing.READY


@dataclass(frozen=True, slots=True)
class Wish:
    """A VIP as the planner sees it. `load` is its share of the traffic, in any one unit for all VIPs."""

    address: str
    segment: str
    prefer: tuple[int, ...] = ()
    pin: int | None = None
    sticky: bool = False
    load: float = 1.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What may move a VIP from a healthy owner."""

    rebalance: str = "off"
    failback: bool = False
    hysteresis_percent: float = 25.0


@dataclass(frozen=True, slots=True)
class Move:
    """One change of ownership; None stands for nobody."""

    address: str
    source: int | None
    target: int | None
    reason: Reason


def plan(
    seats: Iterable[Seat],
    wishes: Iterable[Wish],
    owners: Mapping[str, int | None],
    policy: Policy = Policy(),
    *,
    may_rebalance: bool = False,
) -> list[Move]:
    """The moves that bring the cluster from `owners` (address to node) to where the rules want it.

    `may_rebalance` allows one move for load in this plan: the caller spaces them out in time.
    Addresses in `owners` without a wish are released by whoever serves the configuration, not here.
    """
    by_node = {seat.node: seat for seat in seats}
    ordered = sorted(wishes, key=lambda wish: (-wish.load, wish.address))
    current = {wish.address: owners.get(wish.address) for wish in ordered}
    loads = _loads(by_node, ordered, current, policy)
    moves: list[Move] = []
    for wish in ordered:
        move = _needed(wish, current[wish.address], by_node, loads, policy)
        if move is not None:
            moves.append(move)
            _carry_out(move, wish, current, loads, policy)
    if may_rebalance and not moves and policy.rebalance != "off":
        balancing = _balance(ordered, current, by_node, loads, policy)
        if balancing is not None:
            moves.append(balancing)
    return moves


def candidates(wish: Wish, by_node: Mapping[int, Seat]) -> list[int]:
    """The nodes of the best standing that reach the VIP's segment, by id."""
    able = [seat for seat in by_node.values() if wish.segment in seat.segments and seat.standing is not Standing.OUT]
    best = min((seat.standing for seat in able), default=Standing.OUT)
    return sorted(seat.node for seat in able if seat.standing is best)


def _needed(
    wish: Wish, owner: int | None, by_node: Mapping[int, Seat], loads: Mapping[int, float], policy: Policy
) -> Move | None:
    able = candidates(wish, by_node)
    if not able:
        return None if owner is None else Move(wish.address, owner, None, Reason.NO_CANDIDATE)
    if wish.pin in able:
        return None if owner == wish.pin else Move(wish.address, owner, wish.pin, _lost(wish, owner, able, by_node))
    preferred = next((node for node in wish.prefer if node in able), None)
    if owner in able:
        if not policy.failback or preferred is None or _rank(wish, owner) <= _rank(wish, preferred):
            return None
        return Move(wish.address, owner, preferred, Reason.FAILBACK)
    target = preferred if preferred is not None else min(able, key=lambda node: (loads[node], node))
    return Move(wish.address, owner, target, _lost(wish, owner, able, by_node))


def _rank(wish: Wish, node: int) -> int:
    return wish.prefer.index(node) if node in wish.prefer else len(wish.prefer)


def _lost(wish: Wish, owner: int | None, able: list[int], by_node: Mapping[int, Seat]) -> Reason:
    """Why `owner` does not keep the VIP."""
    if owner is None:
        return Reason.NO_OWNER
    if owner in able:
        return Reason.PINNED
    seat = by_node.get(owner)
    if seat is None:
        return Reason.OWNER_LEFT
    if wish.segment not in seat.segments:
        return Reason.LINK_DOWN
    return _BY_STANDING[seat.standing]


def _weight(wish: Wish, policy: Policy) -> float:
    return wish.load if policy.rebalance == "load" else 1.0


def _loads(
    by_node: Mapping[int, Seat], wishes: list[Wish], current: Mapping[str, int | None], policy: Policy
) -> dict[int, float]:
    loads = dict.fromkeys(by_node, 0.0)
    for wish in wishes:
        owner = current[wish.address]
        if owner in loads:
            loads[owner] += _weight(wish, policy)
    return loads


def _carry_out(move: Move, wish: Wish, current: dict[str, int | None], loads: dict[int, float], policy: Policy) -> None:
    current[wish.address] = move.target
    if move.source in loads:
        loads[move.source] -= _weight(wish, policy)
    if move.target in loads:
        loads[move.target] += _weight(wish, policy)


def _balance(
    wishes: list[Wish],
    current: Mapping[str, int | None],
    by_node: Mapping[int, Seat],
    loads: Mapping[int, float],
    policy: Policy,
) -> Move | None:
    """The one move that lowers the higher of two loads most, if by more than the hysteresis."""
    margin = policy.hysteresis_percent / 100 * (sum(loads.values()) / len(loads) if loads else 0.0)
    best: tuple[float, float, str] | None = None
    move: Move | None = None
    for wish in wishes:
        owner, able = current[wish.address], candidates(wish, by_node)
        if owner not in able or wish.sticky or wish.pin is not None or (policy.failback and wish.prefer):
            continue
        target = min(able, key=lambda node: (loads[node], node))
        weight = _weight(wish, policy)
        higher = max(loads[target] + weight, loads[owner] - weight)
        gain = loads[owner] - higher
        key = (-gain, weight, wish.address)  # of two that help as much, the one that disturbs less traffic
        if weight > 0 and gain > margin and (best is None or key < best):
            best, move = key, Move(wish.address, owner, target, Reason.REBALANCE)
    return move
