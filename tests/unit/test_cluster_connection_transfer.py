# SPDX-License-Identifier: Apache-2.0
"""Whole tables and single buckets from one gateway's map to another's."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.layout import State
from lb.connections import taker
from lb.connections.giver import Giver
from lb.connections.records import Digest, Records, RecordsError, bucket_of, hash_keys, to_entries
from lb.connections.taker import Known, Taker
from lb.connections.transfer import Kind, Scope, TransferError, read_message
from tests.unit.test_cluster_connection_records import some_records
from tools.bench.record_source import new_map


class Gateway:
    """One gateway's map with both ends of transfers; `link` delivers its messages."""

    def __init__(self, node: int, peers: dict[int, "Gateway"]) -> None:
        self.node = node
        self.peers = peers
        peers[node] = self
        self.connections = new_map("connections", 1 << 18)
        self.executor = ThreadPoolExecutor(1)
        self.ready = True
        self.cut_after: int | None = None
        self.giver = Giver(node, self.connections, self.executor, self.send, lambda: self.ready)
        self.taker = Taker(node, self.connections, self.executor, self.send)

    async def send(self, peer: int, message: bytes) -> None:
        if self.cut_after is not None:
            if self.cut_after == 0:
                return
            self.cut_after -= 1
        await asyncio.sleep(0)
        self.peers[peer].deliver(self.node, bytes(message))

    def deliver(self, origin: int, message: bytes) -> None:
        kind, transfer, body = read_message(message)
        if kind is Kind.ASK:
            self.giver.asked(origin, transfer, Scope.unpack(body))
        else:
            self.taker.received(origin, kind, transfer, body)

    def put(self, records: Records) -> None:
        self.connections.update(*to_entries(records, int(time.monotonic())))

    def digest(self) -> Digest:
        digest = Digest()
        for keys, values in self.connections.chunks():
            digest.add(keys, values)
        return digest


@pytest.fixture
async def gateways() -> AsyncIterator[tuple[Gateway, Gateway]]:
    peers: dict[int, Gateway] = {}
    pair = Gateway(1, peers), Gateway(2, peers)
    yield pair
    for gateway in pair:
        await gateway.giver.close()
        gateway.executor.shutdown()
        gateway.connections.close()


async def test_a_joiner_ends_up_with_the_same_table(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    old.put(some_records(100_000))
    own = await new.taker.fetch(1, prune=True)
    assert new.digest() == old.digest()
    assert (len(own), new.taker.fetched, old.giver.entries) == (0, 100_000, 100_000)


async def test_an_empty_table_is_a_table_too(gateways: tuple[Gateway, Gateway]) -> None:
    _, new = gateways
    assert len(await new.taker.fetch(1, prune=True)) == 0


async def test_stale_entries_go_and_own_new_ones_come_back_for_publishing(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    old.put(some_records(1000))
    new.put(some_records(10, first=5000, node=1))  # closed at the peers while this gateway was away
    new.put(some_records(7, first=6000, node=2))  # opened here meanwhile
    wrong = some_records(5)
    wrong["value"]["target"] = 99
    new.put(wrong)
    own = await new.taker.fetch(1, prune=True)
    assert sorted(own["key"]["source_port"]) == [6000 + 1024 + number for number in range(7)]
    assert new.taker.dropped == 10
    old.put(own)
    assert new.digest() == old.digest()


async def test_records_of_the_ring_are_newer_than_the_transfer(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    old.put(some_records(30_000))
    fetching = asyncio.ensure_future(new.taker.fetch(1, prune=True))
    await asyncio.sleep(0.005)
    assert not fetching.done()
    moved = some_records(30_000)
    moved["value"]["target"] = 77
    late = moved[-1000:]

    def write_late() -> None:
        new.taker.note_writing(late["key"].copy())
        new.put(late)

    new.executor.submit(write_late)
    await fetching
    _, values = new.connections.dump()
    assert (values["target"] == 77).sum() == 1000
    assert len(values) == 30_000


async def test_a_bucket_alone_is_repaired(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    old.put(some_records(20_000))
    new.put(some_records(20_000))
    keys, _ = to_entries(some_records(20_000), 0)
    lost = 7777
    bucket = int(bucket_of(hash_keys(keys))[lost])
    new.connections.delete(keys[lost : lost + 1])
    assert list(new.digest().differing(old.digest())) == [bucket]
    await new.taker.fetch(1, Scope(owner=1, buckets=(bucket,)), prune=True)
    assert new.digest() == old.digest()
    assert new.taker.fetched < 20_000 // 256 * 2
    assert new.taker.dropped == 0


async def test_half_open_connections_are_not_transferred(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    records = some_records(10)
    records["value"]["state"][:4] = State.SYN
    old.put(records)
    await new.taker.fetch(1)
    assert new.taker.fetched == 6


async def test_a_giver_that_is_not_complete_refuses(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    old.ready = False
    with pytest.raises(TransferError, match="refused"):
        await new.taker.fetch(1)
    assert old.giver.refused == 1


async def test_a_giver_that_falls_silent_is_noticed(
    gateways: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taker, "SILENCE_S", 1.5)
    old, new = gateways
    old.put(some_records(30_000))
    old.cut_after = 3
    with pytest.raises(TransferError, match="nothing for"):
        await new.taker.fetch(1, prune=True)
    # What came is kept, nothing was dropped, and the next giver completes it.
    assert new.taker.fetched > 0
    old.cut_after = None
    await new.taker.fetch(1, prune=True)
    assert new.digest() == old.digest()


async def test_a_lost_part_does_not_pass_as_complete(gateways: tuple[Gateway, Gateway]) -> None:
    old, new = gateways
    old.put(some_records(100))
    new.deliver = lambda origin, message: (  # type: ignore[method-assign]
        None if read_message(message)[0] is Kind.PART else Gateway.deliver(new, origin, message)
    )
    with pytest.raises(TransferError, match="100 announced, 0 arrived"):
        await new.taker.fetch(1, prune=True)


@given(st.integers(0, 255), st.none() | st.sets(st.integers(0, 255)))
def test_scope_round_trip(owner: int, buckets: set[int] | None) -> None:
    scope = Scope(owner, None if buckets is None else tuple(sorted(buckets)))
    if buckets is not None and len(buckets) == 256:
        scope = Scope(owner)
    assert Scope.unpack(scope.pack()) == scope


@given(st.binary(max_size=80))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    with contextlib.suppress(RecordsError):
        kind, _, body = read_message(b"CT" + data)
        assert kind is not Kind.ASK or Scope.unpack(body).owner < 256


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=8), st.lists(st.integers(0, 50), max_size=20))
def test_known_is_a_set(parts: list[list[int]], asked: list[int]) -> None:
    known, expected = Known(), set()
    for part in parts:
        known.add(np.array(part, np.uint64))
        expected |= set(part)
        assert list(known.contains(np.array(asked, np.uint64))) == [number in expected for number in asked]
