# SPDX-License-Identifier: Apache-2.0
"""The cluster's replicated state as this gateway sees it: the ring's shared data and view, read into plain values.

`ClusterState` follows the stream and does nothing by itself; whoever decides asks it for a `lb.ownership.Cluster`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from time import time

from lb.cluster.clocks import here
from lb.cluster.load import weight
from lb.cluster.ownership import (
    DRAIN_PREFIX,
    HOLDING_PREFIX,
    NODE_PREFIX,
    RESTART_PREFIX,
    Cluster,
    Holding,
    NodeFacts,
    coordinator,
    unpack,
)
from lb.cluster.placement import Policy, Standing, Wish
from lb.configuration.model import ClusterConfig, Vip
from sync.driver import Ring
from sync.events import View
from sync.shared import Change

PREFIXES = (HOLDING_PREFIX, NODE_PREFIX, DRAIN_PREFIX, RESTART_PREFIX)
OnHolding = Callable[[str, Holding | None, Holding | None], None]
log = logging.getLogger("lb.cluster")


def wish_of(vip: Vip, ids: dict[str, int], load: float = 1.0) -> Wish:
    """A configured VIP as the planner sees it; names of nodes that are not in the ring mean nobody."""
    prefer = tuple(ids[name] for name in vip.prefer if name in ids)
    return Wish(vip.host, vip.segment, prefer, ids.get(vip.pin) if vip.pin else None, vip.sticky, load)


def policy_of(config: ClusterConfig) -> Policy:
    """The configured policy as the planner sees it."""
    policy = config.policy
    return Policy(policy.rebalance, policy.failback, float(policy.hysteresis_percent))


class ClusterState:
    """Mirrors what matters of the shared data. `changed` is called after each batch of changes, in stream order."""

    def __init__(
        self, ring: Ring, node: int, ids: dict[str, int], changed: Callable[[], None], on_holding: OnHolding
    ) -> None:
        self.node = node
        self.ids = ids
        # Those that the node file names, this gateway among them: who is not, belongs to the cluster no more.
        self.eligible = frozenset(ids.values())
        self.view: View | None = None
        # This gateway has left the ring because its critical resources failed: the last view is not its any more.
        self.shut_out = False
        # The others have it no more among theirs: it is on its own, and they have its addresses.
        self.struck_off = False
        self.holdings: dict[str, Holding] = {}
        self.versions: dict[str, int] = {}
        # When each came to its holder, on this gateway's clock.
        self.since: dict[str, float] = {}
        self.facts: dict[int, NodeFacts] = {}
        self.drained: set[int] = set()
        self.restarting: set[int] = set()
        # Packets per second of each VIP, as far as they are known.
        self.loads: Mapping[str, float] = {}
        # Addresses whose holding was last written before this node joined: not to be trusted before confirmation.
        self.unconfirmed: set[str] = set()
        self._stale_facts: set[int] = set()
        # Member → number of the last view in which it joined.
        self._joined_in: dict[int, int] = {}
        self._rejoined = False
        self._ring = ring
        self._changed = changed
        self._on_holding = on_holding
        ring.data.watch("", self._follow)

    @property
    def complete(self) -> bool:
        """Whether this node's copy of the shared data is the group's."""
        return self._ring.data.complete

    @property
    def joined_in(self) -> int:
        """Number of the view in which this gateway joined the group that it is in; 0 before the first."""
        return self._joined_in.get(self.node, 0)

    @property
    def doubts_own(self) -> bool:
        """Whether an address that is this gateway's by the state may be another's by now."""
        held = (self.holdings.get(address) for address in self.unconfirmed)
        return any(holding is not None and holding.owner == self.node for holding in held)

    @property
    def coordinator(self) -> int:
        """The member that plans."""
        return coordinator(self.view.members, self.view.joined) if self.view is not None else 0

    @property
    def serving(self) -> bool:
        """Whether this gateway is in a group that may serve."""
        return self.view is not None and self.view.serving and not (self.shut_out or self.struck_off)

    def name(self, node: int) -> str:
        """The node's name, or its number where nobody knows it."""
        return next((name for name, number in self.ids.items() if number == node), f"node {node}" if node else "nobody")

    def take_ids(self, ids: dict[str, int]) -> None:
        """The node file names other gateways than before."""
        self.eligible = frozenset(ids.values())
        self.ids = {name: node for name, node in self.ids.items() if node not in self.eligible} | ids

    def forget_names(self) -> None:
        """Names of nodes that belong to the cluster no more and are out of its view."""
        present = self.eligible | frozenset(self.view.members if self.view is not None else ())
        self.ids = {name: node for name, node in self.ids.items() if node in present}

    def strangers(self) -> list[int]:
        """Nodes that belong to the cluster no more and are out of its view, of which there is still shared data."""
        known = self.facts.keys() | self.drained | self.restarting
        members = frozenset(self.view.members) if self.view is not None else frozenset()
        return sorted(known - self.eligible - members)

    def take_view(self, view: View) -> None:
        """A view was committed."""
        if self.view is None:
            self._joined_in.setdefault(self.node, view.number)
        self._joined_in |= dict.fromkeys(view.joined, view.number)
        self.view = view
        self.struck_off = self.struck_off and len(view.members) == 1
        # What a member said before it (re)joined tells nothing about what it is now.
        self._stale_facts = (self._stale_facts | view.joined) & set(view.members)
        if self.node in view.joined:
            self._rejoined = True
            self.unconfirmed = set(self.holdings)

    def read_all(self) -> None:
        """Read everything anew: the copy has become complete after a transfer, or is the group's again. What was not
        confirmed before, and has not been written since, is not by being read once more."""
        doubtful = {address: self.versions.get(address) for address in self.unconfirmed}
        self.holdings, self.versions, self.facts = {}, {}, {}
        self.drained, self.restarting = set(), set()
        for prefix in PREFIXES:
            for key, item in self._ring.data.items(prefix):
                self._take(key, item.value, item.version, quiet=True)
        self.unconfirmed = {address for address in self.holdings if doubtful.get(address) == self.versions[address]}
        if self._rejoined:
            self._rejoined = False
            self.unconfirmed = set(self.holdings)

    def cluster(self, config: ClusterConfig) -> Cluster:
        """The state that decisions are made from."""
        view = self.view
        exclusive = (vip for vip in config.vips if not vip.is_routed)
        facts = {
            node: replace(fact, standing=max(fact.standing, int(Standing.JOINING)))
            if node in self._stale_facts
            else fact
            for node, fact in self.facts.items()
        }
        return Cluster(
            members=frozenset(view.members) if view is not None else frozenset(),
            serving=self.serving,
            facts=facts,
            drained=frozenset(self.drained),
            holdings=dict(self.holdings),
            wishes=tuple(wish_of(vip, self.ids, weight(self.loads.get(vip.host, 0.0))) for vip in exclusive),
            policy=policy_of(config),
            excused=frozenset(self.restarting),
        )

    def _follow(self, changes: Iterable[Change]) -> None:
        concerned = [change for change in changes if change.key.startswith(PREFIXES)]
        for change in concerned:
            item = change.item
            self._take(change.key, item.value if item else None, item.version if item else 0, quiet=False)
        if concerned:
            self._changed()

    def _take(self, key: str, value: bytes | None, version: int, *, quiet: bool) -> None:
        try:
            if key.startswith(HOLDING_PREFIX):
                self._take_holding(key.removeprefix(HOLDING_PREFIX), value, version, quiet)
            else:
                prefix, _, number = key.partition("/")
                self._take_node(prefix + "/", int(number), value)
        except ValueError as error:
            log.error("shared item %s is not understood: %s", key, error)

    def _take_holding(self, address: str, value: bytes | None, version: int, quiet: bool) -> None:
        if value is not None and version == self.versions.get(address):
            return  # a transferred copy is told of again, change by change
        before, after = self.holdings.get(address), unpack(Holding, value) if value is not None else None
        self.unconfirmed.discard(address)
        if after is None:
            for known in (self.holdings, self.versions, self.since):
                known.pop(address, None)
        else:
            self.holdings[address], self.versions[address] = after, version
            if before is None or before.since != after.since:
                now = time()
                self.since[address] = min(after.since, now) if quiet else here(after.since, now)
        if not quiet:
            self._on_holding(address, before, after)

    def _take_node(self, prefix: str, node: int, value: bytes | None) -> None:
        if prefix == NODE_PREFIX:
            if value is None:
                self.facts.pop(node, None)
            else:
                fact = self.facts[node] = unpack(NodeFacts, value)
                # What it said before it joined may be delivered after it, or be in a copy that was transferred.
                if not fact.joined_in or fact.joined_in >= self._joined_in.get(node, 0):
                    self._stale_facts.discard(node)
                self.ids.setdefault(fact.name, node)
            return
        members = self.drained if prefix == DRAIN_PREFIX else self.restarting
        members.discard(node)
        if value is not None:
            members.add(node)
