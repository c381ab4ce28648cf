# SPDX-License-Identifier: Apache-2.0
"""The whole table to a gateway that joins: it asks one member, which sends what its kernel has, at a bounded rate.

Messages are those of `lb.connections.transfer`. What the group has is newer than what the joiner still has from
before; what the ring and the joiner's own kernel tell meanwhile is newer than both.
"""

import asyncio
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import Protocol

import numpy as np

from lb.connections.records import RecordsError
from lb.connections.serving import Pace, Serving
from lb.connections.transfer import End, Kind, Scope, Send, TransferError, message_of, read_end, read_message
from lb.conntrack.entries import ENTRY, Entries, pack_entries

PART_ENTRIES_MAX = 4096
SERVED_AT_ONCE_MAX = 2
SILENCE_S = 5.0


Table = Generator[Entries, None, None]


class Sink(Protocol):
    """Where transferred entries go."""

    def write(self, message: memoryview, *, transferred: bool) -> int:
        """Take a message's entries in, in the writing thread; how many there were."""
        ...


class Giver(Serving):
    """Serves asks. `table()` gives what is worth telling, in pieces, and may raise OSError; `given` sees each part that
    has arrived."""

    def __init__(
        self,
        table: Callable[[], Table],
        executor: Executor,
        send: Send,
        ready: Callable[[], bool],
        given: Callable[[Entries], None],
    ) -> None:
        super().__init__(send, ready, asks_max=SERVED_AT_ONCE_MAX, name="conntrack table")
        self._table = table
        self._executor = executor
        self._given = given

    def asked(self, peer: int, transfer: int) -> None:
        """Serve an ask in the background."""
        self._answer(peer, transfer, lambda: self._serve(peer, transfer))

    async def _serve(self, peer: int, transfer: int) -> None:
        pieces = self._table()
        count, end = 0, End.COMPLETE
        try:
            count = await self._send_parts(peer, transfer, pieces)
        except OSError:
            end = End.FAILED
        finally:
            # In the thread that may still be reading.
            self._executor.submit(pieces.close)
        await self._finish(peer, transfer, count, end)

    async def _send_parts(self, peer: int, transfer: int, pieces: Table) -> int:
        loop = asyncio.get_running_loop()
        count, pace = 0, Pace()
        while len(entries := await loop.run_in_executor(self._executor, take, pieces, PART_ENTRIES_MAX)):
            message = message_of(Kind.PART, transfer, pack_entries(entries))
            await self._send(peer, message)
            self._given(entries)
            count += len(entries)
            self.entries += len(entries)
            await pace.sent(len(message))
        return count


class Taker:
    """Fetches the table of one member at a time."""

    def __init__(self, inbox: Sink, executor: Executor, send: Send) -> None:
        self._inbox = inbox
        self._executor = executor
        self._send = send
        self._transfer = 0
        self._giver = 0
        self._arrived = 0
        self._progress = asyncio.Event()
        self._end: tuple[int, End] | None = None
        self.fetched = 0

    async def fetch(self, giver: int) -> None:
        """Fill this gateway's table with what that member has. Raises TransferError when it refuses, falls silent or
        fails."""
        self._transfer = self._transfer + 1 & 0xFFFFFFFF
        self._giver, self._arrived, self._end = giver, 0, None
        try:
            await self._send(giver, message_of(Kind.ASK, self._transfer, Scope().pack()))
            await self._until(lambda: self._end is not None)
        except TimeoutError:
            text = f"conntrack table from node {giver}: nothing for {SILENCE_S:.0f} s; does it replicate conntrack?"
            raise TransferError(text, silent=not self._arrived) from None
        except OSError as error:
            raise TransferError(f"conntrack table from node {giver}: {error}") from None
        finally:
            self._giver = 0
        announced, end = self._end or (0, End.FAILED)
        if end is not End.COMPLETE or announced != self._arrived:
            what = end.name.lower() if end is not End.COMPLETE else f"{self._arrived} of {announced} entries arrived"
            raise TransferError(f"conntrack table from node {giver}: {what}")

    async def _until(self, over: Callable[[], bool]) -> None:
        while not over():
            self._progress.clear()
            async with asyncio.timeout(SILENCE_S):
                await self._progress.wait()

    def received(self, peer: int, kind: Kind, transfer: int, body: memoryview) -> None:
        """A PART or END has come. Parts are written in order, by one thread, and the END after them."""
        if (peer, transfer) != (self._giver, self._transfer):
            return
        work = partial(self._inbox.write, body, transferred=True) if kind is Kind.PART else _nothing
        done = asyncio.get_running_loop().run_in_executor(self._executor, work)
        end = read_end(body) if kind is Kind.END else None
        done.add_done_callback(lambda written: self._written(peer, transfer, written.result(), end))

    def _written(self, peer: int, transfer: int, count: int, end: tuple[int, End] | None) -> None:
        if (peer, transfer) == (self._giver, self._transfer):
            self._arrived += count
            self.fetched += count
            self._end = end
            self._progress.set()


def _nothing() -> int:
    return 0


def read_ask(message: memoryview | bytes) -> tuple[Kind, int, memoryview]:
    """As `read_message`, an ask's body checked too. Raises RecordsError."""
    kind, transfer, body = read_message(message)
    if kind is Kind.ASK and Scope.unpack(body) != Scope():
        raise RecordsError("conntrack table: only the whole of it can be asked for")
    return kind, transfer, body


def take(pieces: Iterator[Entries], count: int) -> Entries:
    """About as many entries as wanted from the next pieces; none at the end."""
    taken: list[Entries] = [np.zeros(0, ENTRY)]
    total = 0
    for piece in pieces:
        taken.append(piece)
        total += len(piece)
        if total >= count:
            break
    return np.concatenate(taken)
