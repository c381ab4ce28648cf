# SPDX-License-Identifier: Apache-2.0
"""Do all members hold the same? Each reports, and whoever differs from what the group holds fetches it.

Also the slow clock: who compares when, the audit of one bucket after the other, leases that have ended.
"""

from ..events import View
from . import limits, rounds
from .catching_up import CatchingUp
from .commands import Command, Kind
from .fetching import Deferred
from .own_copy import Phase


class Comparison(CatchingUp):
    """Rounds of reports over the ordered stream."""

    def _open_comparison(self, now: float, place: Deferred) -> None:
        if self._view is None:
            return
        if self.phase is Phase.COMPARING and self._synchronised:
            self._become_ready(now)
        if self.phase is not Phase.READY:
            self._synchronised = False
            self._deferral.clear()
            self._effects += self.requests.forgotten(now, self.replica)
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
        self._effects += self.requests.answer(now, self.replica.settle(sessions, clock, founder, view.serving))
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
