# SPDX-License-Identifier: Apache-2.0
"""Requests of the shared data on their way between a program and the ring.

Requests of one turn of the loop travel in one multicast; what the ring has no room for waits here, in order. Who waits
for an answer has a future; who stops waiting gets nothing granted behind its back.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from .events import Multicast, Refusal
from .shared import (
    CHANNEL,
    Answered,
    Granted,
    Kind,
    LockLost,
    MulticastCommand,
    Passed,
    Result,
    SharedData,
    Taken,
    Unknown,
)


class ResultFuture(Protocol):
    """What asyncio.Future is to this module."""

    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self) -> bool: ...
    def result(self) -> Result: ...
    def set_result(self, result: Result, /) -> None: ...
    def __await__(self) -> Any: ...


class Surroundings(Protocol):
    """What the desk needs of its driver."""

    counters: Counter[str]

    def now(self) -> float:
        """Monotonic seconds."""

    def new_future(self) -> Any:
        """A future of the loop."""

    def flush_soon(self) -> None:
        """Have take_shared and flush called once this turn of the loop is over."""

    def next_tag(self) -> int:
        """A tag for a request to the ring."""

    def ask(self, request: Multicast) -> Refusal | None:
        """Hand the ring a multicast; why it refused, or None."""


class RequestDesk:
    """Requests of one node, by ticket."""

    def __init__(self, shared: SharedData, surroundings: Surroundings) -> None:
        self.shared, self._surroundings = shared, surroundings
        self._answers: dict[int, ResultFuture] = {}
        self._abandoned: set[int] = set()
        self._lost_callbacks: dict[int, Callable[[], None]] = {}
        self._backlog: deque[MulticastCommand] = deque()
        self._under_way: dict[int, list[int]] = {}  # tickets by multicast tag

    # --- asking ---

    def request(self, kind: Kind, *arguments: Any) -> Awaitable[Result]:
        """Submit a request; the answer comes when its turn does."""
        return self._open(kind, arguments)[1]

    def submit(self, kind: Kind, *arguments: Any, urgent: bool = False) -> None:
        """Submit a request nobody waits for; unless it is urgent it rides on the token's next regular visit."""
        self.shared.submit(self._surroundings.now(), kind, *arguments, urgent=urgent)
        self._surroundings.flush_soon()

    async def turn(self, kind: Kind, *arguments: Any) -> tuple[int, Any]:
        """Submit a request that waits for its turn, for as long as its caller does: (ticket, result)."""
        ticket, future = self._open(kind, arguments)
        try:
            return ticket, await future
        except BaseException:
            self._abandon(ticket, future)
            raise

    def holds(self, ticket: int) -> bool:
        """Is the lock acquired with this ticket ours for certain?"""
        return self.shared.holds(self._surroundings.now(), ticket)

    def on_lock_lost(self, ticket: int, callback: Callable[[], None]) -> None:
        """Call once if this lock ends without our release."""
        self._lost_callbacks[ticket] = callback

    def cancel(self) -> None:
        """The ring has closed: nobody gets an answer any more."""
        for future in list(self._answers.values()):
            future.cancel()

    def _open(self, kind: Kind, arguments: Sequence[Any]) -> tuple[int, ResultFuture]:
        ticket = self.shared.submit(self._surroundings.now(), kind, *arguments)
        future: ResultFuture = self._surroundings.new_future()
        self._answers[ticket] = future
        self._surroundings.flush_soon()
        return ticket, future

    def _abandon(self, ticket: int, future: ResultFuture) -> None:
        self._answers.pop(ticket, None)
        if future.done() and not future.cancelled():
            self._give_back(ticket, future.result())
        else:
            self._abandoned.add(ticket)
            self._return(Kind.WITHDRAW, ticket)

    def _give_back(self, ticket: int, result: Result) -> None:
        """A request was granted to nobody any more."""
        if isinstance(result, Granted):
            held = self.shared.requests.held.get(ticket)
            if held is not None:
                self._return(Kind.RELEASE, held.name, ticket)
        elif isinstance(result, Taken):
            self._return(Kind.WITHDRAW, ticket)
        elif isinstance(result, Passed) and result.first:
            for name, barrier in self.shared.replica.barriers.all().items():
                if self.shared.requests.owner(ticket) in barrier.arrivals:
                    self._return(Kind.LEAVE, name, ticket)

    def _return(self, kind: Kind, *arguments: Any) -> None:
        """Give up something that others may be waiting for."""
        self.shared.submit(self._surroundings.now(), kind, *arguments)
        self._surroundings.flush_soon()

    # --- answers ---

    def on_answer(self, answered: Answered) -> None:
        """Hand an answer to whoever waits for it."""
        future = self._answers.pop(answered.ticket, None)
        if future is not None:
            if future.cancelled():
                self._give_back(answered.ticket, answered.result)
            else:
                future.set_result(answered.result)
        elif answered.ticket in self._abandoned:
            self._abandoned.discard(answered.ticket)
            self._give_back(answered.ticket, answered.result)
        elif isinstance(answered.result, Unknown):
            self._surroundings.counters["outcomes_unknown"] += 1

    def on_lost(self, lost: LockLost) -> Callable[[], None] | None:
        """Who wants to know that this lock is gone."""
        return self._lost_callbacks.pop(lost.ticket, None)

    # --- to the ring ---

    def send(self, command: MulticastCommand) -> None:
        """Queue a command for the next flush."""
        self._backlog.append(command)

    @property
    def waiting(self) -> bool:
        """Is there anything to flush?"""
        return bool(self._backlog)

    def flush(self) -> None:
        """Multicast what is queued; without room it stays queued."""
        if not self._backlog:
            return
        commands = list(self._backlog)
        self._backlog.clear()
        tag = self._surroundings.next_tag()
        self._under_way[tag] = [command.ticket for command in commands]
        urgent = any(command.urgent for command in commands)
        payloads = [command.payload for command in commands]
        if self._surroundings.ask(Multicast(tag, CHANNEL, payloads, urgent=urgent)) is Refusal.QUEUE_FULL:
            self._backlog.extendleft(reversed(commands))
            self._surroundings.counters["commands_held_back"] += 1

    def on_done(self, tag: int) -> bool:
        """A multicast was delivered; True if it was ours."""
        return self._under_way.pop(tag, None) is not None

    def on_refused(self, tag: int, reason: Refusal) -> bool:
        """A multicast was refused; True if it was ours."""
        tickets = self._under_way.pop(tag, None)
        if tickets is None:
            return False
        if reason is Refusal.HISTORY_LOST:
            for ticket in tickets:
                self.shared.on_lost(ticket)
        elif reason is not Refusal.QUEUE_FULL:  # flush keeps those
            for ticket in tickets:
                self.shared.on_refused(ticket)
        return True
