# SPDX-License-Identifier: Apache-2.0
"""911, joining, discovery: everything a node says outside of the token.

Thesis section 3.5 (pseudo-code events 3, 5, 7 and 8) and 3.7.3; the changes are described in docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from sync.config import RingConfig
from sync.events import Reason
from sync.ring.discovery import Joining, Newcomer
from sync.ring.lineage import NO_EPOCH
from sync.ring.membership import TokenEvent, TokenState
from sync.ring.messages import CHANNEL_CONTROL, Answer, Beacon, Call, Refuse, Verdict, encode
from sync.ring.recovery import Calling, judge
from sync.ring.regeneration import Ring
from sync.ring.token import Member

CALL_IDS = 1 << 32


class Admission:
    """Decides who is let in, who may regenerate, and when to ask for either."""

    def __init__(self, config: RingConfig, ring: Ring, now: float) -> None:
        self._config = config
        self._timers = config.timers
        self._ring = ring
        self._calling: Calling | None = None
        self._joining: Joining | None = Joining(config, now)
        self._call_id = 0
        self.starving_until = now

    # ------------------------------------------------------------------------------------------------------ timers

    def deadline(self) -> float:
        ring = self._ring
        state = ring.states.token
        if state is TokenState.OUT:
            return inf
        nearest = self.starving_until if state is TokenState.STARVING else ring.discovery.next_beacon
        if self._joining is not None and state is TokenState.STARVING:
            nearest = min(nearest, self._joining.until)
        if ring.parked is not None:
            nearest = min(nearest, ring.parked.until)
        return nearest

    def tick(self, now: float) -> None:
        ring = self._ring
        state = ring.states.token
        ring.expire_parked(now)
        if state is TokenState.HUNGRY and now >= ring.hungry_until and ring.passed_acknowledged:
            self._starve(now, TokenEvent.HUNGRY_TIMEOUT, Reason.HUNGRY_TIMEOUT)
        elif state is TokenState.STARVING:
            if self._joining is not None and now >= self._joining.until:
                self._joining = None
                self._drop_call()
                ring.alone(now)
            elif now >= self.starving_until:
                ring.trace(Reason.STARVING_TIMEOUT, 0)
                self._call(now)
        elif state is not TokenState.OUT and now >= ring.discovery.next_beacon:
            ring.discovery.next_beacon = now + self._timers.beacon
            self._send_beacons(now)

    def fed(self) -> None:
        """The node has the token: no need to call, whatever happened before."""
        self._drop_call()
        self._joining = None

    def join(self, now: float) -> None:
        """Begin (again) to ask for admission."""
        self._ring.revoke_lease()
        self._drop_call()
        self._joining = Joining(self._config, now)
        self._ring.joining = True
        self.starving_until = now
        self._ring.adopt_parked(now)
        if self._ring.eating or not self._ring.joining:
            self.fed()

    def leave(self) -> None:
        self._drop_call()
        self._joining = None

    # ----------------------------------------------------------------------------------------------------- calling

    def lost_sight(self, now: float, handle: int) -> bool:
        """An idle token whose successor is dead, but may have handed it on (True): ask the rest before regenerating."""
        peer = self._ring.lost_sight_of(handle)
        if peer is not None:
            self._starve(now, TokenEvent.HUNGRY_TIMEOUT, Reason.PEER_UNREACHABLE, peer)
        return peer is not None

    def _starve(self, now: float, event: TokenEvent, reason: Reason, dead: int = 0) -> None:
        ring = self._ring
        ring.trace(reason, dead)
        ring.states.on_token(event)
        ring.hungry_until = inf
        self._call(now, dead)

    def _call(self, now: float, dead: int = 0) -> None:
        self._drop_call()
        self._call_id = (self._call_id + 1) % CALL_IDS
        self.starving_until = now + self._timers.starving
        if self._joining is not None:
            self._ask_in(now, self._ring.eligible)
        else:
            self._ask_for_token(now, dead)

    def _ask_in(self, now: float, peers: Iterable[int]) -> None:
        ring = self._ring
        payload = b"".join(encode(Call(self._call_id, False, False, NO_EPOCH, 0, ring.view_number, 0)))
        for peer in peers:
            ring.link.seek(now, peer)
            ring.link.send_unreliable(now, peer, CHANNEL_CONTROL, payload)

    def _ask_for_token(self, now: float, dead: int) -> None:
        """``dead``: a member that need not be asked, it has just been tried for a failure budget."""
        ring = self._ring
        copy = ring.token
        assert copy is not None
        others = [member.id for member in copy.members if member.id != ring.local]
        calling = self._calling = Calling(self._call_id, others)
        for peer in others:
            if peer == dead:
                calling.failed(peer)
            else:
                self._send_call(now, calling, peer)
        self._check_granted(now)

    def _send_call(self, now: float, calling: Calling, peer: int) -> None:
        ring, copy = self._ring, self._ring.token
        assert copy is not None
        call = Call(calling.id, True, True, copy.epoch, copy.hop, ring.view_number, len(copy.members))
        calling.handles[ring.control(now, peer, call)] = peer

    def _drop_call(self) -> None:
        if self._calling is not None:
            for handle in self._calling.handles:
                self._ring.link.cancel(handle)
        self._calling = None

    def undelivered(self, now: float, handle: int, restarted: bool) -> None:
        """``restarted``: it went to an incarnation that is gone; the one that is there now must be asked too."""
        self._ring.discovery.unacknowledged(handle)
        calling = self._calling
        if calling is None or (peer := calling.handles.pop(handle, None)) is None:
            return
        if restarted:
            self._send_call(now, calling, peer)
        else:
            calling.failed(peer)
        self._check_granted(now)

    def delivered(self, now: float, handle: int) -> None:
        ring = self._ring
        if self._calling is not None:
            self._calling.handles.pop(handle, None)
        if ring.discovery.acknowledged(handle, now):
            ring.ask_haste(now)

    def _check_granted(self, now: float) -> None:
        calling, ring = self._calling, self._ring
        if calling is None or not calling.granted or ring.states.token is not TokenState.STARVING:
            return
        ring.trace(Reason.CALL_GRANTED, 0)
        self._drop_call()
        ring.regenerate(now, calling.refused)

    # --------------------------------------------------------------------------------------------------- answering

    def on_call(self, now: float, peer: int, incarnation: int, call: Call) -> None:
        ring = self._ring
        if ring.out or ring.leaving_done:
            verdict = Verdict.LEFT_OUT
        elif ring.parked is not None and ring.parked.token.epoch == call.epoch:
            verdict = Verdict.NO
        elif ring.joining:
            verdict = Verdict.LEFT_OUT if call.member else Verdict.STARTING
        else:
            verdict = judge(call, peer, incarnation, ring.local, ring.token, ring.token_lives)
        handle = ring.control(now, peer, Answer(call.id, verdict))
        if verdict is Verdict.LEFT_OUT:
            ring.defected([Member(peer, incarnation, 0)])
        if verdict is Verdict.REJECTED:
            self._offer(now, handle, Newcomer(peer, incarnation, call.view_number, now))
        elif verdict is Verdict.NO and call.starved and self._must_call_too():
            self._starve(now, TokenEvent.ALARM, Reason.ALARMED)

    def _must_call_too(self) -> bool:
        """The caller waits in vain and our copy is newer: only we, or someone newer still, can help it."""
        ring = self._ring
        return ring.states.token is TokenState.HUNGRY and not ring.token_lives and ring.parked is None

    def _offer(self, now: float, handle: int, newcomer: Newcomer) -> None:
        discovery = self._ring.discovery
        if discovery.invitable(newcomer.node, now):
            discovery.offered(handle, newcomer)
        else:
            self._ring.trace(Reason.PEER_DAMPED, newcomer.node)

    def on_answer(self, now: float, peer: int, answer: Answer) -> None:
        ring = self._ring
        verdict = answer.verdict
        if verdict is Verdict.WELCOME:
            return
        if ring.states.token is not TokenState.STARVING or answer.id != self._call_id:
            ring.trace(Reason.STALE_MESSAGE, peer)
        elif self._joining is not None:
            self._joining.answered(now, verdict, peer < ring.local)
        elif self._calling is None:
            ring.trace(Reason.STALE_MESSAGE, peer)
        elif verdict is Verdict.NO:
            self._vetoed(now)
        elif verdict is Verdict.REJECTED:
            ring.trace(Reason.CALL_REJECTED, peer)
            ring.states.on_token(TokenEvent.REJECT)
            self.join(now)
            # The one who answered has noted the request; ask the others only if it does not come back on it.
            self.starving_until = now + self._timers.starving
        else:
            self._calling.answered(peer, verdict)
            self._check_granted(now)

    def _vetoed(self, now: float) -> None:
        ring = self._ring
        ring.trace(Reason.CALL_VETOED, 0)
        self._drop_call()
        ring.states.on_token(TokenEvent.VETO)
        members = len(ring.token.members) if ring.token is not None else 1
        ring.hungry_until = now + self._timers.hungry + members * self._timers.hungry_per_member

    def on_refuse(self, now: float, peer: int, refuse: Refuse) -> None:
        if self._ring.refused(now, peer, refuse):
            self.join(now)

    # ------------------------------------------------------------------------------------------------------ beacons

    def _send_beacons(self, now: float) -> None:
        ring = self._ring
        token = ring.token
        if token is None or ring.joining:
            return
        absent = ring.eligible - {member.id for member in token.members}
        if absent:
            payload = b"".join(encode(Beacon(token.rank(), ring.view_number)))
            for peer in absent:
                ring.link.seek(now, peer)
                ring.link.send_unreliable(now, peer, CHANNEL_CONTROL, payload)

    def on_beacon(self, now: float, peer: int, incarnation: int, beacon: Beacon) -> None:
        ring = self._ring
        token = ring.token
        if ring.joining and self._joining is not None and ring.states.token is TokenState.STARVING:
            self._ask_in(now, [peer])
        if ring.joining or token is None or ring.states.token is TokenState.STARVING or ring.leaving:
            return
        entry = token.member(peer)
        if entry is not None and entry.incarnation == incarnation:
            return
        if token.rank() > beacon.rank and ring.discovery.invitable(peer, now):
            handle = ring.control(now, peer, Answer(0, Verdict.WELCOME))
            ring.discovery.offered(handle, Newcomer(peer, incarnation, beacon.view_number, now))
