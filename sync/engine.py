# SPDX-License-Identifier: Apache-2.0
"""Sockets, clock and one timer around the sans-I/O core: what arrives goes in, what it wants done is done, in order."""

import asyncio
import select
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil, inf
from typing import Any, NamedTuple

from .carrier import Carrier
from .events import Datagrams, Effect, Event, LinkLost, Timer
from .neighbours import Search
from .node import Node
from .scheduling import LoopLag, Priority, set_scheduling, worker_pool
from .sockets import READ_MAX, Sockets, UdpLink, parse_address
from .subscriptions import log
from .transport.effects import Resolve, Transmit

ALONE_AFTER_S = 0.002  # without a datagram: what comes then comes alone, an idle token mostly
READS_BEFORE_TIMER_MAX = 64  # times READ_MAX datagrams per link


class Upper(NamedTuple):
    """What lives on top of the core and on the same timer."""

    tick: Callable[[float], None]
    """Do what is due at this instant. Harmless when early."""
    deadline: Callable[[], float]
    """When it must be called at the latest; infinity if never."""
    flush: Callable[[], None]
    """All effects are carried out: hand over what was collected meanwhile."""


class Engine:
    """Drives one node on the running event loop.

    `handlers`: what to do with each kind of effect, transmissions excepted. `workers`: threads of the executor that the
    loop gets; 0: it keeps its own, none of them below the ring.
    """

    def __init__(
        self,
        node: Node,
        listen: Sequence[str],
        upper: Upper,
        handlers: Mapping[type, Callable[[Any], None]],
        counters: Counter[str],
        *,
        scheduling: str,
        workers: int,
    ) -> None:
        self._node = node
        self._listen = [parse_address(text) for text in listen]
        self._upper = upper
        self._handlers: dict[type, Callable[[Any], None]] = {
            **handlers,
            Transmit: self._transmit,
            Resolve: self._resolve,
        }
        self._scheduling, self._workers = scheduling, workers
        self._counters = counters
        self._search = Search(counters)
        self._lag = LoopLag()
        self._sockets: Sockets | None = None
        self._effects: deque[Effect] = deque()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._timer_due = inf
        self._read_at = -inf

    # --- life --------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Between `start` and `close`."""
        return self._sockets is not None

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
        self._carrier = self._watch_carrier()
        self._loop.add_reader(self._poll.fileno(), self._readable)
        self.step(Timer())

    def _watch_carrier(self) -> Carrier | None:
        """Only where there is another link to go to."""
        if len(self._listen) == 1:
            return None
        try:
            carrier = Carrier(self._listen)
        except OSError as error:
            log.warning("links without a carrier will only be noticed by silence: %s", error)
            return None
        self._poll.register(carrier.fileno(), select.EPOLLIN)
        return carrier

    def _try_scheduling(self) -> None:
        self._priority = Priority()
        try:
            set_scheduling(self._scheduling)
        except PermissionError:
            log.warning("no permission for scheduling %r: grant CAP_SYS_NICE or LimitRTPRIO", self._scheduling)
        if self._workers:
            self._loop.set_default_executor(worker_pool(self._scheduling, self._workers))

    def close(self) -> None:
        """Close the sockets; the loop is as it was before."""
        if self._sockets is None:
            return
        self._loop.remove_reader(self._poll.fileno())
        self._poll.close()
        if self._carrier is not None:
            self._carrier.close()
        self._sockets.close()
        self._sockets = None
        if self._timer is not None:
            self._timer.cancel()
        self._priority.restore()

    def figures(self) -> dict[str, float]:
        """How late the loop is, and what the sockets have counted."""
        figures: dict[str, float] = dict(self._lag.figures())
        for link in self._sockets.links if self._sockets is not None else []:
            figures.update({f"link{link.index}_{name}": value for name, value in link.counts.items()})
        return figures

    # --- in ----------------------------------------------------------------------------------------------------------

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
        if self._carrier is not None and self._carrier.fileno() in ready:
            for index in self._carrier.lost():
                self._counters["links_lost"] += 1
                self.step(LinkLost(index))

    def _read(self, link: UdpLink, limit: int = READ_MAX) -> int:
        """Take in what has arrived, then one step for all of it: one acknowledgement for a burst of bursts."""
        count = link.read(partial(self._node.transport.receive, time.monotonic()), limit)
        if count:
            self.step(Datagrams(()))
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
        self._upper.tick(time.monotonic())
        self.step(Timer())

    # --- out ---------------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> Sequence[Effect]:
        """Feed the core and carry out what it wants, in order also when a handler asks for more meanwhile.

        What this event brought about, carried out already or, called by a handler, soon.
        """
        effects = self._node.step(time.monotonic(), event)
        self._effects.extend(effects)
        if not self._draining:
            self._drain()
        return effects

    def _drain(self) -> None:
        self._draining = True
        effects, handlers = self._effects, self._handlers
        try:
            while effects:
                effect = effects.popleft()
                handlers[type(effect)](effect)
                if not effects:
                    self._upper.flush()
        finally:
            self._draining = False
        self._arm()

    def _transmit(self, effect: Transmit) -> None:
        if self._sockets is not None:
            self._sockets.transmit(effect)

    def _resolve(self, effect: Resolve) -> None:
        if self._sockets is not None:
            self._search.begin(self._loop, effect.address)  # type: ignore[arg-type]

    # --- when --------------------------------------------------------------------------------------------------------

    def rearm(self) -> None:
        """What is on top may have another deadline now."""
        if not self._draining:
            self._arm()

    def _arm(self) -> None:
        deadline = min(self._node.deadline(), self._upper.deadline())
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
