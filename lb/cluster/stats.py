# SPDX-License-Identifier: Apache-2.0
"""Figures that change all the time, told to the other gateways once a second so that any of them shows all."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgpack

from ebpf.maps import Maps
from ebpf.reasons import REASONS
from lb.cluster.load import sum_of
from lb.cluster.reports import Reports
from lb.cluster.resources import Resources
from sync.driver import Ring
from sync.events import Deliver, TokenVisit

CHANNEL_STATS = 19
INTERVAL_S = 1.0
# The token's longest turn is told for so many intervals.
TURNS_KEPT = 10
# Dense around what is taken for the death of a gateway, by default 40 ms.
TURN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0)
FRESH_S = 5.0
SERVED_REASONS = [reason.number for reason in REASONS if reason.kind == "sent" or reason.name == "PASS_LOCAL"]


@dataclass(frozen=True, slots=True)
class VipFigures:
    """What a gateway tells of VIPs: packets per second by address, and the rest of its kernel lease."""

    packets_per_s: Mapping[str, float] = field(default_factory=dict)
    lease_ms: float = 0.0


class ClusterStats:
    """`status()` gives what the daemon knows of this gateway, `vips()` its part in the VIPs; rates are added here.

    `on_turn` is told how long each turn of the token took, in seconds.
    """

    def __init__(
        self,
        node: int,
        ring: Ring,
        maps: Maps,
        resources: Resources,
        status: Callable[[], dict[str, Any]],
        vips: Callable[[], VipFigures],
        on_turn: Callable[[float], None],
    ) -> None:
        self._node = node
        self._ring = ring
        self._maps = maps
        self._resources = resources
        self._status = status
        self._vips = vips
        self._on_turn = on_turn
        self._others: Reports[tuple[dict[str, Any], VipFigures]] = Reports(FRESH_S)
        self._visits = 0
        self._visited_at = 0.0
        self._turn_s = 0.0
        self._turns_s: deque[float] = deque(maxlen=TURNS_KEPT)
        self._rates: dict[str, float] = {}
        ring.subscribe(CHANNEL_STATS, self._take)
        ring.on_token(self._count)

    async def run(self) -> None:
        """Measure and tell for ever."""
        visits, traffic, at = self._visits, self._traffic(), time.monotonic()
        while True:
            await asyncio.sleep(INTERVAL_S)
            now, visits_now, traffic_now = time.monotonic(), self._visits, self._traffic()
            passed = now - at
            self._turns_s.append(self._turn_s)
            self._turn_s = 0.0
            self._rates = {
                "token_rate": (visits_now - visits) / passed,
                "token_turn_ms": max(self._turns_s) * 1000,
                "packets_per_s": (traffic_now[0] - traffic[0]) / passed,
                "bits_per_s": (traffic_now[1] - traffic[1]) * 8 / passed,
            }
            visits, traffic, at = visits_now, traffic_now, now
            told = msgpack.packb([self.own() | {"time": time.time()}, asdict(self._vips())])
            self._ring.offer(CHANNEL_STATS, told, bulk=False)

    def own(self) -> dict[str, Any]:
        """This gateway's figures."""
        resources = [
            {
                "name": r.name,
                "kind": r.kind,
                "required": r.required,
                "healthy": r.healthy is not False,
                "detail": r.detail,
            }
            for r in self._resources.states()
        ]
        return self._status() | self._rates | {"resources": resources, "clock_offset_s": 0.0}

    def of(self, node: int) -> dict[str, Any]:
        """A gateway's figures; empty when it has told none lately."""
        if node == self._node:
            return self.own()
        told = self._others.of(node)
        return told[0] if told else {}

    def vips_of(self, node: int) -> VipFigures:
        """What a gateway told last about the VIPs; nothing when that is long ago."""
        if node == self._node:
            return self._vips()
        told = self._others.of(node)
        return told[1] if told else VipFigures()

    def vip_loads(self, members: Iterable[int]) -> dict[str, float]:
        """Packets per second of each VIP, all of these gateways together."""
        return sum_of(self.vips_of(node).packets_per_s for node in members)

    def _take(self, batch: Deliver) -> None:
        with contextlib.suppress(ValueError, TypeError, KeyError, msgpack.UnpackException):
            figures, vips = msgpack.unpackb(bytes(batch.payloads()[-1]))
            rates = {str(host): float(rate) for host, rate in dict(vips["packets_per_s"]).items()}
            told = dict(figures)
            told["clock_offset_s"] = float(told.pop("time")) - time.time()
            self._others.take(batch.origin, (told, VipFigures(rates, float(vips["lease_ms"]))))

    def _count(self, _visit: TokenVisit) -> None:
        now = time.monotonic()
        if self._visits:
            turn_s = now - self._visited_at
            self._turn_s = max(self._turn_s, turn_s)
            self._on_turn(turn_s)
        self._visits += 1
        self._visited_at = now

    def _traffic(self) -> tuple[int, int]:
        """Packets and bytes that this gateway has forwarded or served."""
        _, counters = self._maps.reason_counters.dump()
        served = counters[SERVED_REASONS]
        return int(served["packets"].sum()), int(served["bytes"].sum())
