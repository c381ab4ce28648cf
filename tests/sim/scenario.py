# SPDX-License-Identifier: Apache-2.0
"""What a seed stands for: cluster size, settings and faults, all derived from the seed and printable."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

from sync.config import Mode, Policy

RELAYS_FROM = 100_000
CABLES_FROM = 200_000
LOCKS_FROM = 300_000
CARRIERS_FROM = 400_000
"""Seeds from here on have the faults that were thought of later; below, every seed means what it always has."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Rates are per datagram, or per second of simulated time and per cluster."""

    seed: int
    nodes: int
    links: int
    parallel: bool
    mode: Mode
    policy: Policy
    delay_ms: float
    jitter_ms: float
    loss: float
    duplication: float
    reordering: float
    corruption: float
    crash_rate: float
    restart_ms: float
    remember: float
    """Probability that a restarted node remembers its view number."""
    pause_rate: float
    pause_ms: float
    partition_rate: float
    one_way_rate: float
    link_rate: float
    fault_ms: float
    jump_rate: float
    jump_back: bool
    drift: float
    leave_rate: float
    multicast_rate: float
    large: float
    """Probability that a multicast carries a large payload."""
    burst: float
    shared_rate: float
    join_spread_ms: float
    relay_rate: float
    """Multicasts of nodes outside of the ring, through a member."""
    strike_rate: float
    """Nodes that lose their eligibility for a while."""
    cable_rate: float
    """Cables that are pulled out for a while, with all that hangs on the carrier."""
    hang_rate: float
    """Processes that stand still for longer than a lease of a lock lasts."""
    lock_lease_ms: int
    lock_rate: float
    """How often nodes ask for the lock, or release it."""
    carrier_noticed: float
    """Probability that a node is told at once that its cable is out."""

    @classmethod
    def from_seed(cls, seed: int) -> Scenario:
        rng = random.Random(seed)

        def maybe(probability: float, low: float, high: float) -> float:
            value = rng.uniform(low, high)
            return value if rng.random() < probability else 0.0

        return cls(
            seed=seed,
            nodes=rng.choice((2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9)),
            links=rng.choice((1, 1, 2)),
            parallel=rng.random() < 0.5,
            mode=Mode.FAST if rng.random() < 0.2 else Mode.CONSISTENT,
            policy=rng.choice((Policy.ALL, Policy.ALL, Policy.MAJORITY, Policy.CRITICAL)),
            delay_ms=rng.choice((0.05, 0.1, 0.3, 1.0)),
            jitter_ms=rng.choice((0.0, 0.1, 0.5, 2.0)),
            loss=maybe(0.5, 0.0, 0.2),
            duplication=maybe(0.4, 0.0, 0.1),
            reordering=maybe(0.4, 0.0, 0.1),
            corruption=maybe(0.25, 0.0, 0.03),
            crash_rate=maybe(0.6, 0.2, 3.0),
            restart_ms=rng.choice((2.0, 20.0, 100.0, 400.0)),
            remember=rng.choice((0.0, 0.5, 1.0)),
            pause_rate=maybe(0.5, 0.2, 4.0),
            pause_ms=rng.choice((5.0, 30.0, 60.0, 200.0)),
            partition_rate=maybe(0.5, 0.2, 3.0),
            one_way_rate=maybe(0.4, 0.2, 3.0),
            link_rate=maybe(0.4, 0.2, 3.0),
            fault_ms=rng.choice((10.0, 60.0, 200.0, 500.0)),
            jump_rate=maybe(0.2, 0.2, 2.0),
            jump_back=rng.random() < 0.3,
            drift=rng.choice((0.0, 0.0001, 0.001)),
            leave_rate=maybe(0.3, 0.1, 2.0),
            multicast_rate=rng.choice((5.0, 50.0, 300.0)),
            large=rng.choice((0.0, 0.0, 0.05, 0.2)),
            burst=rng.choice((0.0, 0.1, 0.3)),
            shared_rate=rng.choice((0.0, 10.0, 60.0)),
            join_spread_ms=rng.choice((0.0, 5.0, 300.0)),
            relay_rate=maybe(0.5, 2.0, 60.0) if seed >= RELAYS_FROM else 0.0,
            strike_rate=maybe(0.4, 0.2, 2.0) if seed >= RELAYS_FROM else 0.0,
            cable_rate=maybe(0.4, 0.2, 3.0) if seed >= CABLES_FROM else 0.0,
            hang_rate=maybe(0.6, 0.2, 2.0) if seed >= LOCKS_FROM else 0.0,
            lock_lease_ms=rng.choice((100, 200, 500)) if seed >= LOCKS_FROM else 10_000,
            lock_rate=rng.choice((0.0, 60.0, 200.0)) if seed >= LOCKS_FROM else 0.0,
            carrier_noticed=rng.choice((0.0, 0.5, 1.0)) if seed >= CARRIERS_FROM else 0.0,
        )

    @classmethod
    def calm(cls, seed: int, nodes: int, delay_ms: float) -> Scenario:
        """No fault and no workload; every datagram takes the same time."""
        values: dict[str, Any] = {item.name: 0.0 for item in fields(cls)}
        values.update(seed=seed, nodes=nodes, links=1, parallel=False, jump_back=False, delay_ms=delay_ms)
        values.update(mode=Mode.CONSISTENT, policy=Policy.ALL, restart_ms=1e9, lock_lease_ms=10_000)
        return cls(**values)

    def __str__(self) -> str:
        parts = []
        for item in fields(self):
            value = getattr(self, item.name)
            if value and item.name != "seed":
                parts.append(f"{item.name}={value:.3g}" if isinstance(value, float) else f"{item.name}={value}")
        return " ".join(parts)
