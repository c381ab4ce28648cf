# SPDX-License-Identifier: Apache-2.0
"""FIFO queues, replicated. An element goes to one taker and is gone when that taker acknowledges it.

A taker that dies before its acknowledgement gives its elements back to the front, in their old order: every element is
handled at least once, and exactly once if nobody dies.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from . import limits
from .results import Done, Outcome, Owner, Refusal, Refused, Taken

Element = tuple[int, bytes]  # number in order of arrival, value


@dataclass(slots=True)
class Queue:
    """One queue; it exists while it holds anything or anybody waits at it."""

    elements: deque[Element] = field(default_factory=deque)
    taken: dict[Owner, Element] = field(default_factory=dict)
    takers: deque[Owner] = field(default_factory=deque)

    def idle(self) -> bool:
        """Nothing to remember."""
        return not (self.elements or self.taken or self.takers)


class QueueTable:
    """All queues of one replica."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}
        self._bytes = 0
        self._dirty: set[str] = set()  # queues whose content changed since the owner last asked

    def get(self, name: str) -> Queue | None:
        """The queue, or None if it holds nothing."""
        return self._queues.get(name)

    def all(self) -> dict[str, Queue]:
        """Queues that hold anything, by name."""
        return self._queues

    def take_dirty(self) -> set[str]:
        """Names of queues that changed since the last call."""
        dirty, self._dirty = self._dirty, set()
        return dirty

    def put(self, name: str, owner: Owner, value: bytes, clock: int) -> list[Outcome]:
        """Append an element, or hand it to the longest waiting taker."""
        queue = self._queues.get(name)
        if queue is None and len(self._queues) >= limits.QUEUES_MAX:
            return [Outcome(owner, Refused(Refusal.TOO_MANY_QUEUES))]
        held = len(queue.elements) + len(queue.taken) if queue is not None else 0
        if held >= limits.QUEUE_ELEMENTS_MAX or self._bytes + len(value) > limits.QUEUE_BYTES_MAX:
            return [Outcome(owner, Refused(Refusal.QUEUE_FULL))]
        if queue is None:
            queue = self._queues[name] = Queue()
        queue.elements.append((clock, value))
        self._bytes += len(value)
        self._dirty.add(name)
        return [Outcome(owner, Done(clock)), *self._serve(name, queue)]

    def take(self, name: str, owner: Owner, wait: bool) -> list[Outcome]:
        """Ask for the oldest element."""
        queue = self._queues.get(name)
        if not wait and (queue is None or not queue.elements):
            return [Outcome(owner, Refused(Refusal.QUEUE_EMPTY))]
        if queue is None:
            if len(self._queues) >= limits.QUEUES_MAX:
                return [Outcome(owner, Refused(Refusal.TOO_MANY_QUEUES))]
            queue = self._queues[name] = Queue()
        if len(queue.takers) >= limits.WAITERS_MAX:
            return [Outcome(owner, Refused(Refusal.TOO_MANY_WAITERS))]
        queue.takers.append(owner)
        return self._serve(name, queue)

    def acknowledge(self, name: str, owner: Owner, taking: int) -> list[Outcome]:
        """The element given to request `taking` of the same origin has been dealt with."""
        queue = self._queues.get(name)
        element = queue.taken.pop(owner._replace(ticket=taking), None) if queue is not None else None
        if queue is None or element is None:
            return [Outcome(owner, Refused(Refusal.NOT_TAKEN))]
        self._bytes -= len(element[1])
        self._forget_if_idle(name, queue)
        return [Outcome(owner, Done(element[0]))]

    def withdraw(self, owner: Owner) -> bool:
        """Stop waiting, or give a taken element back to its place."""
        for name, queue in self._queues.items():
            if owner in queue.takers:
                queue.takers.remove(owner)
            elif owner in queue.taken:
                self._give_back(queue, [owner])
            else:
                continue
            self._dirty.add(name)
            self._forget_if_idle(name, queue)
            return True
        return False

    def settle(self, sessions: dict[int, int]) -> list[Outcome]:
        """Forget departed takers; what they had not acknowledged is handed out again."""
        outcomes: list[Outcome] = []
        for name, queue in sorted(self._queues.items()):
            queue.takers = deque(o for o in queue.takers if sessions.get(o.node) == o.session)
            departed = [o for o in queue.taken if sessions.get(o.node) != o.session]
            if departed:
                self._give_back(queue, departed)
                self._dirty.add(name)
            outcomes += self._serve(name, queue)
        return outcomes

    def serve(self) -> list[Outcome]:
        """Hand out what has become free."""
        return [outcome for name, queue in sorted(self._queues.items()) for outcome in self._serve(name, queue)]

    def _give_back(self, queue: Queue, owners: list[Owner]) -> None:
        queue.elements = deque(sorted([*queue.elements, *(queue.taken.pop(owner) for owner in owners)]))

    def _serve(self, name: str, queue: Queue) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while queue.elements and queue.takers:
            owner, element = queue.takers.popleft(), queue.elements.popleft()
            queue.taken[owner] = element
            self._dirty.add(name)
            outcomes.append(Outcome(owner, Taken(*element)))
        self._forget_if_idle(name, queue)
        return outcomes

    def _forget_if_idle(self, name: str, queue: Queue) -> None:
        if queue.idle():
            del self._queues[name]

    def export(self) -> list[Any]:
        """Plain form, equal on equal replicas."""
        return [
            [name, list(q.elements), sorted([o, *e] for o, e in q.taken.items()), list(q.takers)]
            for name, q in sorted(self._queues.items())
        ]

    def adopt(self, plain: list[Any]) -> None:
        """Replace everything by an export."""
        self._dirty |= self._queues.keys()
        self._queues = {
            name: Queue(
                deque((number, value) for number, value in elements),
                {Owner(*owner): (number, value) for owner, number, value in taken},
                deque(Owner(*owner) for owner in takers),
            )
            for name, elements, taken, takers in plain
        }
        self._dirty |= self._queues.keys()
        held = (e for q in self._queues.values() for e in (*q.elements, *q.taken.values()))
        self._bytes = sum(len(value) for _, value in held)
