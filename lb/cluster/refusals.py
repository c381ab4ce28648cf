# SPDX-License-Identifier: Apache-2.0
"""Datagrams that the ring refuses, told to people: most often somebody has configured something differently.

The ring only counts what it refuses and is not disturbed by it. Here the counters become events that say what is
probably wrong and what to do. Pure.
"""

from collections.abc import Mapping

from lb.events import Event

# Fewer than that between two looks are strays: a port scan, a datagram from before a restart.
WORTH_TELLING = 3
# The same trouble is told again only after this time.
QUIET_S = 600.0
PREFIX = "transport_"

EXPLANATIONS = {
    "other_version": (
        "they speak another version of the ring's protocol",
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
    """Follows the ring's counters; `take` gives what is worth an event."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def take(self, now: float, counters: Mapping[str, float]) -> list[Event]:
        """The events for what was refused since the last look; `now` in seconds, `counters` as of `Ring.stats`."""
        events = []
        for reason, (what, remedy) in EXPLANATIONS.items():
            count = counters.get(PREFIX + reason, 0.0)
            fresh, self._seen[reason] = count - self._seen.get(reason, 0.0), count
            if fresh < WORTH_TELLING or now - self._told.get(reason, -QUIET_S) < QUIET_S:
                continue
            self._told[reason] = now
            text = f"datagrams at the ring's port are refused: {what}; {remedy}"
            events.append(Event("ring.refused", text, subject=reason, why=reason, severity="warning"))
        return events
