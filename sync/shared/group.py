# SPDX-License-Identifier: Apache-2.0
"""The shared data of one node, without I/O: the ordered stream in, effects out.

    shared = SharedData(local, session)
    shared.on_view(now, view); shared.on_batch(now, origin, position, payloads); shared.on_peer(now, origin, payload)
    ticket = shared.write(now, [(Operation.SET, "key", b"value")])
    shared.tick(now); shared.deadline(); shared.take()

A copy is in one of the phases of `own_copy`. Commands that arrive in the phases in between are deferred and applied in
their order when the copy is complete; so a snapshot travels while writes go on, and the token never waits for it.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from ..events import View
from . import transfer
from .commands import Command, Kind, MalformedCommand, check, decode, encode
from .comparison import Comparison
from .effects import (
    Changed,
    Effect,
    MulticastCommand,
    QueuesChanged,
    StandingChanged,
)
from .fetching import Deferred
from .leases import CHECK_INTERVAL_S
from .own_copy import COMPARE_INTERVAL_S, Phase
from .results import Refusal, Refused, Unknown

IN_USE = 1 << 8
"""Added to the standing of a state that is in use: more than any history counts for."""


class SharedData(Comparison):
    """One node's copy of the shared state, and this node's requests to it. `session` is the ring incarnation."""

    def __init__(self, local: int, session: int, *, compare_interval_s: float = COMPARE_INTERVAL_S) -> None:
        super().__init__(local, session, compare_interval_s)
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

    def holds(self, now: float, ticket: int) -> bool:
        """Is the lock that this request acquired ours for certain?

        By its lease, and by the ring's: a node that stood still may have been excluded, and its lock passed on. Not in
        a part that does not serve, nor while our copy is not the group's.
        """
        held, view = self.requests.held.get(ticket), self._view
        if held is None or view is None or not view.serving or not self._synchronised:
            return False
        return now < min(held.valid_until, self._trusted_until)

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
        payload = encode(kind, self._stamp, self._session, self.requests.next_ticket, *arguments)
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
        self._heard = view.position
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
            # What had waited for another state when this node left the ring is not done any more.
            self._effects += self.requests.forgotten(now, self.replica)
            self._become_ready(now)
        elif self.phase is Phase.READY:
            self._settle(now, view)
            if self._local in self._incomplete:
                self._tell_fetched()  # again: the view before has ended before it was told
        else:
            self._phase_to(Phase.FETCHING)
            self._defer(Deferred(view.position, view.origin, view, 0))
            self._fetch(now)
        self._serve_fetches()
        self._next_check = now + CHECK_INTERVAL_S
        self._next_compare = now + self._compare_interval_s

    def on_token(self, lease_until: float) -> None:
        """Until then nobody in our view has gone on without us (`TokenVisit`)."""
        self._trusted_until = lease_until

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
        renews = self.phase is Phase.READY
        held = self.requests.held.values()
        leases = min((min(h.valid_until, h.renew_at) if renews else h.valid_until for h in held), default=inf)
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

    # --- in between -------------------------------------------------------------------------------------------------

    def _deliver(self, now: float, place: Deferred, command: Command) -> None:
        kind = command.kind
        self._heard = place.position
        if kind == Kind.COMPARE:
            self._open_comparison(now, place)
        elif kind == Kind.REPORT:
            self._on_report(now, place, command)
        elif self.phase is Phase.READY:
            self._apply(now, place)
        else:
            self.requests.mark_ordered(place.origin, command.session, command.ticket)
            self._defer(place)
        if self.phase is Phase.READY:
            self._position = max(self._position, place.position)
        elif self.phase is Phase.FETCHING:
            self._adopt_if_complete(now)

    def _renew(self, now: float) -> None:
        for held in self.requests.renewals_due(now):
            held.renewing = self.submit(now, Kind.RENEW, held.name, held.ticket, urgent=False)
            held.asked_at = now

    def set_in_use(self, in_use: bool) -> None:
        """Whether somebody is served by what this state says: in a merge that counts more than its history."""
        self._in_use = in_use

    def _announce_standing(self) -> None:
        """0, which leaves the word to others, while this copy is not the group's."""
        standing = self.replica.doublings + IN_USE * self._in_use if self.phase is Phase.READY else 0
        if standing != self._standing:
            self._standing = standing
            self._effects.append(StandingChanged(standing))
