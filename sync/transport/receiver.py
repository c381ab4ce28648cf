# SPDX-License-Identifier: Apache-2.0
"""Chunks coming from one peer: authenticated, put together, given out once, acknowledged."""

from collections.abc import Hashable
from math import inf
from typing import Final

from sync.transport import wire
from sync.transport.burst import gather, is_run, is_whole
from sync.transport.effects import Arrived, Asked, Transmit
from sync.transport.keys import Cipher
from sync.transport.reassembly import ReceiveWindow
from sync.transport.session import Local, Session
from sync.transport.wire import Buffer, ChunkHeader, Prefix, Refused, nonce

ACK_DELAY_S: Final = 0.002  # how long an acknowledgement may wait that the sender does not ask for at once


class Receiver:
    """The receiving side of one peer's session."""

    __slots__ = (
        "_ack_address",
        "_ack_link",
        "_local",
        "_repeat_ack",
        "_reports",
        "_session",
        "_unreliable_seen",
        "ack_deadline",
        "ack_due",
        "window",
    )

    def __init__(self, local: Local, session: Session) -> None:
        self._local = local
        self._session = session
        self._ack_link = 0
        self._ack_address: Hashable = None
        self.reset()

    def reset(self) -> None:
        """A new incarnation of the peer: nothing of the old one counts."""
        self.window = ReceiveWindow()
        self._unreliable_seen = 0
        self._reports: dict[int, int] = {}
        self._repeat_ack = False
        self.ack_due = False
        self.ack_deadline = inf

    def on_chunk(
        self, now: float, prefix: Prefix, data: Buffer, link: int, address: Hashable, segment_size: int = 0
    ) -> bool:
        """Take a WHOLE or SEGMENT datagram, or (segment_size > 0) a buffer with consecutive segments of one chunk.

        False when such a buffer holds something else and has to be looked at segment by segment; Refused for every
        reason that `Counters` names.
        """
        session = self._session
        header = wire.decode_chunk(data[:segment_size] if segment_size else data, prefix)
        cipher = session.cipher_of(prefix)
        sequence = prefix.sequence
        payload: Buffer | None = None
        if prefix.kind == wire.WHOLE:
            if segment_size:
                return False
            payload = cipher.open(nonce(wire.WHOLE, prefix.destination, 0, sequence), data, wire.CHUNK_LENGTH)
        else:
            self._check_head(cipher, prefix, header, data)
            if segment_size and not is_run(data, bytes(data[: wire.INDEX_AT]), header):
                return False
        session.keep_cipher(prefix, cipher)
        session.require_bound(now, prefix)
        session.heard_at = now
        self.window.advance(sequence - header.floor_distance, header.message - header.message_floor_distance)
        if self.window.seen(sequence):
            self._local.counters.duplicate += 1
            self._repeat_ack = True  # the one before may have been lost with its path
            self._owe_ack(link, address)
            if header.flags & wire.UNHURRIED:
                self._local.effects.append(Asked(session.node))
            return True
        if payload is not None:
            self._settle(prefix, header, payload, link, address)
        elif segment_size and is_whole(data, header):
            self._take_burst(cipher, prefix, header, data, link, address)
        else:
            self._put(cipher, prefix, header, data, link, address)
        return True

    def on_unreliable(self, now: float, prefix: Prefix, data: Buffer) -> None:
        """Give out a datagram that nobody repeats, unless it is older than one before."""
        session = self._session
        channel = wire.decode_unreliable(data)
        cipher = session.cipher_of(prefix)
        payload = cipher.open(
            nonce(wire.UNRELIABLE, prefix.destination, 0, prefix.sequence), data, wire.PREFIX_LENGTH + 1
        )
        session.keep_cipher(prefix, cipher)
        session.require_bound(now, prefix)
        session.heard_at = now
        if prefix.sequence <= self._unreliable_seen:
            raise Refused("duplicate")
        self._unreliable_seen = prefix.sequence
        self._local.counters.arrived_unreliable += 1
        self._local.effects.append(Arrived(session.node, session.incarnation, channel, payload))

    def acknowledge(self) -> None:
        """Send the acknowledgement that is due, the way the datagrams came."""
        session, window = self._session, self.window
        sequence = session.take_sequence(wire.ACK)
        reports = list(self._reports.items())
        body = wire.encode_ack(session.prefix(wire.ACK, sequence), window.low, window.done, reports)
        sealed = session.seal(wire.ACK, sequence, body)
        self._reports.clear()
        self.ack_due = False
        self.ack_deadline = inf
        self._local.counters.acks += 1
        if session.parallel or self._repeat_ack:
            self._repeat_ack = False
            session.transmit_everywhere(sealed)
        else:
            self._local.effects.append(Transmit(self._ack_link, self._ack_address, sealed, 0))

    def _owe_ack(self, link: int, address: Hashable) -> None:
        self.ack_due = True
        self._ack_link = link
        self._ack_address = address

    def _check_head(self, cipher: Cipher, prefix: Prefix, header: ChunkHeader, data: Buffer) -> None:
        """Authenticate a segment's header, or recognise it as one that has been."""
        chunk = self.window.chunks.get(prefix.sequence)
        if chunk is not None and data[: wire.INDEX_AT] == chunk.head:
            return
        cipher.check(
            nonce(wire.SEGMENT, prefix.destination, header.segment_size, prefix.sequence),
            data[: wire.CHUNK_LENGTH],
            data[wire.CHUNK_LENGTH : wire.INDEX_AT],
        )

    def _take_burst(
        self, cipher: Cipher, prefix: Prefix, header: ChunkHeader, data: Buffer, link: int, address: Hashable
    ) -> None:
        """A whole chunk at once."""
        payload = self._open_body(cipher, prefix, gather(data, header.segment_size))
        self._settle(prefix, header, payload, link, address)

    def _put(
        self, cipher: Cipher, prefix: Prefix, header: ChunkHeader, data: Buffer, link: int, address: Hashable
    ) -> None:
        """Add a segment, or a run of them; settle the chunk once it is complete and authentic."""
        head = bytes(data[: wire.INDEX_AT])
        chunk = self.window.partial(prefix.sequence, head, header)
        if chunk.head != head:
            raise Refused("duplicate")
        if not chunk.put(data):
            last = (len(data) - 1) // header.segment_size * header.segment_size
            if data[last + wire.FLAGS_AT] & wire.ASK and len(self._reports) < wire.REPORT_COUNT_MAX:
                self._reports[prefix.sequence] = chunk.held
                self._owe_ack(link, address)
            return
        try:
            payload = self._open_body(cipher, prefix, chunk.sealed)
        except Refused:
            chunk.clear()
            raise Refused("damaged_chunk") from None
        self._settle(prefix, header, payload, link, address)

    @staticmethod
    def _open_body(cipher: Cipher, prefix: Prefix, sealed: Buffer) -> Buffer:
        return cipher.open_body(nonce(wire.CHUNK_BODY, prefix.destination, 0, prefix.sequence), sealed)

    def _settle(self, prefix: Prefix, header: ChunkHeader, payload: Buffer, link: int, address: Hashable) -> None:
        message = self.window.accept(prefix.sequence, header, payload)
        self._reports.pop(prefix.sequence, None)
        if header.flags & wire.PROMPT:
            self._owe_ack(link, address)
        elif not header.flags & wire.UNHURRIED:
            self.ack_deadline = min(self.ack_deadline, self._session.heard_at + ACK_DELAY_S)
            self._ack_link, self._ack_address = link, address
        if message is not None:
            self._local.counters.arrived += 1
            self._local.effects.append(Arrived(self._session.node, prefix.source_incarnation, header.channel, message))
