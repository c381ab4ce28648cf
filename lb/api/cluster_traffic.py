# SPDX-License-Identifier: Apache-2.0
"""Traffic of services and backends on all gateways together: own rates are told to the others, theirs added.

lbd carries what the API processes tell each other (lb/cluster/traffic.py); here it is packed, read and summed. A row is
the numbers of shapes.Traffic in the order of FIELDS.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from lb.api.sampler import Sample
from lb.control import ControlError
from lb.control.client import ControlClient

COUNTS = ("packets", "bytes", "connections_new", "connections_active", "refused", "unreachable")
FIELDS = (*COUNTS, "packets_per_s", "bits_per_s", "connections_new_per_s")
KINDS = ("services", "backends")
ROWS_MAX = 2048
EXCHANGE_INTERVAL_S = 0.5
# The others measure rates over 0.3 s when nobody asked lately.
ANSWER_S = 0.6

Row = Sequence[float | None]
Told = Mapping[str, Mapping[int, Row]]


def packed(sample: Sample) -> bytes:
    """What this gateway carries, as it is told; of more than ROWS_MAX backends the busiest."""
    tables = (
        {number: sample.service(number) for number in sample.counters.services},
        {number: sample.backend(number) for number in sample.counters.backends},
    )
    told = {}
    for kind, table in zip(KINDS, tables, strict=True):
        busiest = sorted(table, key=lambda number: -(table[number]["packets_per_s"] or 0))[:ROWS_MAX]
        told[kind] = {number: [table[number][name] for name in FIELDS] for number in busiest}
    data: bytes = msgpack.packb(told)
    return data


def unpacked(data: bytes) -> Told:
    """What another gateway told. ValueError for anything else than `packed` makes."""
    try:
        told = msgpack.unpackb(data, strict_map_key=False)
        return {kind: {int(number): _row(row) for number, row in told[kind].items()} for kind in KINDS}
    except (msgpack.UnpackException, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"not the rates of a gateway: {error}") from error


def _row(row: Any) -> Row:
    if not isinstance(row, list) or len(row) != len(FIELDS):
        raise ValueError("a row of another length")
    return [None if value is None else float(value) for value in row]


def summed(own: Mapping[str, Any], others: Sequence[Row]) -> dict[str, Any]:
    """Traffic of all gateways that told; a rate nobody knows yet stays unknown."""
    total: dict[str, Any] = {}
    for index, name in enumerate(FIELDS):
        known = [value for value in (own[name], *(row[index] for row in others)) if value is not None]
        total[name] = sum(known) if known else None
        if name in COUNTS:
            total[name] = int(total[name] or 0)
    return total


@dataclass
class ClusterTraffic:
    """The latest rates of the other gateways; asked for when somebody wants to see them, not more often than due."""

    control: ControlClient
    others: list[Told] = field(default_factory=list)
    missing: int = 0
    malformed: int = 0
    _next: float = 0.0

    async def exchange_now(self, sample: Sample) -> None:
        """For one answer, not a stream: waits a moment for those who were not asked lately."""
        await self.exchange(sample, wanted=True)
        if self.missing:
            await asyncio.sleep(ANSWER_S)
            await self.exchange(sample, wanted=True)

    async def exchange(self, sample: Sample, *, wanted: bool) -> None:
        """Tell this gateway's rates, and take what the others told. Without lbd, or a cluster, there are no others."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EXCHANGE_INTERVAL_S
        try:
            answer = await self.control.call("traffic.exchange", {"own": packed(sample), "wanted": wanted})
        except ControlError:
            self.others, self.missing = [], 0
            return
        self.others = [told for data in answer["others"].values() if (told := self._read(data)) is not None]
        self.missing = answer["members"] - 1 - len(self.others)

    def of(self, kind: str, number: int, own: Mapping[str, Any]) -> dict[str, Any]:
        """As of shapes.ClusterTraffic: this gateway's traffic and the others', and how many gateways that are."""
        rows = [told[kind][number] for told in self.others if number in told[kind]]
        return {**summed(own, rows), "gateways": 1 + len(self.others)}

    def _read(self, data: Any) -> Told | None:
        try:
            return unpacked(data)
        except ValueError:
            self.malformed += 1
            return None
