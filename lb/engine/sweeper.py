# SPDX-License-Identifier: Apache-2.0
"""Removes connections that have been silent for too long, in bulk, and counts those that stay.

A sweep reads the connection maps chunk by chunk, decides with array operations, and deletes in batches; it runs in a
thread, and the system calls release the interpreter. A million entries take well under a second.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebpf import layout
from ebpf.layout import State
from ebpf.map_access import Map
from lb.configuration.model import Timeouts

Array = NDArray[Any]

STATE_COUNT = 256
CHUNK_PAUSE_SECONDS = 0.001
UNKNOWN_STATE_TIMEOUT_S = 60
# A connection that another gateway handles is seen here only when its record comes: it is kept for longer, so that it
# is still here when that gateway dies.
FOREIGN_FACTOR = 5
NEVER_OPENED = 0xFFFF_FFFF


@dataclass(slots=True)
class Census:
    """What a sweep found: connections by target and service, when each service's oldest was opened, and what went."""

    by_target: Array = field(default_factory=lambda: np.zeros(layout.TARGET_COUNT_MAX, np.int64))
    by_service: Array = field(default_factory=lambda: np.zeros(layout.SERVICE_COUNT_MAX, np.int64))
    oldest_opened_s: Array = field(default_factory=lambda: np.full(layout.SERVICE_COUNT_MAX, NEVER_OPENED, np.uint32))
    seen: int = 0
    expired: int = 0
    seconds: float = 0.0

    def oldest(self) -> dict[int, int]:
        """When the oldest connection of each service that has any was opened."""
        services = np.flatnonzero(self.by_service)
        return {int(service): int(self.oldest_opened_s[service]) for service in services}


def timeout_table(timeouts: Timeouts) -> Array:
    """Seconds of silence allowed, by state."""
    table = np.full(STATE_COUNT, UNKNOWN_STATE_TIMEOUT_S, np.int64)
    table[State.SYN] = timeouts.tcp_half_open_s
    table[State.ESTABLISHED] = timeouts.tcp_established_s
    table[[State.FIN_CLIENT, State.FIN_SERVER]] = timeouts.tcp_closing_s
    table[[State.CLOSING, State.RESET]] = timeouts.tcp_closed_s
    table[State.UDP_ONCE] = timeouts.udp_new_s
    table[State.UDP] = timeouts.udp_stream_s
    return table


def is_expired(values: Array, table: Array, now_s: int, node: int) -> NDArray[np.bool_]:
    """Which of these connections have been silent for longer than their state allows; `node` is this gateway's number.

    A time ahead of ours (the packet came after the clock was read) is silence of zero.
    """
    silent = now_s - values["last_seen_s"].astype(np.int64)
    allowed = table[values["state"]] * np.where(values["owner"] == node, 1, FOREIGN_FACTOR)
    return np.asarray(silent > allowed, np.bool_)


def sweep(
    maps: Iterable[Map], timeouts: Timeouts, now_s: int, node: int, pause_s: float = CHUNK_PAUSE_SECONDS
) -> Census:
    """One pass over the connection maps. Blocks; sleeps `pause_s` after each chunk, so that others get the
    processor."""
    census, table, begin = Census(), timeout_table(timeouts), time.monotonic()
    for each in maps:
        for keys, values in each.chunks():
            expired = is_expired(values, table, now_s, node)
            if expired.any():
                census.expired += each.delete(keys[expired])
            _count(census, values[~expired])
            time.sleep(pause_s)
    census.seconds = time.monotonic() - begin
    return census


def _count(census: Census, values: Array) -> None:
    census.seen += len(values)
    if not len(values):
        return
    services = np.minimum(values["service"], layout.SERVICE_COUNT_MAX - 1)
    targets = np.minimum(values["target"], layout.TARGET_COUNT_MAX - 1)
    census.by_target += np.bincount(targets, minlength=layout.TARGET_COUNT_MAX)
    census.by_service += np.bincount(services, minlength=layout.SERVICE_COUNT_MAX)
    np.minimum.at(census.oldest_opened_s, services, values["opened_s"])


def corrected_loads(census: Census, counted: Iterable[int]) -> tuple[Array, Array]:
    """Keys and values of target_load for the targets whose connections are counted.

    The path counts up and down as connections come and go; entries that the map evicted were never counted down, so
    each sweep sets the count right.
    """
    targets = np.array(sorted(counted), np.uint32)
    loads = np.zeros(len(targets), layout.TARGET_LOAD)
    loads["active"] = census.by_target[targets]
    return targets, loads
