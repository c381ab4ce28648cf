# SPDX-License-Identifier: Apache-2.0
"""VIP ownership as replicated state: what is stored per address and per node, and who has to write what next. Pure.

Every address is one item of the ring's shared data, `Holding`, changed by compare-and-set in the total order. One
member, the coordinator, plans; the owner gives up; nobody else writes. A VIP goes from a living owner in two steps
(marked as released by the coordinator, handed on by the owner when it has stopped answering) and from a dead one in a
single step, because a view that excludes a node is committed only after that node's lease has ended.

A node that joins (or comes back) does not trust what the state says it owns: a coordinator that has not yet seen it
return may be giving that address away in a single step. It first writes the holding anew; of the two writes one wins.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

import msgpack

from lb.cluster.placement import Policy, Reason, Seat, Standing, Wish, plan

NOBODY = 0
HOLDING_PREFIX = "vip/"
NODE_PREFIX = "node/"
DRAIN_PREFIX = "drain/"
RESTART_PREFIX = "restart/"


@dataclass(frozen=True, slots=True)
class Holding:
    """Who owns an address. `owner` and `heir` are node ids or NOBODY; times are Unix seconds for people only."""

    owner: int = NOBODY
    heir: int = NOBODY
    releasing: bool = False
    reason: str = ""
    who: str = ""
    since: float = 0.0
    term: int = 0

    @property
    def goes_to(self) -> int:
        """Who has it once a release under way is done."""
        return self.heir if self.releasing else self.owner


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node tells the others of itself. `macs` are the MAC addresses of its interfaces by segment."""

    name: str = ""
    standing: int = int(Standing.JOINING)
    reason: str = ""
    segments: tuple[str, ...] = ()
    macs: tuple[tuple[str, bytes], ...] = ()
    tunnel_address: str = ""
    version: str = ""
    config_version: int = 0
    started_at: float = 0.0
    # Why it does not announce VIPs as routes although it should.
    route_problem: str = ""
    # Its own, which nobody may hold as a VIP.
    addresses: tuple[str, ...] = ()
    # The number of the view in which it joined those whom it tells this; 0: told by a version that does not say.
    joined_in: int = 0


_STANDINGS = frozenset(int(standing) for standing in Standing)

T = TypeVar("T", Holding, NodeFacts)


def pack(value: Holding | NodeFacts) -> bytes:
    """The value as it is stored."""
    return bytes(msgpack.packb(asdict(value)))


def unpack(kind: type[T], data: bytes | memoryview) -> T:
    """The inverse of `pack`; fields a newer version added are ignored. Raises ValueError."""
    try:
        plain = msgpack.unpackb(data)
    except Exception as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
    if not isinstance(plain, dict):
        raise ValueError(f"{kind.__name__}: not a map")
    defaults = kind()
    known: dict[str, Any] = {}
    for item in fields(kind):
        default = getattr(defaults, item.name)
        value = plain.get(item.name, default)
        value = _tuples(value) if isinstance(default, tuple) else value
        if not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
            raise ValueError(f"{kind.__name__}: {item.name} is a {type(value).__name__}")
        known[item.name] = value
    return kind(**known)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True, slots=True)
class Cluster:
    """The replicated state that decisions are made from."""

    members: frozenset[int]
    serving: bool
    facts: Mapping[int, NodeFacts]
    drained: frozenset[int]
    holdings: Mapping[str, Holding]
    wishes: tuple[Wish, ...]
    policy: Policy = field(default_factory=Policy)
    # Members that left to come back at once, under a stretched lease: their addresses wait for them.
    excused: frozenset[int] = frozenset()

    @property
    def gateway_addresses(self) -> dict[str, int]:
        """Address → the gateway whose own it is."""
        return {address: node for node, fact in self.facts.items() for address in fact.addresses}


@dataclass(frozen=True, slots=True)
class Write:
    """A holding to be written, if it is still what it was (`before`; None: not there). `after` None deletes it."""

    address: str
    before: Holding | None
    after: Holding | None


def seats(cluster: Cluster) -> list[Seat]:
    """The members as the planner sees them."""
    return [seat_of(cluster, node) for node in sorted(cluster.members)]


def seat_of(cluster: Cluster, node: int) -> Seat:
    """One member as the planner sees it; without facts it is joining and reaches nothing."""
    facts = cluster.facts.get(node, NodeFacts())
    standing = Standing(facts.standing) if facts.standing in _STANDINGS else Standing.OUT
    if node in cluster.drained and standing is Standing.READY:
        standing = Standing.DRAINED
    if not cluster.serving:
        standing = Standing.OUT
    return Seat(node, frozenset(facts.segments), standing)


def coordinator(members: Iterable[int], joined: Collection[int]) -> int:
    """The member that plans: the lowest of those that have the group's state; NOBODY in an empty group."""
    return min((node for node in members if node not in joined), default=NOBODY)


def decide(
    cluster: Cluster, *, may_rebalance: bool, now: float, occupied: Collection[str] = frozenset()
) -> list[Write]:
    """What the coordinator has to write so that every address comes where it belongs. Empty when nothing is to do.

    `occupied` addresses, which somebody outside the group answers for, are left to them: given to nobody, and given up
    by who has them.
    """
    waiting = {address for address, holding in cluster.holdings.items() if holding.owner in cluster.excused}
    waiting |= set(occupied)
    barred = cluster.gateway_addresses.keys() & {wish.address for wish in cluster.wishes}
    wishes = [wish for wish in cluster.wishes if wish.address not in waiting and wish.address not in barred]
    owners = {address: _settled(holding, cluster) or None for address, holding in cluster.holdings.items()}
    moves = plan(seats(cluster), wishes, owners, cluster.policy, may_rebalance=may_rebalance)
    writes = [transfer(cluster, move.address, move.target or NOBODY, str(move.reason), "", now) for move in moves]
    given_up = sorted(each for each in occupied if cluster.holdings.get(each, Holding()).owner in cluster.members)
    writes += [transfer(cluster, address, NOBODY, "occupied", "", now) for address in given_up]
    writes += _barred(cluster, barred, now)
    writes += _stale_releases(cluster, waiting | barred | {move.address for move in moves}, now)
    writes += _unwanted(cluster, now)
    return [write for write in writes if write is not None]


def _barred(cluster: Cluster, addresses: Iterable[str], now: float) -> list[Write | None]:
    """VIPs that are a gateway's own address: whoever has one gives it up, and nobody gets it."""
    held = (address for address in addresses if cluster.holdings.get(address, Holding()).owner != NOBODY)
    reason = str(Reason.GATEWAY_ADDRESS)
    return [transfer(cluster, address, NOBODY, reason, "", now) for address in sorted(held)]


def _settled(holding: Holding, cluster: Cluster) -> int:
    """Who is to be taken as the owner: of an address on its way, whoever it goes to, if that node is still there."""
    if holding.releasing and holding.heir in cluster.members:
        return holding.heir
    return holding.owner


def transfer(cluster: Cluster, address: str, target: int, reason: str, who: str, now: float) -> Write | None:
    """The write that starts to bring `address` to `target`; None when it is on its way there already."""
    before = cluster.holdings.get(address)
    term = before.term + 1 if before else 1
    if before is not None and before.owner in cluster.members and before.owner != target:
        if before.releasing and before.heir == target:
            return None
        after = replace(before, heir=target, releasing=True, reason=reason, who=who, since=now, term=term)
    else:
        # Nobody to wait for: it was not owned, its owner is out of the group, or a release is taken back.
        after = Holding(target, NOBODY, False, reason, who, now, term)
    return Write(address, before, after)


def _stale_releases(cluster: Cluster, others: Collection[str], now: float) -> list[Write | None]:
    """Releases under way whose owner or heir has left: the heir gets the address now, or the owner keeps it."""
    writes: list[Write | None] = []
    for address, holding in cluster.holdings.items():
        if address in others or not holding.releasing or holding.heir == NOBODY:
            continue
        owner_here, heir_here = holding.owner in cluster.members, holding.heir in cluster.members
        if owner_here and heir_here:
            continue
        owner = holding.heir if heir_here else holding.owner
        after = replace(holding, owner=owner, heir=NOBODY, releasing=False, since=now, term=holding.term + 1)
        writes.append(Write(address, holding, after))
    return writes


def _unwanted(cluster: Cluster, now: float) -> list[Write | None]:
    """Addresses that the configuration no longer has: released, then forgotten."""
    wanted = {wish.address for wish in cluster.wishes}
    writes: list[Write | None] = []
    for address, holding in cluster.holdings.items():
        if address in wanted:
            continue
        if holding.owner in cluster.members:
            if not holding.releasing or holding.heir != NOBODY:
                after = replace(
                    holding, heir=NOBODY, releasing=True, reason="removed", since=now, term=holding.term + 1
                )
                writes.append(Write(address, holding, after))
        else:
            writes.append(Write(address, holding, None))
    return writes


def to_hold(cluster: Cluster, node: int, unconfirmed: Collection[str] = ()) -> frozenset[str]:
    """The addresses that `node` is to answer for now; `unconfirmed` ones were last written before it joined."""
    if not cluster.serving:
        return frozenset()
    mine = (address for address, holding in cluster.holdings.items() if holding.owner == node and not holding.releasing)
    return frozenset(mine) - frozenset(unconfirmed)


def confirm(cluster: Cluster, node: int, unconfirmed: Collection[str]) -> list[Write]:
    """What `node` writes after joining, to go on owning what the state says it owns."""
    writes = []
    for address in sorted(unconfirmed):
        holding = cluster.holdings.get(address)
        if holding is not None and holding.owner == node and not holding.releasing:
            writes.append(Write(address, holding, replace(holding, term=holding.term + 1)))
    return writes


def hand_on(cluster: Cluster, node: int, held: Collection[str], now: float) -> list[Write]:
    """What `node` writes for addresses it was asked to release and does not answer for any more."""
    writes = []
    for address, holding in cluster.holdings.items():
        if holding.owner == node and holding.releasing and address not in held:
            heir = holding.heir if holding.heir in cluster.members else NOBODY
            after = replace(holding, owner=heir, heir=NOBODY, releasing=False, since=now, term=holding.term + 1)
            writes.append(Write(address, holding, after))
    return writes


def _best(cluster: Cluster, *without: Standing) -> list[int]:
    """The members of the best standing there is, some standings left out; none while the group does not serve."""
    if not cluster.serving:
        return []
    able = [seat for seat in seats(cluster) if seat.standing not in without]
    best = min((seat.standing for seat in able), default=Standing.OUT)
    return [seat.node for seat in able if seat.standing is best]


def steering_nodes(cluster: Cluster) -> list[int]:
    """The nodes that share new connections of the gateways themselves: ready members, else the best there are."""
    return _best(cluster, Standing.OUT)


def announcers(cluster: Cluster) -> list[int]:
    """The members that hold the VIPs announced as routes: all that are ready, else all of the best standing there is.

    Never one that is still joining, which is soon the case: connections that routers send to it
    meanwhile might not be known.
    """
    return _best(cluster, Standing.JOINING, Standing.OUT)


def in_use(cluster: Cluster, routed: bool) -> bool:
    """Whether clients are served by what the group's state says: a member owns an address, or announces the `routed`
    ones. Where two groups merge, such a state outweighs one that nobody would miss."""
    owners = {holding.owner for holding in cluster.holdings.values()}
    return cluster.serving and bool(owners & cluster.members or (routed and announcers(cluster)))


def announces(cluster: Cluster, node: int, own: Standing) -> bool:
    """Whether `node`, whose standing is `own` as it knows itself, is to announce VIPs as routes now.

    The worse counts of that and of what the group's state says, which may be from before the node was away.
    """
    facts = cluster.facts.get(node, NodeFacts())
    worse = replace(facts, standing=max(facts.standing, int(own)))
    return node in announcers(replace(cluster, facts={**cluster.facts, node: worse}))


def working_nodes(cluster: Cluster) -> list[int]:
    """The members that keep what they have: all that can pass packets, else the best there are."""
    if not cluster.serving:
        return []
    able = [seat for seat in seats(cluster) if seat.standing is not Standing.OUT]
    whole = [seat.node for seat in able if seat.standing is not Standing.IMPAIRED]
    return whole or [seat.node for seat in able]


def reason_text(reason: str) -> str:
    """A reason in words, for events and tables."""
    return _TEXTS.get(reason, reason.replace("_", " "))


_TEXTS = {
    str(Reason.NO_OWNER): "nobody had it",
    str(Reason.OWNER_LEFT): "its owner left the cluster",
    str(Reason.OWNER_OUT): "its owner is out of service",
    str(Reason.OWNER_DRAINED): "its owner is drained",
    str(Reason.OWNER_JOINING): "its owner has just joined and does not have everything yet",
    str(Reason.OWNER_IMPAIRED): "its owner has lost a link",
    str(Reason.LINK_DOWN): "its owner's link is down",
    str(Reason.PINNED): "pinned",
    str(Reason.FAILBACK): "a preferred gateway is back",
    str(Reason.REBALANCE): "to even out the load",
    str(Reason.OPERATOR): "an operator moved it",
    str(Reason.NO_CANDIDATE): "no gateway can hold it",
    str(Reason.GATEWAY_ADDRESS): "it is a gateway's own address",
    "occupied": "another gateway answers for it, though its datagrams are refused",
}
