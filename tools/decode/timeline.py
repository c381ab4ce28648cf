# SPDX-License-Identifier: Apache-2.0
"""Datagrams of the transport, put together again by an onlooker, as lines of a timeline.

An onlooker has no part in the sessions: it believes the headers, and checks tags only when it is given the keys.
Without encryption everything is readable without them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sync.ring.messages import CHANNEL_TOKEN
from sync.ring.token import Token
from sync.transport import wire
from sync.transport.keys import Cipher, KeyRing, derive_cipher
from sync.transport.wire import ChunkHeader, Prefix, Refused
from tools.decode.describe import describe, describe_token, understand

MESSAGES_MAX: Final = 256  # under assembly; the oldest is forgotten beyond that
SEEN_MAX: Final = 65536  # chunks remembered to tell repetitions
ChunkName = tuple[int, int, int, int]  # source, its incarnation, destination, sequence
DatagramName = tuple[int, int, int, int, int]  # and the kind


class Line(NamedTuple):
    """One line: seconds as captured, what it is about, and whether it is detail (acknowledgements, repetitions)."""

    time: float
    text: str
    detail: bool = False


@dataclass
class Assembly:
    """A message as far as it has been seen."""

    data: bytearray
    chunks: dict[int, int] = field(default_factory=dict)  # offset -> length of complete chunks

    @property
    def complete(self) -> bool:
        return sum(self.chunks.values()) == len(self.data)


class Timeline:
    """Feed captured UDP payloads, get lines."""

    def __init__(
        self,
        *,
        names: dict[int, str] | None = None,
        cluster: str | None = None,
        keys: KeyRing | None = None,
        gap_s: float = 0.1,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._names = names or {}
        self._cluster = cluster
        self._number = wire.cluster_number(cluster) if cluster is not None else None
        self._keys = keys
        self._gap_s = gap_s
        self._messages: dict[tuple[int, int, int, int], Assembly] = {}
        self._slices: dict[ChunkName, dict[int, bytes]] = {}
        self._seen: dict[ChunkName | DatagramName, None] = {}
        self._ciphers: dict[tuple[int, int, int, bool], Cipher] = {}
        self._token_at: float | None = None
        self._ring: list[int] = []

    def feed(self, time: float, data: bytes) -> Iterator[Line]:
        """Lines for one UDP payload, which may be a whole burst as the sender's kernel shows it."""
        try:
            prefix = wire.decode_prefix(data)
        except Refused as refused:
            self.counts[f"refused: {refused.reason}"] += 1
            return
        if self._number not in (None, prefix.cluster):
            self.counts["other cluster"] += 1
            return
        if prefix.kind == wire.SEGMENT and len(data) > (size := int.from_bytes(data[42:44], "big")) > 0:
            for at in range(0, len(data), size):
                yield from self._datagram(time, prefix, data[at : at + size])
        else:
            yield from self._datagram(time, prefix, data)

    def _datagram(self, time: float, prefix: Prefix, data: bytes) -> Iterator[Line]:
        try:
            if prefix.kind in (wire.WHOLE, wire.SEGMENT):
                yield from self._chunk(time, prefix, data)
            elif self._again(prefix):
                yield self._line(time, prefix, f"datagram {prefix.sequence} again", detail=True)
            elif prefix.kind == wire.UNRELIABLE:
                payload = self._open(prefix, data, wire.PREFIX_LENGTH + 1)
                yield self._line(time, prefix, describe(wire.decode_unreliable(data), payload))
            elif prefix.kind == wire.HELLO:
                challenge, echo = wire.decode_hello(data)
                what = " and ".join(["answers"] * bool(echo) + ["asks"] * bool(challenge))
                yield self._line(time, prefix, f"hello: {what} (incarnation {prefix.source_incarnation:#x})")
            else:
                ack = wire.decode_ack(data)
                more = f" and {ack.done.bit_count()} more" if ack.done else ""
                holes = "".join(f", of {sequence} holds {held:b}" for sequence, held in ack.reports)
                yield self._line(time, prefix, f"ack below {ack.low}{more}{holes}", detail=True)
        except Refused as refused:
            self.counts[f"refused: {refused.reason}"] += 1
            yield self._line(time, prefix, f"REFUSED: {refused.reason}")

    def _chunk(self, time: float, prefix: Prefix, data: bytes) -> Iterator[Line]:
        header = wire.decode_chunk(data, prefix)
        name = (prefix.source, prefix.source_incarnation, prefix.destination, prefix.sequence)
        if prefix.kind == wire.SEGMENT:
            if name in self._seen:
                self.counts["segment again"] += 1
                return
            payload = self._segment(name, prefix, header, data)
            if payload is None:
                return
        elif name in self._seen:
            self.counts["chunk again"] += 1
            yield self._line(time, prefix, f"chunk {prefix.sequence} again", detail=True)
            return
        else:
            payload = self._open(prefix, data, wire.CHUNK_LENGTH)
        self._remember(name)
        message = self._join(prefix, header, payload)
        if message is not None:
            yield from self._message(time, prefix, header.channel, message)

    def _again(self, prefix: Prefix) -> bool:
        """Whether a datagram that is sent once is seen twice: over two paths, or on two interfaces."""
        name = (prefix.source, prefix.source_incarnation, prefix.destination, prefix.sequence, prefix.kind)
        known = name in self._seen
        self._remember(name)
        return known

    def _remember(self, name: ChunkName | DatagramName) -> None:
        self._seen[name] = None
        if len(self._seen) > SEEN_MAX:
            self._seen.pop(next(iter(self._seen)))

    def _segment(self, name: ChunkName, prefix: Prefix, header: ChunkHeader, data: bytes) -> bytes | None:
        """The chunk's payload once all slices have been seen."""
        slices = self._slices.setdefault(name, {})
        slices[data[wire.INDEX_AT]] = data[wire.SEGMENT_OVERHEAD :]
        if len(self._slices) > MESSAGES_MAX:
            self._slices.pop(next(iter(self._slices)))
        count = wire.segment_count(header.length, header.segment_size)
        if len(slices) < count:
            return None
        self._slices.pop(name, None)
        sealed = b"".join(slices[index] for index in range(count))
        if self._keys is None or len(sealed) != header.length + wire.TAG_LENGTH:
            return sealed[: header.length]
        nonce = wire.nonce(wire.CHUNK_BODY, prefix.destination, 0, prefix.sequence)
        try:
            return bytes(self._cipher(prefix, encrypt=False).open_body(nonce, sealed))
        except Refused:
            return bytes(self._cipher(prefix, encrypt=True).open_body(nonce, sealed))

    def _join(self, prefix: Prefix, header: ChunkHeader, payload: bytes) -> bytes | None:
        if header.length == header.message_length:
            return payload
        name = (prefix.source, prefix.source_incarnation, prefix.destination, header.message)
        assembly = self._messages.get(name)
        if assembly is None or len(assembly.data) != header.message_length:
            if len(self._messages) >= MESSAGES_MAX:
                self._messages.pop(next(iter(self._messages)))
            assembly = self._messages[name] = Assembly(bytearray(header.message_length))
        assembly.data[header.offset : header.offset + header.length] = payload
        assembly.chunks[header.offset] = header.length
        if not assembly.complete:
            return None
        del self._messages[name]
        return bytes(assembly.data)

    def _message(self, time: float, prefix: Prefix, channel: int, payload: bytes) -> Iterator[Line]:
        token = understand(payload) if channel == CHANNEL_TOKEN else None
        if not isinstance(token, Token):
            yield self._line(time, prefix, describe(channel, payload))
            return
        if self._token_at is not None and time - self._token_at > self._gap_s:
            self.counts["gaps"] += 1
            yield Line(time, f"--- {time - self._token_at:.3f} s without a token ---")
        self._token_at = time
        ring = [member.id for member in token.members]
        if sorted(ring) != sorted(self._ring):
            yield Line(time, f"=== ring: {' '.join(self._name(node) for node in ring)} ===")
        self._ring = ring
        yield self._line(time, prefix, describe_token(token))

    def _open(self, prefix: Prefix, data: bytes, header_length: int) -> bytes:
        """The payload of a datagram that carries one; verified and decrypted if there are keys."""
        if self._keys is None:
            return data[header_length : -wire.TAG_LENGTH]
        nonce = wire.nonce(prefix.kind, prefix.destination, 0, prefix.sequence)
        try:
            return self._cipher(prefix, encrypt=False).open(nonce, data, header_length)
        except Refused:
            return self._cipher(prefix, encrypt=True).open(nonce, data, header_length)

    def _cipher(self, prefix: Prefix, *, encrypt: bool) -> Cipher:
        assert self._keys is not None
        name = (prefix.source, prefix.source_incarnation, prefix.key_id, encrypt)
        if name not in self._ciphers:
            key = self._keys.find(prefix.key_id)
            self._ciphers[name] = derive_cipher(
                key, self._cluster or "", prefix.source, prefix.source_incarnation, encrypt=encrypt
            )
        return self._ciphers[name]

    def _line(self, time: float, prefix: Prefix, text: str, *, detail: bool = False) -> Line:
        self.counts[text.split(" ", 1)[0].rstrip(":")] += 1
        return Line(time, f"{self._name(prefix.source)} → {self._name(prefix.destination)}  {text}", detail)

    def _name(self, node: int) -> str:
        return self._names.get(node, str(node))
