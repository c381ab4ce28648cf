# SPDX-License-Identifier: Apache-2.0
"""Counters of the packet path and their rates, read at most about once a second however many ask."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lb.api.datapath import Counters, DataPath, DataPathAway, Names, Traffic

INTERVAL_S = 1.0
FIRST_WINDOW_S = 0.3
# A rate over a longer gap would hide what happens now.
RATE_WINDOW_MAX_S = 10.0


@dataclass(frozen=True)
class Sample:
    """One reading, with the one before it to take rates from. at: monotonic seconds."""

    at: float
    counters: Counters
    previous: "Sample | None" = None

    def service(self, number: int) -> dict[str, Any]:
        return self._traffic(lambda counters: counters.services, number)

    def backend(self, number: int) -> dict[str, Any]:
        return self._traffic(lambda counters: counters.backends, number)

    def total(self) -> dict[str, Any]:
        """Sum over all services: what this gateway carries."""
        return rates(_sum(self.counters.services), self._before(lambda c: _sum(c.services)), self._elapsed_s)

    def reasons(self) -> list[dict[str, Any]]:
        """As of shapes.Counter, in the order of the packet path's own list."""
        before = self._before(lambda counters: {row.reason: row.packets for row in counters.reasons}) or {}
        return [
            {
                "reason": row.reason,
                "kind": row.kind,
                "meaning": row.meaning,
                "alarming": row.alarming,
                "packets": row.packets,
                "bytes": row.bytes,
                "packets_per_s": per_second(row.packets, before.get(row.reason), self._elapsed_s),
            }
            for row in self.counters.reasons
        ]

    @property
    def has_rates(self) -> bool:
        return self._elapsed_s > 0

    @property
    def _elapsed_s(self) -> float:
        if self.previous is None or self.at - self.previous.at > RATE_WINDOW_MAX_S:
            return 0.0
        return self.at - self.previous.at

    def _before(self, choose: Any) -> Any:
        return choose(self.previous.counters) if self.previous else None

    def _traffic(self, choose: Any, number: int) -> dict[str, Any]:
        now = choose(self.counters).get(number, Traffic())
        before = self._before(lambda counters: choose(counters).get(number, Traffic()))
        return rates(now, before, self._elapsed_s)


def per_second(now: int, before: int | None, elapsed_s: float) -> float | None:
    """None if there is nothing to compare with; a counter that went back (reloaded data path) counts from zero."""
    if before is None or elapsed_s <= 0:
        return None
    return round(max(now - before, 0) / elapsed_s, 1)


def rates(now: Traffic, before: Traffic | None, elapsed_s: float) -> dict[str, Any]:
    """As of shapes.Traffic."""
    bytes_per_s = per_second(now.bytes, before.bytes if before else None, elapsed_s)
    return {
        "packets": now.packets,
        "bytes": now.bytes,
        "connections_new": now.connections_new,
        "connections_active": now.connections_active,
        "refused": now.refused,
        "unreachable": now.unreachable,
        "packets_per_s": per_second(now.packets, before.packets if before else None, elapsed_s),
        "bits_per_s": None if bytes_per_s is None else bytes_per_s * 8,
        "connections_new_per_s": per_second(now.connections_new, before.connections_new if before else None, elapsed_s),
    }


def _sum(table: Mapping[int, Traffic]) -> Traffic:
    rows = table.values()
    return Traffic(
        sum(row.packets for row in rows),
        sum(row.bytes for row in rows),
        sum(row.connections_new for row in rows),
        sum(row.connections_active for row in rows),
        sum(row.refused for row in rows),
        sum(row.unreachable for row in rows),
    )


@dataclass
class Sampler:
    """Keeps the last two readings and the last known names."""

    datapath: DataPath
    names: Names = field(default_factory=Names)
    _last: Sample | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def sample(self, max_age_s: float = INTERVAL_S) -> Sample:
        """A reading at most max_age_s old. Raises DataPathAway."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._last.at >= max_age_s:
                counters = await asyncio.to_thread(self.datapath.counters)
                before = Sample(self._last.at, self._last.counters) if self._last else None
                self._last = Sample(time.monotonic(), counters, before)
            return self._last

    async def sample_or_empty(self, *, with_rates: bool = False) -> Sample:
        """For answers that are of use without counters, too.

        with_rates: rates are worth a short wait when nobody asked lately.
        """
        try:
            sample = await self.sample()
            if with_rates and not sample.has_rates:
                await asyncio.sleep(FIRST_WINDOW_S)
                sample = await self.sample(FIRST_WINDOW_S)
            return sample
        except DataPathAway:
            return Sample(time.monotonic(), Counters())
