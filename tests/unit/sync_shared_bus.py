# SPDX-License-Identifier: Apache-2.0
"""A perfect ring for tests of the shared data: total order and views as the ring promises them, members out of step."""

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sync.events import View
from sync.shared import Answered, Changed, LockLost, MulticastCommand, Replaced, Result, SendPeer, SharedData

STEPS_MAX = 200_000


@dataclass
class Member:
    """One node: its copy, its unread part of the stream, and what it has told its user."""

    shared: SharedData
    incarnation: int
    inbox: deque[tuple[str, Any]] = field(default_factory=deque)
    answers: dict[int, Result] = field(default_factory=dict)
    told: list[Any] = field(default_factory=list)
    mirror: dict[str, bytes] = field(default_factory=dict)  # kept from Changed alone
    group: frozenset[int] = frozenset()


class Bus:
    """Groups of members; `settle` runs until nothing is left to deliver."""

    def __init__(self, seed: int = 0, *, compare_interval_s: float = 60.0) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.members: dict[int, Member] = {}
        self.position = 0
        self.view = 0
        self.compare_interval_s = compare_interval_s
        self.drop_peer: Callable[[int, int], bool] = lambda source, target: False
        self.drop_multicast: Callable[[int], bool] = lambda source: False
        self.peer_messages = 0
        self._sessions = 1000

    def start(self, *nodes: int) -> None:
        """Boot nodes; they are in no view yet."""
        for node in nodes:
            self._sessions += 1
            shared = SharedData(node, self._sessions, compare_interval_s=self.compare_interval_s)
            self.members[node] = Member(shared, self._sessions)

    def kill(self, node: int) -> None:
        """The node is gone with all it held."""
        del self.members[node]

    def commit(self, nodes: Iterable[int], joined: Iterable[int] = (), *, serving: bool = True) -> None:
        """A view of `nodes`; everything its staying members were sent before comes before it."""
        group = tuple(sorted(nodes))
        self.view += 1
        self.position += 1
        incarnations = tuple(self.members[node].incarnation for node in group)
        view = View(self.view, group, min(group), frozenset(joined), serving, self.position, incarnations, min(group))
        for node in group:
            member = self.members[node]
            if node in joined:
                member.inbox.clear()
            member.group = frozenset(group)
            member.inbox.append(("view", view))

    def form(self, *nodes: int) -> None:
        """Boot nodes into one group, the first founding it."""
        self.start(*nodes)
        self.commit(nodes[:1])
        self.settle()
        for count in range(2, len(nodes) + 1):
            self.commit(nodes[:count], joined=[nodes[count - 1]])
            self.settle()

    def multicast(self, origin: int, payloads: list[bytes]) -> None:
        """Order messages of `origin` in its group."""
        place = self.position + 1
        self.position += len(payloads)
        for node in self.members[origin].group:
            if node in self.members and self.members[node].group == self.members[origin].group:
                self.members[node].inbox.append(("batch", (origin, place, payloads)))

    def settle(self) -> None:
        """Deliver everything, members in random turn, and let no time pass."""
        for _ in range(STEPS_MAX):
            for node in list(self.members):
                self._carry_out(node)
            busy = [node for node, member in self.members.items() if member.inbox]
            if not busy:
                return
            self._deliver(self.rng.choice(busy))
        raise AssertionError("the group does not come to rest")

    def step(self) -> None:
        """Carry out effects and deliver one thing to one member."""
        for node in list(self.members):
            self._carry_out(node)
        busy = [node for node, member in self.members.items() if member.inbox]
        if busy:
            self._deliver(self.rng.choice(busy))

    def wait(self, seconds: float, *, only: Iterable[int] | None = None) -> None:
        """Let time pass in steps of the nearest deadline, for some nodes only if asked."""
        end = self.now + seconds
        awake = list(self.members) if only is None else list(only)
        while True:
            self.settle()
            nearest = min((self.members[node].shared.deadline() for node in awake), default=end)
            self.now = min(end, max(nearest, self.now + 0.001))
            for node in awake:
                self.members[node].shared.tick(self.now)
            self.settle()
            if self.now >= end:
                return

    def _deliver(self, node: int) -> None:
        member = self.members[node]
        kind, what = member.inbox.popleft()
        if kind == "view":
            member.shared.on_view(self.now, what)
        elif kind == "batch":
            member.shared.on_batch(self.now, *what)
        else:
            member.shared.on_peer(self.now, *what)

    def _carry_out(self, node: int) -> None:
        member = self.members[node]
        for effect in member.shared.take():
            match effect:
                case MulticastCommand(_, payload, _):
                    if not self.drop_multicast(node):
                        self.multicast(node, [payload])
                case SendPeer(target, payload):
                    self._send_peer(node, target, payload)
                case Answered(ticket, result):
                    assert ticket not in member.answers, "answered twice"
                    member.answers[ticket] = result
                case Changed(changes):
                    self._mirror(member, changes)
                    member.told.append(effect)
                case _:
                    member.told.append(effect)

    def _send_peer(self, source: int, target: int, payload: bytes) -> None:
        self.peer_messages += 1
        if target in self.members and not self.drop_peer(source, target):
            # Somewhere in between what is on its way: peer messages keep no order with the stream.
            inbox = self.members[target].inbox
            inbox.insert(self.rng.randint(0, len(inbox)), ("peer", (source, payload)))

    @staticmethod
    def _mirror(member: Member, changes: list[Any]) -> None:
        for change in changes:
            if change.item is None:
                member.mirror.pop(change.key, None)
            else:
                member.mirror[change.key] = change.item.value

    # --- asking -----------------------------------------------------------------------------------------------------

    def shared(self, node: int) -> SharedData:
        """The copy of one node."""
        return self.members[node].shared

    def answer(self, node: int, ticket: int) -> Result | None:
        """What a request came to; None: no answer yet."""
        return self.members[node].answers.get(ticket)

    def items(self, node: int) -> dict[str, bytes]:
        """All data items of one node."""
        return {key: item.value for key, item in self.shared(node).replica.items.scan()}

    def lost_locks(self, node: int) -> list[str]:
        """Names of the locks this node was told to have lost."""
        return [effect.name for effect in self.members[node].told if isinstance(effect, LockLost)]

    def replaced(self, node: int) -> int:
        """How often this node was told that its copy had been replaced."""
        return sum(isinstance(effect, Replaced) for effect in self.members[node].told)

    def assert_equal(self) -> None:
        """All members of every group have equal, complete, undamaged copies, and their users know all changes."""
        for group in {member.group for member in self.members.values()}:
            members = [self.members[node] for node in group if node in self.members]
            assert all(member.shared.complete for member in members), [m.shared.phase for m in members]
            assert len({member.shared.digest() for member in members}) == 1
        for node, member in self.members.items():
            assert member.mirror == self.items(node)
            store = member.shared.replica.items
            assert all(store.recompute(i) == digest for i, digest in enumerate(store.digests()))
