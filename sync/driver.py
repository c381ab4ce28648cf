# SPDX-License-Identifier: Apache-2.0
"""The ring on asyncio: sockets and clock around the sans-I/O core, and the API of a running node.

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
import select
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from types import TracebackType
from typing import Any, NamedTuple, Self

from .config import RingConfig
from .coordination import Coordination
from .data import Data
from .events import (
    CriticalResource,
    Datagrams,
    Deliver,
    Direct,
    Done,
    Effect,
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
    Standing,
    Timer,
    TokenVisit,
    Trace,
    View,
    ViewChanged,
)
from .neighbours import Search
from .node import Node
from .paths import peer_paths as peer_paths
from .request_desk import RequestDesk
from .scheduling import LoopLag, Priority, set_scheduling, worker_pool
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
from .sockets import READ_MAX, Sockets, UdpLink, parse_address
from .subscriptions import Subscriptions, log
from .transport.effects import PeerConfig, Resolve, Transmit, TurnedAway

EVENTS_MAX = 1024  # per iterator; older ones are dropped and counted
LEAVE_TIMEOUT_S = 0.5
ALONE_AFTER_S = 0.002  # without a datagram: what comes then comes alone, an idle token mostly
READS_BEFORE_TIMER_MAX = 64  # times READ_MAX datagrams per link
INCARNATION_BITS = 62
WORKERS_MAX = 8  # threads of the loop's default executor


class MulticastFailed(Exception):
    """The ring did not take or could not complete the request; `reason` is an events.Refusal."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.name)
        self.reason = reason


class Message(NamedTuple):
    """An ordered message on a channel nobody subscribed to, for the event iterator."""

    channel: int
    origin: int
    position: int
    payload: bytes


RingEvent = View | Message | Complete | Replaced | LockLost | Left


def new_incarnation() -> int:
    """A number this node has never used: the wall clock in microseconds, and random bits against a clock set back."""
    return ((time.time_ns() // 1000) << 11 | secrets.randbits(11)) % (1 << INCARNATION_BITS)


class Ring(Subscriptions, Coordination):
    """One node of a ring. Use as an asynchronous context manager; entering waits for the first view."""

    def __init__(
        self, config: RingConfig, listen: Sequence[str], *, scheduling: str = "auto", workers: int = WORKERS_MAX
    ) -> None:
        """`workers`: threads of the executor that the loop gets; 0: it keeps its own, none of them below the ring."""
        super().__init__()
        self._worker_count = workers
        self.config = config
        self._listen = [parse_address(text) for text in listen]
        self._scheduling = scheduling
        incarnation = new_incarnation()
        self._node = Node(config, incarnation=incarnation, rng=random.SystemRandom(), now=time.monotonic())
        self.shared = SharedData(config.node, incarnation)
        self._desk = self._coordinator = RequestDesk(self.shared, self)
        self.data = Data(self.shared, self._desk)
        self.view: View | None = None
        self._lag = LoopLag()
        self._sockets: Sockets | None = None
        self._effects: deque[Effect] = deque()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._timer_due = inf
        self._read_at = -inf
        self._shared_deadline = inf  # asked for again after whatever may have changed it
        self._next_tag = 1
        self._done: dict[int, asyncio.Future[int]] = {}  # multicasts and direct messages somebody waits for
        self._flush_scheduled = False
        self._search = Search(self.counters)
        self._room: deque[asyncio.Future[None]] = deque()
        self._joined: asyncio.Event = asyncio.Event()
        self._left: asyncio.Event = asyncio.Event()
        self._leaving = False
        self._iterators: list[asyncio.Queue[RingEvent]] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Transmit: self._transmit,
            Resolve: self._resolve,
            Deliver: self._deliver,
            TokenVisit: self._token_visit,
            ViewChanged: self._view_changed,
            PeerMessage: self._peer_message,
            Done: self._request_done,
            Refused: self._request_refused,
            Left: self._has_left,
            Trace: lambda trace: self._call_all(self._on_trace, trace),
        }
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
        self._try_scheduling()
        self._sockets = Sockets(self._listen)
        # Links are watched through an epoll of our own: libuv stops watching a socket for good when an ICMP error
        # makes it readable with POLLERR.
        self._poll = select.epoll()
        for link in self._sockets.links:
            self._poll.register(link.fileno(), select.EPOLLIN)
        self._loop.add_reader(self._poll.fileno(), self._readable)
        self._step(Timer())

    def _try_scheduling(self) -> None:
        self._priority = Priority()
        try:
            set_scheduling(self._scheduling)
        except PermissionError:
            log.warning("no permission for scheduling %r: grant CAP_SYS_NICE or LimitRTPRIO", self._scheduling)
        if self._worker_count:
            self._loop.set_default_executor(worker_pool(self._scheduling, self._worker_count))

    async def leave(self) -> None:
        """Leave the ring in order, so that nobody has to detect our absence; gives up after LEAVE_TIMEOUT_S."""
        self._leaving = True
        if self._sockets is None or self._left.is_set():
            return
        self._step(Leave())
        try:
            await asyncio.wait_for(self._left.wait(), LEAVE_TIMEOUT_S)
        except TimeoutError:
            self.counters["leave_timeouts"] += 1

    def close(self) -> None:
        """Close the sockets; to the others this node is dead, unless it has left. Pending requests are cancelled."""
        if self._sockets is None:
            return
        self._loop.remove_reader(self._poll.fileno())
        self._poll.close()
        self._sockets.close()
        self._sockets = None
        if self._timer is not None:
            self._timer.cancel()
        self._priority.restore()
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
        """Replace the eligible members."""
        self._step(Eligible(dict(peers)))

    def set_critical_resource(self, available: bool) -> None:
        """State of this node's critical resources taken together."""
        self._step(CriticalResource(available))

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

    async def __aiter__(self) -> AsyncIterator[RingEvent]:
        """Views, changes of the shared data's standing, lost locks, and messages on channels without a subscriber."""
        events: asyncio.Queue[RingEvent] = asyncio.Queue(EVENTS_MAX)
        self._iterators.append(events)
        if self.view is not None:
            events.put_nowait(self.view)
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Left) and self._leaving:
                    return
        finally:
            self._iterators.remove(events)

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
        effects = self._node.step(time.monotonic(), request)
        refusal = next((e.reason for e in effects if type(e) is Refused and e.tag == request.tag), None)
        self._effects.extend(effects)
        if not self._draining:
            self._drain()
        return refusal

    # --- figures -----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counters and gauges of all layers, by name."""
        figures: dict[str, float] = dict(self.counters)
        figures.update({f"shared_{name}": value for name, value in self.shared.counters.items()})
        figures.update(self._lag.figures())
        figures["requests_open"] = len(self.shared.requests)
        figures["shared_items"] = len(self.shared.replica.items)
        figures["shared_bytes"] = self.shared.replica.items.value_bytes
        figures.update(self._node.counters)
        figures["queued_bytes"] = self._node.queued_bytes
        for link in self._sockets.links if self._sockets is not None else []:
            figures.update({f"link{link.index}_{name}": value for name, value in link.counts.items()})
        return figures

    def turned_away(self) -> dict[tuple[str, int], TurnedAway]:
        """Refused datagrams by reason (in `stats`: `transport_…`) and peer whose address they came from (0: nobody)."""
        return dict(self._node.transport.turned_away)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._sockets is None:
            return
        links = self._sockets.links
        last, self._read_at = self._read_at, time.monotonic()
        if len(links) == 1 and self._read_at - last > ALONE_AFTER_S and self._read(links[0], 1):
            return  # spares an idle ring two system calls; if there is more, or an error, the loop calls again
        ready = dict(self._poll.poll(0))
        for link in links:
            events = ready.get(link.fileno(), 0)
            if events & select.EPOLLIN:
                self._read(link)
            if events & select.EPOLLERR or link.icmp_pending:
                for address in link.refused():
                    self._node.transport.path_refused(link.index, address)

    def _read(self, link: UdpLink, limit: int = READ_MAX) -> int:
        """Take in what has arrived, then one step for all of it: one acknowledgement for a burst of bursts."""
        count = link.read(partial(self._node.transport.receive, time.monotonic()), limit)
        if count:
            self._step(Datagrams(()))
        return count

    def _on_timer(self) -> None:
        now = time.monotonic()
        self._lag.add(now - self._timer_due)
        self._timer, self._timer_at = None, inf
        # A process that was stalled must see what has arrived before it judges who is late.
        for link in self._sockets.links if self._sockets is not None else []:
            for _ in range(READS_BEFORE_TIMER_MAX):
                if self._read(link) < READ_MAX:
                    break
        self._shared_tick(time.monotonic())
        self._step(Timer())

    def _step(self, event: Event) -> None:
        """Feed the core and carry out what it wants, in order also when a callback asks for more meanwhile."""
        self._effects.extend(self._node.step(time.monotonic(), event))
        if not self._draining:
            self._drain()

    def _drain(self) -> None:
        self._draining = True
        effects, handlers = self._effects, self._handlers
        try:
            while effects:
                effect = effects.popleft()
                handlers[type(effect)](effect)
                if not effects:
                    self._flush_commands()
        finally:
            self._draining = False
        self._arm()

    def _arm(self) -> None:
        deadline = min(self._node.deadline(), self._shared_deadline)
        if deadline == self._timer_at or self._sockets is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline != inf:
            now = time.monotonic()
            # What is overdue may say so with minus infinity; it is late from now on.
            self._timer_due = max(deadline, now)
            # uvloop rounds to milliseconds; rounded down, the timer would fire early, again and again.
            delay = ceil((self._timer_due - now) * 1000) / 1000
            self._timer = self._loop.call_later(delay, self._on_timer)

    def _publish(self, event: RingEvent) -> None:
        for events in self._iterators:
            if events.full():
                events.get_nowait()
                self.counters["events_dropped"] += 1
            events.put_nowait(event)

    # --- effects of the ring -----------------------------------------------------------------------------------------

    def _transmit(self, effect: Transmit) -> None:
        if self._sockets is not None:
            self._sockets.transmit(effect)

    def _resolve(self, effect: Resolve) -> None:
        if self._sockets is not None:
            self._search.begin(self._loop, effect.address)  # type: ignore[arg-type]

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

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._take_shared()
        self._flush_commands()
        if not self._draining:
            self._arm()

    def _flush_commands(self) -> None:
        if self._sockets is not None:
            self._desk.flush()

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
