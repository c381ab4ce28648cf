# SPDX-License-Identifier: Apache-2.0
"""Messages on their way to one peer: sealing, sending, sending again, and giving up."""

from collections.abc import Hashable
from math import inf

from sync.transport import wire
from sync.transport.burst import lay_out, select
from sync.transport.effects import ATTEMPTS_MIN, Delivered, Reason, Undelivered
from sync.transport.session import Local, Session
from sync.transport.window import (
    ANSWER_PART,
    LOSSY_S,
    PROMPT_EVERY,
    REORDER_CHUNKS,
    Chunk,
    Congestion,
    Message,
    RoundTrip,
    SendWindow,
)
from sync.transport.wire import CHUNK, SEGMENT, VERSION, WHOLE, Acknowledgement, nonce


class Sender:
    """The sending side towards one peer. `timer` is never later than the next thing to do."""

    __slots__ = ("_local", "_lossy_until", "_session", "congestion", "round_trip", "timer", "window")

    def __init__(self, local: Local, session: Session) -> None:
        self._local = local
        self._session = session
        self.window = SendWindow()
        self.round_trip = RoundTrip(*session.rto_range())
        self.congestion = Congestion(local.config.window_bytes)
        self.timer = inf
        self._lossy_until = -inf

    def submit(self, now: float, message: Message) -> None:
        """Send, or queue, a message."""
        message.submitted_at = now
        message.greetings = self._session.greetings
        limit = self._session.datagram_limit(now)
        self.window.enqueue(message, small=message.length <= limit - wire.WHOLE_OVERHEAD)
        if self._session.incarnation:
            self.pump(now)
        else:
            self._session.greet(now)
            self._session.greet_deadline = min(self._session.greet_deadline, self._next_to_give_up(now))

    def pump(self, now: float) -> None:
        """Send chunks while the windows have room."""
        window = self.window
        while (message := window.next_message()) and window.has_room(self.congestion.window):
            chunk = window.open_chunk(message, wire.chunk_length_max(self._session.datagram_limit(now)))
            if message.offset == message.length:
                window.dequeue_cut(message)
            chunk.prompt = (
                chunk.sequence % PROMPT_EVERY == 0 or not window.queued or not window.has_room(self.congestion.window)
            )
            chunk.unhurried = message.patience > 0 and chunk.length == message.length and now >= self._lossy_until
            if message.first_sent_at == inf:
                message.first_sent_at = now
            self._lay_out(chunk, self._session.datagram_limit(now))
            self._send(now, chunk)

    def on_ack(self, now: float, ack: Acknowledgement, link: int, address: Hashable) -> None:
        """Settle what an authentic acknowledgement of this session covers."""
        window = self.window
        if ack.low + ack.done.bit_length() > window.next_sequence:
            self._local.counters.impossible_ack += 1
            return
        covered = window.settled(ack.low, ack.done)
        for chunk in covered:
            self._settle(now, chunk)
        if covered:
            newest = covered[-1]
            if newest.attempts == 1:
                self.round_trip.sample(now - newest.sent_at)
            elif not self._session.parallel:
                self._session.prefer(link, address)
            self._resend_overtaken(now, newest)
        for sequence, held in ack.reports:
            self._on_report(now, sequence, held)
        if window.queued:
            self.pump(now)
        if not window.in_flight:
            self.timer = inf

    def expire(self, now: float) -> None:
        """Send again, or give up, what has waited too long."""
        for chunk in list(self.window.in_flight.values()):
            if chunk.deadline <= now and chunk.sequence in self.window.in_flight:
                self._overdue(now, chunk)
        self.timer = min((chunk.deadline for chunk in self.window.in_flight.values()), default=inf)
        if self.window.queued and self._session.incarnation:
            self.pump(now)  # what was given back or cancelled has made room

    def expire_waiting(self, now: float) -> None:
        """Nobody has answered the greeting: give back what has waited for it too long, greet again for the rest."""
        session = self._session
        for message in self.window.waiting():
            greeted_in_vain = session.greetings - message.greetings >= ATTEMPTS_MIN * session.rotation
            if greeted_in_vain and now >= message.submitted_at + self._local.config.failure_after_s:
                self._give_back(message, Reason.UNREACHABLE)
        if self.window.queued:
            session.seek(now)
            session.greet_again(now)
            session.greet_deadline = min(session.greet_deadline, self._next_to_give_up(now))
        else:
            session.greet_deadline = inf

    def _next_to_give_up(self, now: float) -> float:
        """When the message that has waited longest will have waited too long; infinity if it has already."""
        since = self.window.waiting_since()
        give_up_at = since + self._local.config.failure_after_s
        return give_up_at if give_up_at > now else inf

    def hasten(self, link: int, address: Hashable) -> None:
        """The network says nobody listens there. Anyone can forge that: wait half as long, prove it all the same."""
        for chunk in self.window.in_flight.values():
            path = self._session.path(chunk.attempts)
            if path.link == link and path.address == address:
                chunk.deadline = min(chunk.deadline, chunk.sent_at + self.round_trip.timeout / 2)
                self.timer = min(self.timer, chunk.deadline)

    def begin_anew(self, now: float) -> None:
        """Another path is the first one: what is under way goes over it now, instead of when its time has run out."""
        rotation = self._session.rotation
        for chunk in list(self.window.in_flight.values()):
            chunk.attempts += -chunk.attempts % rotation
            self._resend(now, chunk)

    def ask(self, now: float, handle: int) -> None:
        """Do not wait any longer before the first repetition of this message."""
        for chunk in self.window.in_flight.values():
            if chunk.message.handle == handle and chunk.unhurried and chunk.attempts == 1:
                self._resend(now, chunk)
                return

    def cancel(self, handle: int) -> bool:
        """Forget a message; False when it is not under way here."""
        if not self.window.live and not self.window.queued:
            return False
        for message in self.window.unfinished(queued=True):
            if message.handle == handle:
                self.window.drop(message)
                if self.window.queued:
                    self.timer = -inf  # there may be room now
                elif not self.window.in_flight:
                    self.timer = inf
                return True
        return False

    def fail(self, reason: Reason, *, queued: bool) -> None:
        """Give back every message under way, and with `queued` those that wait."""
        for message in self.window.unfinished(queued=queued):
            self._give_back(message, reason)

    def _settle(self, now: float, chunk: Chunk) -> None:
        self.congestion.acknowledged(chunk.length)
        chunk.message.progress_at = now
        if chunk.cut_smaller:
            self._session.reduce(now)
        if self.window.close_chunk(chunk):
            self._local.counters.delivered += 1
            self._local.effects.append(Delivered(chunk.message.handle, self._session.node))

    def _give_back(self, message: Message, reason: Reason) -> None:
        self.window.drop(message)
        self._local.counters.undelivered += 1
        self._local.effects.append(Undelivered(message.handle, self._session.node, reason))

    def _overdue(self, now: float, chunk: Chunk) -> None:
        session = self._session
        if now >= self._give_up_at(chunk) and chunk.attempts >= ATTEMPTS_MIN * session.rotation:
            self._give_back(chunk.message, Reason.UNREACHABLE)
            return
        if chunk.attempts >= ATTEMPTS_MIN * session.rotation and self._size(chunk) > wire.DATAGRAM_MIN:
            self._local.counters.cuts += 1
            chunk.cut_smaller = True
            self._lay_out(chunk, wire.DATAGRAM_MIN)
        self.congestion.lost(now, self.round_trip.smoothed)
        session.seek(now)
        self._resend(now, chunk)

    def _on_report(self, now: float, sequence: int, held: int) -> None:
        """The peer lacks some segments of a chunk. Only progress earns an answer before the clock's."""
        chunk = self.window.in_flight.get(sequence)
        if chunk is None or chunk.segment_size == 0:
            return
        full = (1 << wire.segment_count(chunk.length, chunk.segment_size)) - 1
        missing = full & ~held
        if missing:
            chunk.missing = missing
            # Less than ever before: a chunk that is damaged again and again must not live for ever.
            if missing.bit_count() < chunk.least_missing:
                chunk.least_missing = missing.bit_count()
                chunk.message.progress_at = now
                chunk.attempts = 0
                self._local.counters.fast_retransmissions += 1
                self.congestion.lost(now, self.round_trip.smoothed)
                self._resend(now, chunk)

    def _resend_overtaken(self, now: float, newest: Chunk) -> None:
        for chunk in list(self.window.in_flight.values()):
            if chunk.sequence + REORDER_CHUNKS > newest.sequence:
                return
            if chunk.attempts == 1 and not chunk.retransmitted and chunk.sent_at <= newest.sent_at:
                self._local.counters.fast_retransmissions += 1
                self.congestion.lost(now, self.round_trip.smoothed)
                self._resend(now, chunk)

    def _resend(self, now: float, chunk: Chunk) -> None:
        chunk.retransmitted = True
        if chunk.unhurried and chunk.attempts == 1:
            chunk.asked_at = now
        if chunk.attempts > 1 or not chunk.unhurried:  # else it is what was waited for that came late
            self._lossy_until = now + LOSSY_S
        self._local.counters.retransmissions += 1
        self._send(now, chunk)

    def _send(self, now: float, chunk: Chunk) -> None:
        chunk.attempts += 1
        chunk.sent_at = now
        if chunk.first_sent_at == inf:
            chunk.first_sent_at = now
        wait = self.round_trip.backed_off(chunk.attempts)
        if chunk.unhurried and chunk.attempts == 1:
            wait = max(wait, chunk.message.patience)
        chunk.deadline = now + wait
        give_up_at = self._give_up_at(chunk)
        if now < give_up_at < chunk.deadline:
            chunk.deadline = give_up_at
        if chunk.deadline < self.timer:
            self.timer = chunk.deadline
        data = chunk.data
        if chunk.retransmitted and chunk.segment_size:
            data = select(data, chunk.segment_size, chunk.missing)
        self._session.transmit(data, chunk.segment_size, chunk.attempts)

    def _give_up_at(self, chunk: Chunk) -> float:
        """When this chunk, unacknowledged, means that its message cannot be delivered."""
        budget = self._local.config.failure_after_s
        since = max(chunk.first_sent_at, chunk.message.progress_at)
        return max(since + budget, chunk.asked_at + ANSWER_PART * budget)

    @staticmethod
    def _size(chunk: Chunk) -> int:
        return chunk.segment_size or len(chunk.data)

    def _lay_out(self, chunk: Chunk, datagram_limit: int) -> None:
        """Seal a chunk for datagrams of at most this size; once more only for smaller ones: the cut is in the nonce."""
        session, message = self._session, chunk.message
        whole = chunk.length + wire.WHOLE_OVERHEAD <= datagram_limit
        segment_size = 0 if whole else datagram_limit
        header = self._header(chunk, WHOLE if whole else SEGMENT, segment_size)
        payload = message.payload
        if chunk.length != message.length:
            payload = payload[chunk.offset : chunk.offset + chunk.length]
        if whole:
            chunk.data = session.seal(WHOLE, chunk.sequence, header, payload)
        else:
            cipher = self._local.cipher
            head = header + cipher.tag(nonce(SEGMENT, session.node, segment_size, chunk.sequence), header)
            body, tag = cipher.seal_body(nonce(wire.CHUNK_BODY, session.node, 0, chunk.sequence), payload)
            chunk.data = lay_out(head, body, tag, segment_size)
            chunk.least_missing = wire.segment_count(chunk.length, segment_size)
            chunk.missing = (1 << chunk.least_missing) - 1
        chunk.segment_size = segment_size

    def _header(self, chunk: Chunk, kind: int, segment_size: int) -> bytes:
        local, session, message, window = self._local, self._session, chunk.message, self.window
        return CHUNK.pack(
            VERSION,
            kind,
            local.node,
            session.node,
            local.cluster,
            local.key_id,
            local.incarnation,
            session.incarnation,
            chunk.sequence,
            chunk.sequence - window.floor,
            message.number - window.message_floor,
            message.channel,
            wire.UNHURRIED if chunk.unhurried else wire.PROMPT if chunk.prompt else 0,
            segment_size,
            chunk.length,
            message.number,
            message.length,
            chunk.offset,
        )
