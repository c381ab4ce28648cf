# SPDX-License-Identifier: Apache-2.0
"""The ring on asyncio: the API of a running node.

    async with Ring(config, listen=["10.0.0.1:7400"]) as ring:
        ring.subscribe(17, lambda batch: print(batch.origin, batch.payloads()))
        position = await ring.multicast(17, b"hello")
        ring.data["x"] = b"1"
        async with ring.lock("vip/10.0.0.1") as lock: ...
        async for event in ring: ...

Everything runs on one event loop, and the ring's timing with it: callbacks must return within a millisecond or so.
How late the loop wakes up is measured (`stats()["loop_lag_…"]`).
"""

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import TracebackType
from typing import Any, Self

from .config import RingConfig
from .coordination import Coordination
from .data import Data
from .engine import Engine, Upper
from .event_stream import EventStream, Message
from .events import (
    CriticalResource,
    Deliver,
    Direct,
    Done,
    Eligible,
    Event,
    Leave,
    Left,
    Multicast,
    Order,
    Payload,
    PeerMessage,
    Refusal,
    Refused,
    Rejoin,
    Standing,
    TokenVisit,
    Trace,
    ViewChanged,
)
from .node import Node
from .paths import peer_paths as peer_paths
from .request_desk import RequestDesk
from .shared import (
    CHANNEL,
    Answered,
    Changed,
    Complete,
    LockLost,
    MulticastCommand,
    QueuesChanged,
    Replaced,
    SendPeer,
    SharedData,
    StandingChanged,
)
from .transport.effects import PeerConfig, TurnedAway

LEAVE_TIMEOUT_S = 0.5
INCARNATION_BITS = 62
WORKERS_MAX = 8  # threads of the loop's default executor


class MulticastFailed(Exception):
    """The ring did not take or could not complete the request; `reason` is an events.Refusal."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.name)
        self.reason = reason


def new_incarnation() -> int:
    """A number this node has never used: the wall clock in microseconds, and random bits against a clock set back."""
    return ((time.time_ns() // 1000) << 11 | secrets.randbits(11)) % (1 << INCARNATION_BITS)


class Ring(EventStream, Coordination):
    """One node of a ring. Use as an asynchronous context manager; entering waits for the first view."""

    def __init__(
        self, config: RingConfig, listen: Sequence[str], *, scheduling: str = "auto", workers: int = WORKERS_MAX
    ) -> None:
        """`workers`: threads of the executor that the loop gets; 0: it keeps its own, none of them below the ring."""
        super().__init__()
        self.config = config
        incarnation = new_incarnation()
        self._node = Node(config, incarnation=incarnation, rng=random.SystemRandom(), now=time.monotonic())
        self.shared = SharedData(config.node, incarnation)
        self._desk = self._coordinator = RequestDesk(self.shared, self)
        self.data = Data(self.shared, self._desk)
        self._shared_deadline = inf  # asked for again after whatever may have changed it
        self._next_tag = 1
        self._done: dict[int, asyncio.Future[int]] = {}  # multicasts and direct messages somebody waits for
        self._flush_scheduled = False
        self._room: deque[asyncio.Future[None]] = deque()
        self._joined: asyncio.Event = asyncio.Event()
        self._left: asyncio.Event = asyncio.Event()
        handlers: dict[type, Callable[[Any], None]] = {
            Deliver: self._deliver,
            TokenVisit: self._token_visit,
            ViewChanged: self._view_changed,
            PeerMessage: self._peer_message,
            Done: self._request_done,
            Refused: self._request_refused,
            Left: self._has_left,
            Trace: lambda trace: self._call_all(self._on_trace, trace),
        }
        upper = Upper(self._shared_tick, lambda: self._shared_deadline, self._flush_commands)
        self._engine = Engine(
            self._node, listen, upper, handlers, self.counters, scheduling=scheduling, workers=workers
        )
        self._shared_handlers: dict[type, Callable[[Any], None]] = {
            MulticastCommand: self._desk.send,
            SendPeer: lambda e: self._step(Direct(self.next_tag(), e.node, CHANNEL, e.payload)),
            Answered: self._desk.on_answer,
            Changed: self._changed,
            QueuesChanged: lambda e: self._call_all(self._on_queues, e.names),
            LockLost: self._lock_lost,
            Replaced: self._replaced,
            Complete: self._complete,
            StandingChanged: lambda e: self._step(Standing(e.value)),
        }

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.start()
        await self._joined.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()
        self.close()

    def start(self) -> None:
        """Open the sockets and begin. Raises OSError with the address that cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._engine.start()

    async def leave(self) -> None:
        """Leave the ring in order, so that nobody has to detect our absence; gives up after LEAVE_TIMEOUT_S."""
        self._leaving = True
        if not self._engine.running or self._left.is_set():
            return
        self._step(Leave())
        try:
            await asyncio.wait_for(self._left.wait(), LEAVE_TIMEOUT_S)
        except TimeoutError:
            self.counters["leave_timeouts"] += 1

    def close(self) -> None:
        """Close the sockets; to the others this node is dead, unless it has left. Pending requests are cancelled."""
        if not self._engine.running:
            return
        self._engine.close()
        self._desk.cancel()
        pending: list[asyncio.Future[Any]] = [*self._done.values(), *self._room]
        for future in pending:
            future.cancel()

    # --- the group ---------------------------------------------------------------------------------------------------

    @property
    def members(self) -> tuple[int, ...]:
        """Members of the present view, in ring order."""
        return self.view.members if self.view is not None else ()

    def set_peers(self, peers: Mapping[int, PeerConfig]) -> None:
        """Replace the eligible members: who is struck off leaves in order, who is new may join at once.

        Give all members the same list within a short time: one that still has somebody on its list lets it in again.
        """
        self._step(Eligible(dict(peers)))

    def stay_out(self, seconds: float) -> None:
        """Keep out of the ring for that long, then ask to be let in.

        For one that was struck off: while the members' lists differ, some would let it in and others not answer it.
        """
        self._loop.call_soon(self._step, Leave())
        self._loop.call_later(seconds, self._come_back)

    def _come_back(self) -> None:
        if self._engine.running and not self._leaving:
            self._step(Rejoin())

    def set_critical_resource(self, available: bool) -> None:
        """State of this node's critical resources taken together."""
        self._step(CriticalResource(available))

    def set_in_use(self, in_use: bool) -> None:
        """Whether somebody is served by what the group's state says, to be told alike by all members.

        Of two groups that merge, the one whose state is in use keeps it, before history and size are compared.
        """
        self.shared.set_in_use(in_use)
        self.flush_soon()

    async def multicast(
        self,
        channel: int,
        payload: Payload | Sequence[Payload],
        *,
        order: Order = Order.AGREED,
        urgent: bool = True,
    ) -> int:
        """Multicast one message or several adjacent ones; waits for room, then for the delivery here.

        The position in the total order of the (first) message. Raises MulticastFailed.
        """
        payloads = payload if isinstance(payload, list | tuple) else (payload,)
        while True:
            tag = self.next_tag()
            future = self._done[tag] = self._loop.create_future()
            if self.ask(Multicast(tag, channel, payloads, order, urgent=urgent)) is not Refusal.QUEUE_FULL:
                return await self._finish(tag, future)
            del self._done[tag]
            await self._wait_for_room()

    def offer(
        self,
        channel: int,
        payload: Payload | Sequence[Payload],
        *,
        order: Order = Order.AGREED,
        bulk: bool = True,
        urgent: bool = False,
    ) -> bool:
        """Multicast without waiting; False when there is no room (back-pressure) or the ring takes nothing now."""
        payloads = payload if isinstance(payload, list | tuple) else (payload,)
        refusal = self.ask(Multicast(self.next_tag(), channel, payloads, order, bulk=bulk, urgent=urgent))
        if refusal is not None:
            self.counters["offers_refused"] += 1
        return refusal is None

    async def send(self, node: int, channel: int, payload: Payload | Sequence[Payload]) -> None:
        """Send to one member, outside of the order; returns when it has arrived. Raises MulticastFailed."""
        tag = self.next_tag()
        future = self._done[tag] = self._loop.create_future()
        self.ask(Direct(tag, node, channel, payload))
        await self._finish(tag, future)

    async def wait_for_room(self) -> None:
        """Wait until an offer that was refused may be worth another try."""
        await self._wait_for_room()

    # --- for the request desk ----------------------------------------------------------------------------------------

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def new_future(self) -> asyncio.Future[Any]:
        """A future of the ring's loop."""
        return self._loop.create_future()

    def flush_soon(self) -> None:
        """Requests of one turn of the loop travel together."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def next_tag(self) -> int:
        """A tag for a request to the core."""
        self._next_tag += 1
        return self._next_tag

    def ask(self, request: Multicast | Direct) -> Refusal | None:
        """Feed a request; why it was refused at once, or None."""
        return next((e.reason for e in self._engine.step(request) if type(e) is Refused and e.tag == request.tag), None)

    def _step(self, event: Event) -> None:
        self._engine.step(event)

    # --- figures -----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counters and gauges of all layers, by name."""
        figures: dict[str, float] = dict(self.counters)
        figures.update({f"shared_{name}": value for name, value in self.shared.counters.items()})
        figures["requests_open"] = len(self.shared.requests)
        figures["shared_items"] = len(self.shared.replica.items)
        figures["shared_bytes"] = self.shared.replica.items.value_bytes
        figures.update(self._node.counters)
        figures["queued_bytes"] = self._node.queued_bytes
        figures.update(self._engine.figures())
        return figures

    def turned_away(self) -> dict[tuple[str, int], TurnedAway]:
        """Refused datagrams by reason (in `stats`: `transport_…`) and peer whose address they came from (0: nobody)."""
        return dict(self._node.transport.turned_away)

    # --- effects of the ring -----------------------------------------------------------------------------------------

    def _deliver(self, batch: Deliver) -> None:
        if batch.channel == CHANNEL:
            self.shared.on_batch(time.monotonic(), batch.origin, batch.position, batch.payloads())
            self._take_shared()
            return
        callbacks = self._on_batch.get(batch.channel)
        if callbacks is not None:
            self._call_all(callbacks, batch)
        elif self._iterators:
            for offset, payload in enumerate(batch.payloads()):
                self._publish(Message(batch.channel, batch.origin, batch.position + offset, bytes(payload)))
        else:
            self.counters["messages_unclaimed"] += batch.messages

    def _view_changed(self, effect: ViewChanged) -> None:
        self.view = effect.view
        self.counters["views"] += 1
        self.shared.on_view(time.monotonic(), effect.view)  # locks of the departed are free when callbacks look
        self._call_all(self._on_view, effect.view)
        self._publish(effect.view)
        self._take_shared()
        self._joined.set()
        self._left.clear()  # it may have been shut out for a while

    def _token_visit(self, visit: TokenVisit) -> None:
        self.shared.on_token(visit.lease_until)
        self.counters["token_visits"] += 1
        self._call_all(self._on_token, visit)
        self._wake_for_room()

    def _peer_message(self, message: PeerMessage) -> None:
        if message.channel == CHANNEL:
            self.shared.on_peer(time.monotonic(), message.peer, message.payload)
            self._take_shared()
            return
        callbacks = self._on_peer.get(message.channel)
        if callbacks is None:
            self.counters["peer_messages_unclaimed"] += 1
        else:
            self._call_all(callbacks, message)

    def _request_done(self, effect: Done) -> None:
        if self._desk.on_done(effect.tag):
            return
        future = self._done.pop(effect.tag, None)
        if future is not None and not future.done():
            future.set_result(effect.position)

    def _request_refused(self, effect: Refused) -> None:
        if self._desk.on_refused(effect.tag, effect.reason):
            self._take_shared()
            return
        if effect.reason is Refusal.QUEUE_FULL:
            return  # whoever asked has seen it
        self.counters[f"refused_{effect.reason.name.lower()}"] += 1
        future = self._done.pop(effect.tag, None)
        if future is not None and not future.done():
            future.set_exception(MulticastFailed(effect.reason))

    def _has_left(self, effect: Left) -> None:
        self.view = None
        self.shared.on_left()
        self._call_all(self._on_left, effect)
        self._take_shared()
        self._left.set()
        self._publish(effect)

    # --- effects of the shared data ----------------------------------------------------------------------------------

    def _take_shared(self) -> None:
        for effect in self.shared.take():
            self._shared_handlers[type(effect)](effect)
        self._shared_deadline = self.shared.deadline()

    def _shared_tick(self, now: float) -> None:
        if now >= self._shared_deadline:
            self.shared.tick(now)
            self._take_shared()
            self._flush_commands()

    def _flush_commands(self) -> None:
        if self._engine.running:
            self._desk.flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._take_shared()
        self._flush_commands()
        self._engine.rearm()

    def _changed(self, effect: Changed) -> None:
        for callback, changes in self.data.watchers_of(effect.changes):
            self._call_all((callback,), changes)

    def _lock_lost(self, effect: LockLost) -> None:
        self.counters["locks_lost"] += 1
        callback = self._desk.on_lost(effect)
        if callback is not None:
            self._call_all((lambda _: callback(),), effect)
        self._publish(effect)

    def _replaced(self, effect: Replaced) -> None:
        self.counters["data_replaced"] += 1
        self._call_all(self._on_replaced, effect)
        self._publish(effect)

    def _complete(self, effect: Complete) -> None:
        self._call_all(self._on_complete, effect.complete)
        self._publish(effect)

    # --- waiting -----------------------------------------------------------------------------------------------------

    async def _finish(self, tag: int, future: asyncio.Future[int]) -> int:
        try:
            return await future
        finally:
            self._done.pop(tag, None)

    async def _wait_for_room(self) -> None:
        waiter = self._loop.create_future()
        self._room.append(waiter)
        await waiter

    def _wake_for_room(self) -> None:
        if self._desk.waiting:
            self._flush_commands()
        while self._room:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)
