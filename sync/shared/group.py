# SPDX-License-Identifier: Apache-2.0
"""The shared data of one node, without I/O: the ordered stream in, effects out.

    shared = SharedData(local, session)
    shared.on_view(now, view); shared.on_batch(now, origin, position, payloads); shared.on_peer(now, origin, payload)
    ticket = shared.write(now, [(Operation.SET, "key", b"value")])
    shared.tick(now); shared.deadline(); shared.take()

A copy is in one of the phases below. Commands that arrive in the phases in between are deferred and applied in their
order when the copy is complete; so a snapshot travels while writes go on, and the token never waits for it.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import Enum
from math import inf
from typing import Any

from ..events import View
from . import limits, rounds, transfer
from .commands import Command, Kind, MalformedCommand, check, decode, encode
from .effects import (
    Changed,
    Complete,
    Effect,
    MulticastCommand,
    QueuesChanged,
    Replaced,
    SendPeer,
    StandingChanged,
)
from .fetching import Deferral, Deferred, Fetcher
from .leases import CHECK_INTERVAL_S, LeaseWatch
from .replica import Replica
from .requests import Requests
from .results import Refusal, Refused, Unknown

COMPARE_INTERVAL_S = 60.0  # between two comparisons of all copies
LOCK_KINDS = frozenset({Kind.ACQUIRE, Kind.RENEW, Kind.RELEASE, Kind.EXPIRE, Kind.WITHDRAW})


class Phase(Enum):
    """Where this node's copy stands."""

    OUTSIDE = "in no view"
    FETCHING = "another state is on its way"
    COMPARING = "waiting for every member's report"
    READY = "complete"


class SharedData:
    """One node's copy of the shared state, and this node's requests to it. `session` is the ring incarnation."""

    def __init__(self, local: int, session: int, *, compare_interval_s: float = COMPARE_INTERVAL_S) -> None:
        self._local, self._session = local, session
        self._compare_interval_s = compare_interval_s
        self.replica = Replica()
        self.requests = Requests(local, session)
        self.phase = Phase.OUTSIDE
        self.counters: Counter[str] = Counter()
        self._view: View | None = None
        self._position = -1  # of the last part of the stream that the copy contains
        self._incomplete: frozenset[int] = frozenset()  # members known to be fetching
        self._synchronised = True
        self._comparison = 0
        self._reports: dict[int, rounds.Report] = {}
        self._deferral = Deferral()
        self._fetcher = Fetcher(local)
        self._donor = transfer.Donor(self.replica)
        self._told_complete = False
        self._waiting: deque[tuple[int, int, Sequence[Any], bool]] = deque()  # submitted while incomplete
        self._leases = LeaseWatch()
        self._next_check = inf
        self._next_compare = inf
        self._audited = 0
        self._standing = 0
        self._effects: list[Effect] = []
        self._steps: dict[type, Callable[[float, int, Any], None]] = {
            transfer.Fetch: self._on_fetch,
            transfer.Part: self._on_part,
            transfer.Last: self._on_last,
            transfer.Ack: self._on_ack,
        }

    # --- for the user ------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True while this copy is the group's state."""
        return self.phase is Phase.READY

    @property
    def view(self) -> View | None:
        """The view this node is in."""
        return self._view

    def digest(self) -> bytes:
        """16 bytes, equal on complete copies at equal positions."""
        return self.replica.digest()

    def submit(self, now: float, kind: Kind, *arguments: Any, urgent: bool = True) -> int:
        """Submit one command; Answered with the ticket returned follows. Raises MalformedCommand, TooManyRequests.

        Not `urgent`: it may wait for the token's next regular visit, which costs next to nothing.
        """
        if self.phase is not Phase.READY:
            check(kind, arguments)
            ticket = self.requests.open(now, kind, arguments)
            self._waiting.append((ticket, kind, arguments, urgent))
            return ticket
        payload = encode(kind, self.replica.clock, self._session, self.requests.next_ticket, *arguments)
        ticket = self.requests.open(now, kind, arguments)
        self._effects.append(MulticastCommand(ticket, payload, urgent))
        return ticket

    def write(self, now: float, operations: Sequence[Sequence[Any]], conditions: Sequence[Sequence[Any]] = ()) -> int:
        """Submit a transaction: `operations` of commands.Operation, if all `conditions` (key, version) hold."""
        return self.submit(now, Kind.WRITE, conditions, operations)

    # --- from the ring -----------------------------------------------------------------------------------------------

    def on_view(self, now: float, view: View) -> None:
        """A view was committed at its position in the stream."""
        first = self.phase is Phase.OUTSIDE
        if self.phase is Phase.COMPARING and self._synchronised:
            self._become_ready(now)
        self._view = view
        self._comparison = 0
        self._reports.clear()
        self._donor.stop()
        self._incomplete = (self._incomplete & frozenset(view.members)) | view.joined
        if self._local in view.joined:
            self._start_over(now, view.position)
        elif first:
            self._settle(now, view)
            self._become_ready(now)
        elif self.phase is Phase.READY:
            self._settle(now, view)
        else:
            self._phase_to(Phase.FETCHING)
            self._defer(Deferred(view.position, view.origin, view, 0))
            self._fetch(now)
        self._serve_fetches()
        self._next_check = now + CHECK_INTERVAL_S
        self._next_compare = now + self._compare_interval_s

    def on_left(self) -> None:
        """The node is out of the ring. What it asked for is undecided until it is back."""
        self._phase_to(Phase.OUTSIDE)
        self._view = None
        self._deferral.clear()
        self._fetcher.stop()
        self._next_check = self._next_compare = inf

    def on_batch(self, now: float, origin: int, position: int, payloads: Sequence[bytes | memoryview]) -> None:
        """Messages of `origin` on the shared-data channel; the first has this position, each next one more."""
        for offset, payload in enumerate(payloads):
            try:
                command = decode(payload)
            except MalformedCommand:
                self.counters["malformed_commands"] += 1
                continue
            self._deliver(now, Deferred(position + offset, origin, command, len(payload)), command)
        if self._donor.asked:
            self._serve_fetches()

    def on_peer(self, now: float, peer: int, payload: bytes | memoryview) -> None:
        """A message of a member on the shared-data peer channel."""
        try:
            message = transfer.decode(payload)
            self._steps[type(message)](now, peer, message)
        except transfer.MalformedTransfer:
            self.counters["malformed_transfers"] += 1

    def on_lost(self, ticket: int) -> None:
        """The ring cannot say whether the command with this ticket was or will be ordered."""
        self._effects += self.requests.fail(ticket, Unknown())

    def on_refused(self, ticket: int) -> None:
        """The ring refused the command with this ticket for good: it will never be ordered."""
        self._effects += self.requests.fail(ticket, Refused(Refusal.NOT_SERVING))

    def tick(self, now: float) -> None:
        """Do what is due. Harmless when early."""
        self._effects += self.requests.ended_leases(now)
        if self.phase is Phase.READY:
            self._renew(now)
        if now >= self._next_check:
            self._next_check = now + CHECK_INTERVAL_S
            self._check(now)
        if now >= self._fetcher.deadline:
            self._fetch_failed(now)

    def deadline(self) -> float:
        """When `tick` must be called at the latest."""
        leases = min((min(h.valid_until, h.renew_at) for h in self.requests.held.values()), default=inf)
        check = self._next_check if self._has_timed_work() else inf
        return min(leases, check, self._fetcher.deadline, self._next_compare if self._is_coordinator() else inf)

    def take(self) -> list[Effect]:
        """Effects so far, in order."""
        changes = self.replica.items.changes
        self._announce_standing()
        if changes and self.phase is Phase.READY:
            self.replica.items.changes = []
            self._effects.append(Changed(changes))
        if self.phase is Phase.READY and (names := self.replica.queues.take_dirty()):
            self._effects.append(QueuesChanged(names))
        effects, self._effects = self._effects, []
        return effects

    # --- the stream --------------------------------------------------------------------------------------------------

    def _deliver(self, now: float, place: Deferred, command: Command) -> None:
        kind = command.kind
        if kind == Kind.COMPARE:
            self._open_comparison(now, place)
        elif kind == Kind.REPORT:
            self._on_report(now, place, command)
        elif self.phase is Phase.READY and place.position > self._position:
            self._apply(now, place)
        elif self.phase is Phase.READY:
            # The donor was ahead of us in the stream: what we fetched contains this already.
            self.requests.mark_ordered(place.origin, command.session, command.ticket)
            if place.origin == self._local:
                self._effects += self.requests.reconcile(now, self.replica)
        else:
            self.requests.mark_ordered(place.origin, command.session, command.ticket)
            self._defer(place)
        if self.phase is Phase.READY:
            self._position = max(self._position, place.position)

    def _apply(self, now: float, place: Deferred) -> None:
        if isinstance(place.what, View):
            self._settle(now, place.what)
            return
        command = place.what
        if command.kind == Kind.FETCHED:
            self._incomplete -= {place.origin}
        self.requests.mark_ordered(place.origin, command.session, command.ticket)
        outcomes = self.replica.apply(place.origin, command)
        self._effects += self.requests.answer(now, outcomes)
        if command.kind in LOCK_KINDS and command.kind != Kind.WITHDRAW:
            name = command.arguments[0]
            self._leases.observe(now, name, self.replica.locks.get(name))
            if command.kind == Kind.EXPIRE:
                self.counters["leases_ended"] += 1
                self._effects += self.requests.forget_lock(name, self.replica)
        self._position = place.position

    def _settle(self, now: float, view: View) -> None:
        sessions = dict(zip(view.members, view.incarnations, strict=True))
        founder = sessions[min(frozenset(view.members) - view.joined)]
        self._effects += self.requests.answer(now, self.replica.settle(sessions, 0, founder))
        self._leases.restart(now, self.replica.locks.all())
        self._position = view.position

    def _defer(self, place: Deferred) -> None:
        if not self._deferral.add(place):
            # The state fetched must be newer than what was dropped here.
            self.counters["deferred_overflows"] += 1
            self._fetcher.stop()
            self._fetcher.begin(place.position)
            self._fetcher.deadline = 0.0
            self._synchronised = False

    def _become_ready(self, now: float) -> None:
        self._synchronised = True
        self._fetcher.stop()
        for place in self._deferral.take():
            if place.position > self._position:
                self._apply(now, place)
        self._phase_to(Phase.READY)
        self._leases.restart(now, self.replica.locks.all())
        self._flush_waiting()

    def _flush_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for ticket, kind, arguments, urgent in waiting:
            payload = encode(kind, self.replica.clock, self._session, ticket, *arguments)
            self._effects.append(MulticastCommand(ticket, payload, urgent))

    def _phase_to(self, phase: Phase) -> None:
        if phase is self.phase:
            return
        self.phase = phase
        self.counters[f"entered_{phase.name.lower()}"] += 1
        # A comparison of complete copies is no news to anybody.
        if phase is not Phase.COMPARING and self._told_complete != (phase is Phase.READY):
            self._told_complete = phase is Phase.READY
            self._effects.append(Complete(self._told_complete))

    def _multicast(self, kind: Kind, *arguments: Any) -> None:
        payload = encode(kind, self.replica.clock, self._session, 0, *arguments)
        self._effects.append(MulticastCommand(0, payload))

    # --- comparing ---------------------------------------------------------------------------------------------------

    def _open_comparison(self, now: float, place: Deferred) -> None:
        if self._view is None:
            return
        if self.phase is Phase.COMPARING and self._synchronised:
            self._become_ready(now)
        if self.phase is not Phase.READY:
            self._synchronised = False
            self._deferral.clear()
            self._position = place.position
            self._fetcher.begin(place.position)
            self._fetcher.stop()
        self._comparison += 1
        self._reports.clear()
        self._donor.stop()
        self._phase_to(Phase.COMPARING)
        self.counters["comparisons"] += 1
        replica = self.replica
        self._multicast(
            Kind.REPORT,
            self._view.number,
            self._comparison,
            self._synchronised,
            replica.lineage,
            replica.clock,
            replica.digest(),
        )

    def _on_report(self, now: float, place: Deferred, command: Command) -> None:
        number, comparison, synchronised, lineage, clock, digest = command.arguments
        if self._view is None or self.phase is not Phase.COMPARING:
            return
        if (number, comparison) != (self._view.number, self._comparison):
            return
        report = rounds.Report(place.origin, command.session, synchronised, lineage, clock, digest)
        self._reports[place.origin] = report
        if self._reports.keys() >= set(self._view.members):
            self._decide(now, self._view, place.position)

    def _decide(self, now: float, view: View, position: int) -> None:
        winners = frozenset(rounds.choose(self._reports))
        clock = max(report.clock for report in self._reports.values())
        founder = self._reports[min(winners)].session
        self._incomplete = frozenset(view.members) - winners
        if self._incomplete:
            self.counters["comparisons_differing"] += 1
        if self._local not in winners:
            self._start_over(now, position)
            return
        sessions = dict(zip(view.members, view.incarnations, strict=True))
        self._effects += self.requests.answer(now, self.replica.settle(sessions, clock, founder))
        self._become_ready(now)
        self._position = position
        self._serve_fetches()

    def _check(self, now: float) -> None:
        """Work of the slow clock: ended leases, one bucket's audit, a comparison of all copies."""
        if self.phase is not Phase.READY:
            return
        if len(self.replica.items):
            self._audited = (self._audited + 1) % limits.BUCKETS
            if not self.replica.items.audit(self._audited):
                self.counters["buckets_damaged"] += 1
        if not self._is_coordinator():
            return
        for name, fencing, renewals in self._leases.due(now):
            self._multicast(Kind.EXPIRE, name, fencing, renewals)
        if now >= self._next_compare:
            self._next_compare = now + self._compare_interval_s
            if self._view is not None and len(self._view.members) > 1 and not self._incomplete:
                self._multicast(Kind.COMPARE)

    def _is_coordinator(self) -> bool:
        return self._view is not None and self._view.serving and self._local == min(self._view.members)

    def _has_timed_work(self) -> bool:
        return self.phase is Phase.READY and (len(self._leases) > 0 or len(self.replica.items) > 0)

    # --- fetching ----------------------------------------------------------------------------------------------------

    def _start_over(self, now: float, position: int) -> None:
        """Our state is not the group's: fetch it as of `position` or later."""
        self._synchronised = False
        self._deferral.clear()
        self._position = -1
        self._fetcher.begin(position)
        self._phase_to(Phase.FETCHING)
        self._fetch(now)

    def _fetch(self, now: float) -> None:
        if self._view is None:
            return
        place = transfer.RoundId(self._view.number, self._comparison)
        donors = [n for n in self._view.members if n not in self._incomplete and n != self._local]
        request = self._fetcher.request(now, place, donors, self.replica.items.digests())
        if request is None:
            self._multicast(Kind.COMPARE)
        else:
            self._effects.append(SendPeer(*request))

    def _fetch_failed(self, now: float) -> None:
        self.counters["fetch_timeouts"] += 1
        self._fetcher.fail()
        self._fetch(now)

    def _on_part(self, now: float, peer: int, part: transfer.Part) -> None:
        acknowledgement = self._fetcher.on_part(now, part)
        if acknowledgement is None:
            self.counters["stale_transfers"] += 1
            return
        self._effects.append(SendPeer(peer, acknowledgement))
        self._adopt_if_complete(now)

    def _on_last(self, now: float, peer: int, last: transfer.Last) -> None:
        if self._fetcher.on_last(last):
            self._adopt_if_complete(now)
        else:
            self.counters["stale_transfers"] += 1

    def _adopt_if_complete(self, now: float) -> None:
        result = self._fetcher.result()
        if result is None:
            return
        buckets, last = result
        lineage, clock = self.replica.lineage, self.replica.clock
        try:
            self.replica.adopt(buckets, last.rest)
        except (ValueError, TypeError) as error:
            raise transfer.MalformedTransfer(str(error)) from None
        if self.replica.digest() != last.digest:
            self.counters["transfers_differing"] += 1
            self._fetcher.distrust()
            self._fetch(now)
            return
        self._position = last.position
        self.counters["transfers_completed"] += 1
        if lineage:  # an empty copy had nothing to lose
            self._effects.append(Replaced(self.replica.lineage != lineage))
        self._effects += self.requests.reconcile(now, self.replica)
        # Carries the clock of the history given up, so that its versions are not used again.
        self._effects.append(MulticastCommand(0, encode(Kind.FETCHED, clock, self._session, 0)))
        self._become_ready(now)

    def _on_fetch(self, now: float, peer: int, fetch: transfer.Fetch) -> None:
        self._donor.ask(peer, fetch)
        self._serve_fetches()

    def _serve_fetches(self) -> None:
        if self.phase is Phase.READY and self._view is not None:
            place = transfer.RoundId(self._view.number, self._comparison)
            self._effects += [SendPeer(*message) for message in self._donor.serve(place, self._position)]

    def _on_ack(self, now: float, peer: int, ack: transfer.Ack) -> None:
        self._effects += [SendPeer(*message) for message in self._donor.acknowledge(peer, ack)]

    # --- small things ------------------------------------------------------------------------------------------------

    def _renew(self, now: float) -> None:
        for held in self.requests.renewals_due(now):
            held.renewing = self.submit(now, Kind.RENEW, held.name, held.ticket, urgent=False)
            held.asked_at = now

    def _announce_standing(self) -> None:
        standing = self.replica.clock.bit_length()
        if standing != self._standing:
            self._standing = standing
            self._effects.append(StandingChanged(standing))
