# SPDX-License-Identifier: Apache-2.0
"""How a copy that is not the group's becomes it: fetched from a member, part by part, while the stream goes on."""

from ..events import View
from . import transfer
from .commands import Kind
from .effects import Replaced, SendPeer
from .own_copy import Copy, Phase


class CatchingUp(Copy):
    """Both ends of a fetch."""

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
        place = self._round(self._view)
        donors = [n for n in self._view.members if n not in self._incomplete and n != self._local]
        request = self._fetcher.request(now, place, donors, self.replica.items.digests())
        if request is None:
            self._multicast(Kind.COMPARE)
        else:
            self._effects.append(SendPeer(*request))

    def _round(self, view: View) -> transfer.RoundId:
        return transfer.RoundId(view.number, self._comparison, view.mark)

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
        """Once our stream has come as far as the donor's copy, and not before: a part of the stream that only the donor
        has may be lost with it, and something else follow here in its place."""
        result = self._fetcher.result()
        if result is None or result[1].position > self._heard:
            return
        buckets, last = result
        lineage = self.replica.lineage
        self._given_up = self._stamp
        try:
            self.replica.adopt(buckets, last.rest)
            whole = self._is_whole(last)
        except (ValueError, TypeError):
            self.counters["malformed_transfers"] += 1
            whole = False
        if not whole:
            self.counters["transfers_differing"] += 1
            self._fetcher.distrust()
            self._fetch(now)
            return
        self._position = last.position
        self.counters["transfers_completed"] += 1
        if lineage:  # an empty copy had nothing to lose
            self._effects.append(Replaced(self.replica.lineage != lineage))
        self._effects += self.requests.reconcile(now, self.replica)
        self._tell_fetched()
        self._become_ready(now)

    def _is_whole(self, last: transfer.Last) -> bool:
        return self.replica.digest() == last.digest

    def _tell_fetched(self) -> None:
        """Carries the clock of the history given up, so that its versions are not used again."""
        self._multicast(Kind.FETCHED)

    def _on_fetch(self, now: float, peer: int, fetch: transfer.Fetch) -> None:
        self._donor.ask(peer, fetch)
        self._serve_fetches()

    def _serve_fetches(self) -> None:
        if self.phase is Phase.READY and self._view is not None:
            place = self._round(self._view)
            self._effects += [SendPeer(*message) for message in self._donor.serve(place, self._position)]

    def _on_ack(self, now: float, peer: int, ack: transfer.Ack) -> None:
        self._effects += [SendPeer(*message) for message in self._donor.acknowledge(peer, ack)]
