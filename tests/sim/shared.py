# SPDX-License-Identifier: Apache-2.0
"""Shared data and locks on top of the simulated ring, and what must hold for them."""

from __future__ import annotations

import random

from sync.events import Deliver, Event, Refusal, View
from tests.sim.checkers import Checkers


class SharedWorkload:
    """One node's replica with a small workload."""

    def __init__(self, node: int, incarnation: int, checkers: Checkers) -> None:
        self.node = node

    def act(self, now: float, rng: random.Random) -> None:
        pass

    def take(self, now: float) -> list[Event]:
        return []

    def delivered(self, now: float, batch: Deliver) -> None:
        pass

    def view_changed(self, now: float, view: View) -> None:
        pass

    def from_peer(self, now: float, peer: int, payload: bytes) -> None:
        pass

    def refused(self, tag: int, refusal: Refusal) -> None:
        pass

    def left(self) -> None:
        pass

    def died(self) -> None:
        pass

    def deadline(self) -> float:
        return float("inf")

    def unsettled(self) -> str | None:
        return None

    def digest(self) -> bytes:
        return b""
