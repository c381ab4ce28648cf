# SPDX-License-Identifier: Apache-2.0
"""Datagrams that the ring refuses, told to people: most often somebody has configured something differently.

The ring only counts what it refuses and is not disturbed by it. Here the counters become events, and reasons why a
gateway is not in the cluster, that say what is probably wrong, where, and what to do. Pure.
"""

from collections.abc import Callable, Mapping

from lb.events import Event
from sync.transport import TurnedAway
from sync.transport.wire import VERSION

# Fewer than that between two looks are strays: a port scan, a datagram from before a restart.
WORTH_TELLING = 3
# The same trouble is told again only after this time; of more troubles than that only the counters tell meanwhile.
QUIET_S = 600.0
TROUBLES_MAX = 16
# A gateway that tries to join is heard more often than that.
PRESENT_S = 10.0

EXPLANATIONS = {
    "other_version": (
        f"they speak another version of the ring's protocol than this gateway's {VERSION}",
        "install the same version of rainlb on all gateways (`lbctl nodes` shows what each runs)",
    ),
    "other_cluster": (
        "they name another cluster",
        "`cluster` must be the same in all gateways' node files; two clusters need ports or networks of their own",
    ),
    "bad_tag": (
        "they are not signed with this cluster's key",
        "`ring.key_file` must hold the same key on all gateways; if it does, somebody forges datagrams",
    ),
    "unknown_key": (
        "they are signed with a key that is not in this gateway's key file",
        "copy the same key file to all gateways (`lbctl key` makes and exchanges keys)",
    ),
    "reflected": (
        "another host sends with this gateway's own id",
        "give every gateway a `node.id` of its own, and name it in the others' `[ring.peers]`",
    ),
    "impersonated": (
        "a peer's address sends with another id than `[ring.peers]` gives it",
        "compare `node.id` over there with `[ring.peers]` here; no two gateways may have the same id or address",
    ),
    "misdirected": (
        "they are for another node's id",
        "compare `node.id` here with `[ring.peers]` of the others; no two gateways may have the same id or address",
    ),
    "unknown_source": (
        "they come from an address that no peer has",
        "if it is a gateway's, add it to its `addresses` in `[ring.peers]`; else keep strangers from the ring's port",
    ),
}


class Refusals:
    """Follows what the ring refuses; `take` gives what is worth an event. `name` gives a node id's name."""

    def __init__(self, name: Callable[[int], str]) -> None:
        self._name = name
        self._seen: dict[tuple[str, int], int] = {}
        self._told: dict[tuple[str, str], float] = {}
        # By node: why its datagrams are refused, and when that was last so.
        self._refused: dict[int, tuple[str, float]] = {}

    def take(self, now: float, turned_away: Mapping[tuple[str, int], TurnedAway]) -> list[Event]:
        """The events for what was refused since the last look; `now` in seconds, `turned_away` as of `Ring`."""
        events = []
        for (reason, peer), datagrams in turned_away.items():
            fresh = datagrams.total - self._seen.get((reason, peer), 0)
            self._seen[reason, peer] = datagrams.total
            if not fresh or reason not in EXPLANATIONS:
                continue
            origin = self._origin(reason, peer, datagrams)
            what, remedy = EXPLANATIONS[reason]
            self._refused[peer] = f"its datagrams are refused: {what} ({origin}); {remedy}", now
            if fresh >= WORTH_TELLING and self._is_news(now, (reason, origin)):
                text = f"datagrams at the ring's port are refused: {what} ({origin}); {remedy}"
                events.append(Event("ring.refused", text, subject=reason, why=reason, severity="warning"))
        return events

    def of(self, node: int, now: float) -> str:
        """Why what a peer's address sends is refused at present, and what to do; empty if it is not."""
        why, at = self._refused.get(node, ("", now))
        return why if now - at <= PRESENT_S else ""

    def others_there(self, now: float) -> bool:
        """Whether some peer's address is heard at present, though what it sends is refused."""
        return any(peer and now - at <= PRESENT_S for peer, (_, at) in self._refused.items())

    def _is_news(self, now: float, trouble: tuple[str, str]) -> bool:
        self._told = {each: at for each, at in self._told.items() if now - at < QUIET_S}
        if trouble in self._told or len(self._told) >= TROUBLES_MAX:
            return False
        self._told[trouble] = now
        return True

    def _origin(self, reason: str, peer: int, datagrams: TurnedAway) -> str:
        """Where they come from and whom they name, as far as that can be read."""
        source = datagrams.source
        host = source[0] if isinstance(source, tuple) else source
        whose = f"the address of {self._name(peer)}" if peer else "nobody's address"
        claimed = datagrams.claimed
        said = (
            f"version {datagrams.version}" if reason == "other_version" else f"node id {claimed}{self._known(claimed)}"
        )
        return f"from {host}, {whose}, with {said}"

    def _known(self, node: int) -> str:
        name = self._name(node)
        return "" if name == f"node {node}" else f" ({name})"
