# SPDX-License-Identifier: Apache-2.0
"""What a gateway's metrics tell of the cluster: moves of VIPs, takeovers, turns of the token, the ring's counters."""

import time
from collections.abc import Iterable

from lb.cluster.ownership import Holding
from lb.cluster.stats import TURN_BUCKETS_S
from lb.connections.replication import Replication
from lb.conntrack.replication import ConntrackReplication
from lb.metrics import Registry
from sync.driver import Ring
from sync.events import View


class ClusterFigures:
    """Counts what it is told of."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._moves = registry.counter("vip_moves_total", "Changes of a VIP's owner seen.", ["reason"])
        self._takeover = registry.histogram(
            "takeover_seconds", "From the view that excludes an owner to its VIP being announced here."
        )
        self._turns = registry.histogram(
            "token_turn_seconds", "Time between two visits of the ring's token.", bounds=TURN_BUCKETS_S
        )
        self._left_at = 0.0

    def collect(self, ring: Ring, replication: Replication, conntrack: ConntrackReplication | None) -> None:
        """From now on their counters are read whenever metrics are."""

        def read() -> None:
            counts = {name: float(count) for name, count in replication.counts().items()}
            self._registry.import_counts("replication_total", "Replication by kind.", "what", counts)
            if conntrack is not None:
                tracked = {name: float(count) for name, count in conntrack.counts().items()}
                self._registry.import_counts("conntrack_total", "Conntrack replication by kind.", "what", tracked)
            self._registry.import_counts("ring_total", "The ring's counters.", "what", ring.stats())

        self._registry.collect(read)

    def view(self, before: View | None, view: View) -> None:
        """A view was committed."""
        if before is not None and set(before.members) - set(view.members):
            self._left_at = time.monotonic()

    def moved(self, reason: str) -> None:
        """An address changed hands, here or elsewhere."""
        self._moves.add(1, reason)

    def taken(self, holdings: Iterable[Holding]) -> None:
        """This gateway has just announced addresses for these."""
        for holding in holdings:
            if holding.reason == "owner_left":
                self._takeover.observe(time.monotonic() - self._left_at)

    def turn(self, seconds: float) -> None:
        """The token was here again after that time."""
        self._turns.observe(seconds)
