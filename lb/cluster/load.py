# SPDX-License-Identifier: Apache-2.0
"""How much traffic each VIP attracts, for `policy.rebalance = "load"`.

Every gateway reads the packet path's counters of the services behind each VIP and tells the others packets per second;
the sum over the gateways is the VIP's load, whoever owns it and whoever its packets were steered to. Rates are averaged
over a while, so that a burst moves nothing; together with the hysteresis and the pause after a move (`placement`) that
keeps addresses from going back and forth.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy.typing as npt

from ebpf.maps import Maps
from lb.configuration.model import ClusterConfig

Array = npt.NDArray[Any]

INTERVAL_S = 2.0
AVERAGE_S = 20.0
# What an address counts for that has next to no traffic: small differences among quiet ones move nothing, and what has
# no traffic yet is spread by number.
QUIET_PACKETS_PER_S = 100.0
# `local` services have no targets whose packets are counted, only connections: each counts for that many packets.
LOCAL_CONNECTION_PACKETS = 10


# A counter of the packet path: the VIP it counts for, and the service and target (0: the service itself) it belongs to.
Counter = tuple[str, int, int]


def packets_counted(config: ClusterConfig, packets: Array, opened: Array) -> dict[Counter, int]:
    """Packets counted so far for the services behind VIPs; `packets` by target id, `opened` by service id."""
    counts: dict[Counter, int] = {}
    for service in config.services:
        host = str(service.ip)
        for backend in service.backends:
            counts[host, service.id, backend.id] = int(packets[backend.id])
        if not service.backends:
            counts[host, service.id, 0] = int(opened[service.id]) * LOCAL_CONNECTION_PACKETS
    return counts


def read_counters(maps: Maps, config: ClusterConfig) -> dict[Counter, int]:
    """`packets_counted` from the maps, as far as they are in use. Blocks; raises OSError."""
    targets = max((backend.id for service in config.services for backend in service.backends), default=0)
    services = max((service.id for service in config.services), default=0)
    packets = maps.target_counters.head(targets + 1)["packets"].sum(axis=1)
    opened = maps.service_counters.head(services + 1)["opened"].sum(axis=1)
    return packets_counted(config, packets, opened)


class VipRates:
    """Averaged packets per second of each VIP on this gateway."""

    def __init__(self) -> None:
        self._counts: dict[Counter, int] = {}
        self._at = 0.0
        self.rates: dict[str, float] = {}

    def take(self, now: float, counts: Mapping[Counter, int]) -> None:
        """Take in a reading of the counters at `now` (seconds). One that is new, or went back, counts from here on."""
        passed, before = now - self._at, self._counts
        self._at, self._counts = now, dict(counts)
        if not before or passed <= 0:
            return
        grown: dict[str, int] = {}
        for counter, count in counts.items():
            host = counter[0]
            grown[host] = grown.get(host, 0) + max(0, count - before.get(counter, count))
        fresh = 1.0 - math.exp(-passed / AVERAGE_S)
        old = self.rates
        self.rates = {h: old.get(h, 0.0) + fresh * (n / passed - old.get(h, 0.0)) for h, n in grown.items()}


class LoadMeter:
    """Measures for as long as `run` runs; the counters are read by a worker."""

    def __init__(self, maps: Maps, config: Callable[[], ClusterConfig], workers: Executor) -> None:
        self._maps = maps
        self._config = config
        self._workers = workers
        self._rates = VipRates()

    @property
    def rates(self) -> Mapping[str, float]:
        """Packets per second of each VIP on this gateway."""
        return self._rates.rates

    async def run(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        while True:
            # Counters that cannot be read now are read the next time.
            with contextlib.suppress(OSError):
                counts = await loop.run_in_executor(self._workers, read_counters, self._maps, self._config())
                self._rates.take(time.monotonic(), counts)
            await asyncio.sleep(INTERVAL_S)


def sum_of(reports: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The cluster's packets per second by VIP, from what each gateway reports."""
    total: dict[str, float] = {}
    for report in reports:
        for host, rate in report.items():
            total[host] = total.get(host, 0.0) + rate
    return total


def weight(rate: float) -> float:
    """What an address with this rate counts for in planning."""
    return max(rate, QUIET_PACKETS_PER_S)
