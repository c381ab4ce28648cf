# SPDX-License-Identifier: Apache-2.0
"""Replication as a gateway runs it: real rings on loopback, real maps, two gateways in one process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
import pytest
from netlab.waiting import until

from ebpf.layout import State
from ebpf.maps import Maps
from lb.configuration.node import Interface, Node, NodeConfig
from lb.configuration.node import Ring as RingSettings
from lb.connections import replication
from lb.connections.records import Digest, Records, to_entries
from lb.connections.replication import Replication
from sync.driver import Ring
from tests.unit.test_cluster_connection_records import some_records
from tests.unit.test_sync_driver import make_rings
from tools.bench.record_source import RecordSource, new_map

SURVEY_S = 0.3


class Gateway:
    """A ring, a table, and what keeps it like the others'."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        node = ring.config.node
        self.source = RecordSource(1 << 20)
        self.connections = new_map("connections", 1 << 16)
        config = NodeConfig("test", Node(f"gw{node}", node), (Interface("lo", "lan"),), ring=RingSettings((), ""))
        self.tasks: list[asyncio.Task[Any]] = []
        maps = Maps({"records": self.source.ring, "connections": self.connections})
        self.replication = Replication(config, maps, ring, self._spawn, lambda complete: None)
        ring.on_view(self.replication.take_view)

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(work, name=name))

    def start(self) -> None:
        self.ring.start()
        self.replication.start()

    async def stop(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.replication.close()
        await self.ring.leave()
        self.ring.close()
        self.source.close()
        self.connections.close()

    def put(self, records: Records) -> None:
        self.connections.update(*to_entries(records, int(time.monotonic())))

    def keys(self) -> set[bytes]:
        return {key.tobytes() for key in self.connections.dump()[0]}

    def digest(self) -> Digest:
        digest = Digest()
        for keys, values in self.connections.chunks():
            digest.add(keys, values)
        return digest


@pytest.fixture
async def gateways(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Gateway, Gateway]]:
    monkeypatch.setattr(replication, "REPAIR_INTERVAL_S", SURVEY_S)
    first, second = map(Gateway, make_rings(2))
    async with contextlib.AsyncExitStack() as stack:
        for gateway in (first, second):
            stack.push_async_callback(gateway.stop)
        yield first, second


async def both_complete(first: Gateway, second: Gateway) -> None:
    for gateway in (first, second):
        if not gateway.ring.members:
            gateway.start()
    await until(lambda: all(len(g.ring.members) == 2 and g.replication.complete for g in (first, second)))


async def test_a_joiner_takes_the_table_and_is_then_kept_up_to_date(gateways: tuple[Gateway, Gateway]) -> None:
    first, second = gateways
    first.put(some_records(500))
    first.start()
    await until(lambda: first.replication.complete)
    assert not second.replication.complete
    await both_complete(first, second)
    await until(lambda: second.keys() == first.keys())
    before = second.replication.counts()["received"]
    first.source.emit(200)
    await until(lambda: len(second.keys()) == 700)
    assert second.replication.counts()["received"] == before + 200


async def test_what_a_copy_lacks_or_has_too_much_is_repaired(gateways: tuple[Gateway, Gateway]) -> None:
    first, second = gateways
    await both_complete(first, second)
    records = some_records(400)
    first.put(records)
    second.put(records[50:])
    stranger = some_records(1, first=400)
    second.put(stranger)
    await until(lambda: second.keys() == first.keys())
    assert second.digest() == first.digest()
    counts = second.replication.counts()
    assert counts["repairs"] >= 1
    assert counts["repaired"] >= 50
    assert counts["dropped_stale"] == 1
    assert first.replication.counts()["repairs"] == 0, "the owner's table is the right one"


async def test_udp_that_goes_on_does_not_age_in_the_copies(gateways: tuple[Gateway, Gateway]) -> None:
    first, second = gateways
    await both_complete(first, second)
    records = some_records(10)
    records["value"]["state"] = State.UDP
    first.put(records)
    keys, values = to_entries(records, int(time.monotonic()))
    values["last_seen_s"] -= 1000
    second.connections.update(keys, values)
    now = int(time.monotonic())

    def told_again() -> bool:
        first.put(records)  # the connections go on
        return bool(np.all(second.connections.dump()[1]["last_seen_s"] >= now))

    await until(told_again)
    assert second.keys() == first.keys()
