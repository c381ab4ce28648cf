# SPDX-License-Identifier: Apache-2.0
"""One life of a simulated node, and its clock."""

from __future__ import annotations

from math import inf

from sync.config import RingConfig
from sync.events import Event
from sync.node import Node
from sync.ring.lineage import EpochId
from sync.ring.regeneration import Ring
from tests.sim.shared import SharedWorkload


class Clock:
    """A node's own clock over the simulated time."""

    def __init__(self, offset: float, rate: float) -> None:
        self.offset = offset
        self.rate = rate

    def read(self, now: float) -> float:
        return now * self.rate + self.offset

    def when(self, local: float) -> float:
        return (local - self.offset) / self.rate


class Instance:
    """One life of a node."""

    def __init__(self, config: RingConfig, incarnation: int, node: Node) -> None:
        self.config = config
        self.incarnation = incarnation
        self.node = node
        self.identity = (config.node, incarnation)
        self.absent = False
        """Asked to leave, or shut out."""
        self.shut_out = False
        self.paused_until = 0.0
        self.waiting: list[Event] = []
        """What happens to it while it is stalled."""
        self.timer_at = inf
        self.epoch_before: EpochId | None = None
        """Epoch of its token when the current step began."""
        self.crash_after: int | None = None
        """Die after that many effects of the next step."""
        self.open_tags: dict[int, list[bytes]] = {}
        self.shared: SharedWorkload | None = None

    @property
    def ring(self) -> Ring:
        return self.node._ring
