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
import contextlib
import logging
import os
import random
import secrets
import select
import time
from collections import Counter as Counts
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from types import TracebackType
from typing import Any, NamedTuple, Self

from .config import RingConfig
from .coordination import LEASE_S, Counter, Election, FirstComer, Lock, Queue, wait_for_all
from .data import Data, Transaction
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
from .node import Node
from .shared import (
    CHANNEL,
    Answered,
    Changed,
    Complete,
    Granted,
    Kind,
    LockLost,
    MulticastCommand,
    Passed,
    QueuesChanged,
    Replaced,
    Result,
    SendPeer,
    SharedData,
    StandingChanged,
    Taken,
)
from .shared import Unknown as UnknownOutcome
from .sockets import READ_MAX, Sockets, UdpLink, datagram_max, parse_address
from .transport.effects import Path, PeerConfig, Transmit

log = logging.getLogger("sync")

USER_CHANNELS = range(16, 256)
EVENTS_MAX = 1024  # per iterator; older ones are dropped and counted
LEAVE_TIMEOUT_S = 0.5
AUTOMATIC_SCHEDULING = ("rr:1", "nice:-10", "other")
READS_BEFORE_TIMER_MAX = 64  # times READ_MAX datagrams per link
LAG_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 500)
INCARNATION_BITS = 62


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


def peer_paths(listen: Sequence[str], addresses: Sequence[str], *, parallel: bool = False) -> PeerConfig:
    """How to reach a peer: its n-th address over our n-th link, and surplus addresses over the last link of its family.

    Raises AddressError for what is no address, ValueError if no link fits an address.
    """
    links = [parse_address(text) for text in listen]
    paths = []
    for index, text in enumerate(addresses):
        address = parse_address(text)
        link = index if index < len(links) else len(links) - 1
        if len(links[link]) != len(address):
            raise ValueError(f"{text} is of another address family than {listen[link]}, over which it would be reached")
        paths.append(Path(link, address, datagram_max(links[link], address)))
    return PeerConfig(tuple(paths), parallel)


def set_scheduling(wish: str) -> None:
    """Set the calling thread's to "other", "nice:-10", "rr:5", or with "auto" to the best that is permitted.

    Without a real-time priority a busy neighbour on the machine can delay a hop of the token by tens of milliseconds.
    Raises ValueError for anything else, PermissionError without the right to (never for "auto").
    """
    policy, _, level = wish.partition(":")
    if wish == "auto":
        for choice in AUTOMATIC_SCHEDULING:
            with contextlib.suppress(PermissionError):
                set_scheduling(choice)
                return
    elif policy == "rr":
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(int(level or 1)))
    elif policy == "nice":
        os.setpriority(os.PRIO_PROCESS, 0, int(level))
    elif wish != "other":
        raise ValueError(f'scheduling {wish!r} is not known: write "auto", "other", "nice:-10" or "rr:5"')


class Ring:
    """One node of a ring. Use as an asynchronous context manager; entering waits for the first view."""

    def __init__(self, config: RingConfig, listen: Sequence[str], *, scheduling: str = "auto") -> None:
        self.config = config
        self._listen = [parse_address(text) for text in listen]
        self._scheduling = scheduling
        incarnation = new_incarnation()
        self._node = Node(config, incarnation=incarnation, rng=random.SystemRandom(), now=time.monotonic())
        self.shared = SharedData(config.node, incarnation)
        self.data = Data(self.shared, self)
        self.view: View | None = None
        self.counters: Counts[str] = Counts()
        self._lag_ms: Counts[int] = Counts()
        self._lag_max = 0.0
        self._sockets: Sockets | None = None
        self._effects: deque[Effect] = deque()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._next_tag = 1
        self._done: dict[int, asyncio.Future[int]] = {}  # multicasts and direct messages somebody waits for
        self._commands: dict[int, list[int]] = {}  # tickets of shared-data commands by multicast tag
        self._command_backlog: deque[MulticastCommand] = deque()
        self._flush_scheduled = False
        self._answers: dict[int, asyncio.Future[Result]] = {}
        self._abandoned: dict[int, Kind] = {}
        self._lost_callbacks: dict[int, Callable[[], None]] = {}
        self._room: deque[asyncio.Future[None]] = deque()
        self._joined: asyncio.Event = asyncio.Event()
        self._left: asyncio.Event = asyncio.Event()
        self._iterators: list[asyncio.Queue[RingEvent]] = []
        self._subscribers: dict[int, list[Callable[[Deliver], None]]] = {}
        self._peer_subscribers: dict[int, list[Callable[[PeerMessage], None]]] = {}
        self._view_callbacks: list[Callable[[View], None]] = []
        self._token_callbacks: list[Callable[[TokenVisit], None]] = []
        self._replaced_callbacks: list[Callable[[Replaced], None]] = []
        self._complete_callbacks: list[Callable[[bool], None]] = []
        self._queue_callbacks: list[Callable[[set[str]], None]] = []
        self._trace_callbacks: list[Callable[[Trace], None]] = []
        self._handlers: dict[type, Callable[[Any], None]] = {
            Transmit: self._transmit,
            Deliver: self._deliver,
            TokenVisit: self._token_visit,
            ViewChanged: self._view_changed,
            PeerMessage: self._peer_message,
            Done: self._request_done,
            Refused: self._request_refused,
            Left: self._has_left,
            Trace: lambda trace: self._call_all(self._trace_callbacks, trace),
        }
        self._shared_handlers: dict[type, Callable[[Any], None]] = {
            MulticastCommand: self._command_backlog.append,
            SendPeer: lambda e: self._step(Direct(self._tag(), e.node, CHANNEL, e.payload)),
            Answered: self._answered,
            Changed: self._changed,
            QueuesChanged: lambda e: self._call_all(self._queue_callbacks, e.names),
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
        try:
            set_scheduling(self._scheduling)
        except PermissionError:
            log.warning("no permission for scheduling %r: grant CAP_SYS_NICE or LimitRTPRIO", self._scheduling)

    async def leave(self) -> None:
        """Leave the ring in order, so that nobody has to detect our absence; gives up after LEAVE_TIMEOUT_S."""
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
        pending: list[asyncio.Future[Any]] = [*self._done.values(), *self._answers.values(), *self._room]
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
            tag = self._tag()
            future = self._done[tag] = self._loop.create_future()
            if self._ask(Multicast(tag, channel, payloads, order, urgent=urgent)) is not Refusal.QUEUE_FULL:
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
        refusal = self._ask(Multicast(self._tag(), channel, payloads, order, bulk=bulk, urgent=urgent))
        if refusal is not None:
            self.counters["offers_refused"] += 1
        return refusal is None

    async def send(self, node: int, channel: int, payload: Payload | Sequence[Payload]) -> None:
        """Send to one member, outside of the order; returns when it has arrived. Raises MulticastFailed."""
        tag = self._tag()
        future = self._done[tag] = self._loop.create_future()
        self._ask(Direct(tag, node, channel, payload))
        await self._finish(tag, future)

    async def wait_for_room(self) -> None:
        """Wait until an offer that was refused may be worth another try."""
        await self._wait_for_room()

    def subscribe(self, channel: int, callback: Callable[[Deliver], None]) -> None:
        """Call with every batch delivered on a channel; batches come in the total order."""
        self._subscribers.setdefault(_user_channel(channel), []).append(callback)

    def subscribe_peer(self, channel: int, callback: Callable[[PeerMessage], None]) -> None:
        """Call with every direct message (`send`) on a channel."""
        self._peer_subscribers.setdefault(_user_channel(channel), []).append(callback)

    def on_view(self, callback: Callable[[View], None]) -> None:
        """Call with every view, in its place in the order."""
        self._view_callbacks.append(callback)

    def on_token(self, callback: Callable[[TokenVisit], None]) -> None:
        """Call whenever the token has been passed on."""
        self._token_callbacks.append(callback)

    def on_replaced(self, callback: Callable[[Replaced], None]) -> None:
        """Call when this node's shared data were replaced after a merge: what it wrote meanwhile may be gone."""
        self._replaced_callbacks.append(callback)

    def on_complete(self, callback: Callable[[bool], None]) -> None:
        """Call when this node's copy of the shared data becomes complete (True) or stops being it (False)."""
        self._complete_callbacks.append(callback)

    def on_queues(self, callback: Callable[[set[str]], None]) -> None:
        """Call with the names of shared queues whose content changed."""
        self._queue_callbacks.append(callback)

    def on_trace(self, callback: Callable[[Trace], None]) -> None:
        """Call with the core's transitions and drops (RingConfig.trace)."""
        self._trace_callbacks.append(callback)

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
                if isinstance(event, Left):
                    return
        finally:
            self._iterators.remove(events)

    # --- shared data and coordination --------------------------------------------------------------------------------

    def transaction(self) -> Transaction:
        """Several writes that take effect together; see Transaction."""
        return Transaction(self)

    def lock(self, name: str, *, lease_s: float = LEASE_S, wait: bool = True) -> Lock:
        """A named lock; see Lock."""
        return Lock(self, name, lease_s, wait)

    def election(self, name: str, *, lease_s: float = LEASE_S) -> Election:
        """Leader election; see Election."""
        return Election(self, name, lease_s)

    def counter(self, name: str) -> Counter:
        """A shared counter; see Counter."""
        return Counter(self, name)

    def queue(self, name: str) -> Queue:
        """A shared FIFO queue; see Queue."""
        return Queue(self, name)

    def first_comer(self, name: str) -> FirstComer:
        """A barrier at which one acts and the others wait; see FirstComer."""
        return FirstComer(self, name)

    async def barrier(self, name: str, parties: int = 0) -> bool:
        """Wait until `parties` requests (0: every member) are here; True for the first."""
        return await wait_for_all(self, name, parties)

    def request(self, kind: Kind, *arguments: Any) -> Awaitable[Result]:
        """For data.py and coordination.py: submit a request of the shared data."""
        ticket = self.shared.submit(time.monotonic(), kind, *arguments)
        future = self._answers[ticket] = self._loop.create_future()
        self._schedule_flush()
        return future

    def submit(self, kind: Kind, *arguments: Any) -> None:
        """For data.py: submit a request nobody waits for."""
        self.shared.submit(time.monotonic(), kind, *arguments, urgent=False)
        self._schedule_flush()

    async def turn(self, kind: Kind, *arguments: Any) -> tuple[int, Any]:
        """For coordination.py: submit a request that waits for its turn, for as long as its caller does."""
        ticket = self.shared.submit(time.monotonic(), kind, *arguments)
        future = self._answers[ticket] = self._loop.create_future()
        self._schedule_flush()
        try:
            return ticket, await future
        except asyncio.CancelledError:
            self._abandon(ticket, kind, future)
            raise

    def _abandon(self, ticket: int, kind: Kind, future: asyncio.Future[Result]) -> None:
        self._answers.pop(ticket, None)
        if future.done() and not future.cancelled():
            self._give_back(ticket, future.result())
        elif self._sockets is not None:
            self._abandoned[ticket] = kind
            self.submit(Kind.WITHDRAW, ticket)

    def _give_back(self, ticket: int, result: Result) -> None:
        """A request was granted to nobody any more."""
        if isinstance(result, Granted):
            held = self.shared.requests.held.get(ticket)
            if held is not None:
                self.submit(Kind.RELEASE, held.name, ticket)
        elif isinstance(result, Taken):
            self.submit(Kind.WITHDRAW, ticket)
        elif isinstance(result, Passed) and result.first:
            for name, barrier in self.shared.replica.barriers.all().items():
                if self.shared.requests.owner(ticket) in barrier.arrivals:
                    self.submit(Kind.LEAVE, name, ticket)

    def on_lock_lost(self, ticket: int, callback: Callable[[], None]) -> None:
        """For coordination.py: call once if this lock ends without our release."""
        self._lost_callbacks[ticket] = callback

    # --- figures -----------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counters and gauges of all layers, by name."""
        figures: dict[str, float] = dict(self.counters)
        figures.update({f"shared_{name}": value for name, value in self.shared.counters.items()})
        figures.update({f"loop_lag_{'above' if b is inf else 'within'}_{b}_ms": n for b, n in self._lag_ms.items()})
        figures["loop_lag_max_ms"] = self._lag_max * 1000
        figures["requests_open"] = len(self.shared.requests)
        figures["shared_items"] = len(self.shared.replica.items)
        figures["shared_bytes"] = self.shared.replica.items.value_bytes
        figures.update(self._node.counters)
        figures["queued_bytes"] = self._node.queued_bytes
        for link in self._sockets.links if self._sockets is not None else []:
            figures.update({f"link{link.index}_{name}": value for name, value in link.counts.items()})
        return figures

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._sockets is None:
            return
        ready = dict(self._poll.poll(0))
        for link in self._sockets.links:
            events = ready.get(link.fileno(), 0)
            if events & select.EPOLLIN:
                self._read(link)
            if events & select.EPOLLERR or link.icmp_pending:
                for address in link.refused():
                    self._node.transport.path_refused(link.index, address)

    def _read(self, link: UdpLink) -> int:
        """Take in what has arrived, then one step for all of it: one acknowledgement for a burst of bursts."""
        count = link.read(partial(self._node.transport.receive, time.monotonic()))
        if count:
            self._step(Datagrams(()))
        return count

    def _on_timer(self) -> None:
        now = time.monotonic()
        self._measure_lag(now - self._timer_at)
        self._timer, self._timer_at = None, inf
        # A process that was stalled must see what has arrived before it judges who is late.
        for link in self._sockets.links if self._sockets is not None else []:
            for _ in range(READS_BEFORE_TIMER_MAX):
                if self._read(link) < READ_MAX:
                    break
        self._shared_tick(time.monotonic())
        self._step(Timer())

    def _measure_lag(self, lag: float) -> None:
        self._lag_max = max(self._lag_max, lag)
        bound = next((bound for bound in LAG_BOUNDS_MS if lag * 1000 <= bound), inf)
        self._lag_ms[bound] += 1  # type: ignore[index]

    def _step(self, event: Event) -> None:
        """Feed the core and carry out what it wants, in order also when a callback asks for more meanwhile."""
        self._effects.extend(self._node.step(time.monotonic(), event))
        if not self._draining:
            self._drain()

    def _ask(self, request: Multicast | Direct) -> Refusal | None:
        """Feed a request; why it was refused at once, or None."""
        effects = self._node.step(time.monotonic(), request)
        refusal = next((e.reason for e in effects if type(e) is Refused and e.tag == request.tag), None)
        self._effects.extend(effects)
        if not self._draining:
            self._drain()
        return refusal

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
        deadline = min(self._node.deadline(), self.shared.deadline())
        if deadline == self._timer_at or self._sockets is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = deadline
        if deadline != inf:
            # uvloop rounds to milliseconds; rounded down, the timer would fire early, again and again.
            delay = ceil((deadline - time.monotonic()) * 1000) / 1000
            self._timer = self._loop.call_later(max(0.0, delay), self._on_timer)

    def _tag(self) -> int:
        self._next_tag += 1
        return self._next_tag

    def _call_all(self, callbacks: Sequence[Callable[[Any], None]], argument: Any) -> None:
        for callback in callbacks:
            try:
                callback(argument)
            except Exception:
                self.counters["callback_errors"] += 1
                log.exception("a callback failed on %r", type(argument).__name__)

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

    def _deliver(self, batch: Deliver) -> None:
        if batch.channel == CHANNEL:
            self.shared.on_batch(time.monotonic(), batch.origin, batch.position, batch.payloads())
            self._take_shared()
            return
        callbacks = self._subscribers.get(batch.channel)
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
        self._call_all(self._view_callbacks, effect.view)
        self._publish(effect.view)
        self._take_shared()
        self._joined.set()

    def _token_visit(self, visit: TokenVisit) -> None:
        self.counters["token_visits"] += 1
        self._call_all(self._token_callbacks, visit)
        self._wake_for_room()

    def _peer_message(self, message: PeerMessage) -> None:
        if message.channel == CHANNEL:
            self.shared.on_peer(time.monotonic(), message.peer, message.payload)
            self._take_shared()
            return
        callbacks = self._peer_subscribers.get(message.channel)
        if callbacks is None:
            self.counters["peer_messages_unclaimed"] += 1
        else:
            self._call_all(callbacks, message)

    def _request_done(self, effect: Done) -> None:
        self._commands.pop(effect.tag, None)
        future = self._done.pop(effect.tag, None)
        if future is not None and not future.done():
            future.set_result(effect.position)

    def _request_refused(self, effect: Refused) -> None:
        tickets = self._commands.pop(effect.tag, None)
        if tickets is not None:
            self._commands_refused(tickets, effect.reason)
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

    def _shared_tick(self, now: float) -> None:
        if now >= self.shared.deadline():
            self.shared.tick(now)
            self._take_shared()
            self._flush_commands()

    def _schedule_flush(self) -> None:
        """Requests of one turn of the loop travel together."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._take_shared()
        self._flush_commands()
        if not self._draining:
            self._arm()

    def _flush_commands(self) -> None:
        backlog = self._command_backlog
        if not backlog or self._sockets is None:
            return
        commands = list(backlog)
        backlog.clear()
        tag = self._tag()
        self._commands[tag] = [command.ticket for command in commands]
        urgent = any(command.urgent for command in commands)
        request = Multicast(tag, CHANNEL, [command.payload for command in commands], urgent=urgent)
        if self._ask(request) is Refusal.QUEUE_FULL:
            backlog.extendleft(reversed(commands))
            self.counters["commands_held_back"] += 1

    def _commands_refused(self, tickets: list[int], reason: Refusal) -> None:
        if reason is Refusal.QUEUE_FULL:
            return  # _flush_commands keeps them
        for ticket in tickets:
            if reason is Refusal.HISTORY_LOST:
                self.shared.on_lost(ticket)
            else:
                self.shared.on_refused(ticket)
        self._take_shared()

    def _answered(self, effect: Answered) -> None:
        future = self._answers.pop(effect.ticket, None)
        if future is not None:
            if future.cancelled():
                self._give_back(effect.ticket, effect.result)
            else:
                future.set_result(effect.result)
        elif self._abandoned.pop(effect.ticket, None) is not None:
            self._give_back(effect.ticket, effect.result)
        elif isinstance(effect.result, UnknownOutcome):
            self.counters["outcomes_unknown"] += 1

    def _changed(self, effect: Changed) -> None:
        for callback, changes in self.data.watchers_of(effect.changes):
            self._call_all((callback,), changes)

    def _lock_lost(self, effect: LockLost) -> None:
        self.counters["locks_lost"] += 1
        callback = self._lost_callbacks.pop(effect.ticket, None)
        if callback is not None:
            self._call_all((lambda _: callback(),), effect)
        self._publish(effect)

    def _replaced(self, effect: Replaced) -> None:
        self.counters["data_replaced"] += 1
        self._call_all(self._replaced_callbacks, effect)
        self._publish(effect)

    def _complete(self, effect: Complete) -> None:
        self._call_all(self._complete_callbacks, effect.complete)
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
        if self._command_backlog:
            self._flush_commands()
        while self._room:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _user_channel(channel: int) -> int:
    if channel not in USER_CHANNELS:
        raise ValueError(f"channel {channel} is outside {USER_CHANNELS.start}..{USER_CHANNELS.stop - 1}")
    return channel
