# SPDX-License-Identifier: Apache-2.0
"""The whole conntrack table from one gateway to another, and every way in which that can go wrong."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from lb.connections.records import RecordsError
from lb.connections.transfer import End, Kind, Scope, TransferError, end_of, message_of
from lb.conntrack import handover
from lb.conntrack.entries import ENTRY, Entries, pack_entries, unpack_entries
from lb.conntrack.handover import PART_ENTRIES_MAX, Giver, Table, Taker, read_ask, take
from tests.unit.test_conntrack_entries import some_entries

GIVER, TAKER = 1, 2


class Store:
    """Where a taker's entries go: the kernel's place."""

    def __init__(self) -> None:
        self.entries = np.zeros(0, ENTRY)

    def write(self, message: bytes | bytearray | memoryview, *, transferred: bool) -> int:
        assert transferred
        entries = unpack_entries(message)
        self.entries = np.concatenate([self.entries, entries])
        return len(entries)


class Link:
    """A giver and a taker; `lose` names the kinds of messages that get lost."""

    def __init__(self, table: Entries, *, fails_after: int | None = None) -> None:
        self.table, self.fails_after = table, fails_after
        self.executor = ThreadPoolExecutor(1)
        self.store = Store()
        self.ready = True
        self.lose: set[Kind] = set()
        self.given = 0
        self.giver = Giver(self._pieces, self.executor, self._to_taker, lambda: self.ready, self._note)
        self.taker = Taker(self.store, self.executor, self._to_giver)

    def _pieces(self) -> Table:
        for number, first in enumerate(range(0, len(self.table), 1000)):
            if number == self.fails_after:
                raise OSError("the table cannot be read")
            yield self.table[first : first + 1000]

    def _note(self, entries: Entries) -> None:
        self.given += len(entries)

    async def _to_taker(self, peer: int, message: bytes | bytearray) -> None:
        assert peer == TAKER
        kind, transfer, body = read_ask(bytes(message))
        if kind not in self.lose:
            self.taker.received(GIVER, kind, transfer, body)
        await asyncio.sleep(0)

    async def _to_giver(self, peer: int, message: bytes | bytearray) -> None:
        assert peer == GIVER
        kind, transfer, _ = read_ask(bytes(message))
        if kind not in self.lose:
            self.giver.asked(TAKER, transfer)


@asynccontextmanager
async def link(table: Entries, *, fails_after: int | None = None) -> AsyncIterator[Link]:
    made = Link(table, fails_after=fails_after)
    try:
        yield made
    finally:
        await made.giver.close()
        made.executor.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "SILENCE_S", 0.3)


@pytest.mark.parametrize("count", [0, 1, PART_ENTRIES_MAX + 1, 20_000])
def test_a_joiner_gets_the_whole_table(count: int) -> None:
    async def run() -> None:
        async with link(some_entries(count)) as made:
            await made.taker.fetch(GIVER)
            assert made.store.entries.tobytes() == made.table.tobytes()
            assert made.giver.entries == made.taker.fetched == made.given == count

    asyncio.run(run())


def test_a_table_that_cannot_be_read_to_its_end_is_no_table() -> None:
    async def run() -> None:
        async with link(some_entries(9000), fails_after=6) as made:
            with pytest.raises(TransferError, match="failed") as failure:
                await made.taker.fetch(GIVER)
            assert not failure.value.silent

    asyncio.run(run())


def test_who_is_not_complete_refuses() -> None:
    async def run() -> None:
        async with link(some_entries(10)) as made:
            made.ready = False
            with pytest.raises(TransferError, match="refused"):
                await made.taker.fetch(GIVER)
            assert made.giver.refused == 1
            made.ready = True
            await made.taker.fetch(GIVER)
            assert len(made.store.entries) == 10

    asyncio.run(run())


@pytest.mark.parametrize(("lost", "silent"), [(Kind.ASK, True), (Kind.END, False)])
def test_silence_is_told_from_a_broken_transfer(lost: Kind, silent: bool) -> None:
    async def run() -> None:
        async with link(some_entries(10)) as made:
            made.lose = {lost}
            with pytest.raises(TransferError, match="does it replicate conntrack") as failure:
                await made.taker.fetch(GIVER)
            assert failure.value.silent == silent

    asyncio.run(run())


def test_a_lost_part_shows_at_the_end() -> None:
    async def run() -> None:
        async with link(some_entries(10)) as made:
            made.lose = {Kind.PART}
            with pytest.raises(TransferError, match="0 of 10 entries arrived"):
                await made.taker.fetch(GIVER)

    asyncio.run(run())


def test_what_nobody_has_asked_for_is_not_taken() -> None:
    async def run() -> None:
        async with link(some_entries(3)) as made:
            await made.taker.fetch(GIVER)
            for peer, transfer in ((GIVER, 1), (GIVER, 2), (7, 1)):
                made.taker.received(peer, Kind.PART, transfer, memoryview(pack_entries(some_entries(1))))
                made.taker.received(peer, Kind.END, transfer, memoryview(end_of(1, End.COMPLETE)))
            assert len(made.store.entries) == 3

    asyncio.run(run())


def test_only_the_whole_table_can_be_asked_for() -> None:
    with pytest.raises(RecordsError, match="only the whole of it"):
        read_ask(message_of(Kind.ASK, 1, Scope(owner=3).pack()))


def test_pieces_are_taken_until_there_are_enough() -> None:
    pieces = iter([some_entries(3), some_entries(3), some_entries(3)])
    assert [len(take(pieces, 4)), len(take(pieces, 4)), len(take(pieces, 4))] == [6, 3, 0]
