# SPDX-License-Identifier: Apache-2.0
"""Mutated, forged and replayed datagrams against the transport: `python -m tests.fuzz.datagrams --count 1000000`.

Two victims. One sees genuine traffic and, between it, what an outsider without the key can make of it: changed, cut,
joined and repeated datagrams. It must give out the genuine messages, each once, and nothing else. The other one sees
what an insider with the key and a broken program can make: the same mutations, sealed correctly. It may give out
anything, but neither crash, nor hang, nor hold more than its bounds allow.
"""

import argparse
import random
import sys
import time
from collections import deque
from pathlib import Path as FilePath
from random import Random

from sync.transport import (
    Arrived,
    Delivered,
    KeyRing,
    Path,
    PeerConfig,
    Reason,
    Transmit,
    Transport,
    TransportConfig,
    Undelivered,
    wire,
)
from sync.transport.burst import lay_out
from sync.transport.keys import Cipher, derive_cipher
from sync.transport.reassembly import PARTIAL_BYTES_MAX, PARTIAL_CHUNKS_MAX, PARTIAL_MESSAGES_MAX
from sync.transport.wire import Refused

KEYS = KeyRing([bytes(range(32))])
POOL_MAX = 400  # recorded datagrams to mutate
LIFE_MAX = 500  # mutations between restarts of a node
SLOW_S = 0.1  # of processor time; nothing that arrives may ever cost more
RESIDENT_GROWTH_MAX = 256 << 20  # the insider's reassembly bound for one peer is 128 MiB


class Pair:
    """An honest node 1 and a victim, node 2, with a perfect wire between them."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now = 1.0
        self.pool: deque[tuple[int, bytes]] = deque(maxlen=POOL_MAX)  # (destination, datagram)
        self.expected: dict[bytes, int] = {}  # payload -> times arrived
        self.nodes: dict[int, Transport] = {}
        self.messages = 0
        self.open: set[tuple[int, int]] = set()  # (sender, handle) of messages without a notice
        self.unreachable = 0
        self._incarnation = 100
        for node in (1, 2):
            self.restart(node)

    def restart(self, node: int) -> None:
        self.open = {name for name in self.open if name[0] != node}
        self._incarnation += 1
        other = 3 - node
        self.nodes[node] = Transport(
            TransportConfig("fuzz", KEYS),
            local=node,
            incarnation=self._incarnation,
            rng=self.rng,
            peers={other: PeerConfig((Path(0, other, self.rng.choice((1232, 1472))),))},
        )

    def talk(self) -> None:
        """One genuine message either way, reliable or not, and everything that follows from it."""
        source = self.rng.choice((1, 2))
        self.messages += 1
        payload = b"%d:" % self.messages + self.rng.randbytes(self.rng.choice((0, 20, 1300, 3000, 9000)))
        self.expected[payload] = 0
        if self.rng.random() < 0.2:
            self.nodes[source].send_unreliable(self.now, 3 - source, 9, payload[:1000])
            self.expected[payload[:1000]] = 0
        else:
            self.open.add((source, self.nodes[source].send(self.now, 3 - source, 7, payload)))
        self.exchange()

    def settle(self) -> None:
        """Let time pass until every message has its notice."""
        for _ in range(20):
            if not self.open:
                return
            self.now += 0.005
            for transport in self.nodes.values():
                transport.tick(self.now)
            self.exchange()
        raise AssertionError(f"no notice for {self.open}")

    def exchange(self) -> None:
        """Carry datagrams to and fro until both are silent."""
        busy = True
        while busy:
            busy = False
            for node, transport in self.nodes.items():
                for effect in transport.take():
                    if type(effect) is Transmit:
                        busy = True
                        self._carry(3 - node, bytes(effect.data), effect.segment_size)
                    elif type(effect) is Arrived:
                        self._arrived(bytes(effect.payload))
                    elif type(effect) is Delivered:
                        self.open.discard((node, effect.handle))
                    elif type(effect) is Undelivered:
                        self.open.discard((node, effect.handle))
                        self.unreachable += effect.reason is Reason.UNREACHABLE

    def check_arrivals(self) -> None:
        wrong = {payload[:20]: count for payload, count in self.expected.items() if count > 1}
        assert not wrong, f"given out more than once: {wrong}"

    def _carry(self, destination: int, data: bytes, segment_size: int) -> None:
        step = segment_size or len(data)
        for at in range(0, len(data), step):
            datagram = data[at : at + step]
            self.pool.append((destination, datagram))
            self.nodes[destination].receive(self.now, 0, 3 - destination, datagram)

    def _arrived(self, payload: bytes) -> None:
        assert payload in self.expected, f"never sent: {payload[:40]!r}"
        self.expected[payload] += 1


def mutate(rng: Random, data: bytes, other: bytes) -> bytes:
    """One to three changes of a datagram."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        choice = rng.randrange(7)
        at = rng.randrange(len(out) or 1)
        if choice == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif choice == 1 and out:
            field = min(rng.choice((0, 1, 2, 3, 4, 8, 10, 18, 26, 34, 36, 40, 42, 44, 46, 54, 58)), len(out) - 1)
            size = rng.choice((1, 2, 4, 8))
            out[field : field + size] = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size)))
        elif choice == 2:
            del out[at:]
        elif choice == 3:
            out += rng.randbytes(rng.randrange(1, 60))
        elif choice == 4:
            out[at:] = other[at:]
        elif choice == 5:
            out[at : at + rng.randrange(1, 30)] = b""
        else:
            out[at : at + 4] = rng.randbytes(4)
    return bytes(out[:65507])


def invent(rng: Random, data: bytes) -> list[bytes]:
    """A chunk or an acknowledgement of the session that `data` belongs to, well formed and senseless."""
    try:
        prefix = wire.decode_prefix(data)
    except Refused:
        return [data]
    kind = rng.choice((wire.WHOLE, wire.SEGMENT, wire.SEGMENT, wire.SEGMENT, wire.ACK))
    ahead = rng.choice((0, 1, 1, 2, 3, 100, 2047, 2048, 30_000))
    prefix = prefix._replace(kind=kind, sequence=(prefix.sequence + ahead) % (1 << 63))
    if kind == wire.ACK:
        return [invent_ack(rng, prefix)]
    number = rng.choice((1, 2, 3, rng.getrandbits(63)))
    segment_size = 0 if kind == wire.WHOLE else rng.choice((1232, 1472, 9000))
    length = rng.choice((1, 100, 1000)) if kind == wire.WHOLE else rng.choice((2000, 9500, 61000, 65535))
    total = length + rng.choice((0, 0, 1, 50_000, wire.MESSAGE_LENGTH_MAX - length))
    place = (segment_size, length, number, total, rng.choice((0, total - length)))
    floors = (rng.choice((ahead, ahead, ahead, 0)), rng.choice((0, 1)))
    header = wire.CHUNK.pack(*prefix, min(floors[0], prefix.sequence), floors[1], 7, 0, *place)
    if kind == wire.WHOLE:
        return [seal(header + bytes(length + wire.TAG_LENGTH))]
    payload, nonce = bytes(length), wire.nonce(wire.CHUNK_BODY, prefix.destination, 0, prefix.sequence)
    tag = cipher_of(prefix).seal_body(nonce, payload)[1] if rng.random() < 0.7 else bytes(wire.TAG_LENGTH)
    burst = lay_out(header + bytes(wire.TAG_LENGTH), payload, tag, segment_size)
    pieces = [seal(bytes(burst[at : at + segment_size])) for at in range(0, len(burst), segment_size)]
    rng.shuffle(pieces)
    return pieces[: rng.choice((1, len(pieces), len(pieces)))]


def invent_ack(rng: Random, prefix: wire.Prefix) -> bytes:
    reports = [(rng.randrange(prefix.sequence + 5), rng.getrandbits(64)) for _ in range(rng.randrange(3))]
    done = rng.getrandbits(rng.choice((0, 8, 2048)))
    body = wire.encode_ack(wire.PREFIX.pack(*prefix), rng.randrange(prefix.sequence + 3), done, reports)
    return seal(body + bytes(wire.TAG_LENGTH))


def cipher_of(prefix: wire.Prefix) -> Cipher:
    return derive_cipher(KEYS.sealing, "fuzz", 1, prefix.source_incarnation, encrypt=False)


def seal(data: bytes) -> bytes:
    """The datagram with the tags it would have if node 1 had written it so."""
    try:
        prefix = wire.decode_prefix(data)
    except Refused:
        return data
    cipher = cipher_of(prefix)
    if prefix.kind != wire.SEGMENT:
        body = data[: -wire.TAG_LENGTH]
        return cipher.seal(wire.nonce(prefix.kind, prefix.destination, 0, prefix.sequence), body, b"")
    if len(data) <= wire.SEGMENT_OVERHEAD:
        return data
    size = int.from_bytes(data[42:44], "big")
    header = data[: wire.CHUNK_LENGTH]
    tag = cipher.tag(wire.nonce(wire.SEGMENT, prefix.destination, size, prefix.sequence), header)
    return header + tag + data[wire.INDEX_AT :]


def check_bounds(transport: Transport) -> None:
    for peer in transport._peers.values():
        window = peer.receiver.window
        assert len(window.chunks) <= PARTIAL_CHUNKS_MAX
        assert len(window.messages) <= PARTIAL_MESSAGES_MAX
        held = sum(chunk.header.length for chunk in window.chunks.values())
        held += sum(len(message.data) for message in window.messages.values())
        assert held == window._partial_bytes <= PARTIAL_BYTES_MAX
        assert window.done.bit_length() <= wire.WINDOW_CHUNKS


def outsider_round(pair: Pair, rng: Random) -> None:
    """One forged or replayed datagram at either node; the honest traffic must not notice."""
    destination, data = rng.choice(pair.pool)
    if rng.random() < 0.8:
        data = mutate(rng, data, rng.choice(pair.pool)[1])
    if rng.random() < 0.1:
        destination = 3 - destination  # reflection
    began = time.thread_time()
    segment_size = rng.choice((0, 0, 0, 500, 1472))
    pair.nodes[destination].receive(pair.now, 0, 3 - destination, data, segment_size)
    assert time.thread_time() - began < SLOW_S, "took too long"
    pair.exchange()


def insider_round(pair: Pair, victim: Transport, rng: Random) -> None:
    """One correctly sealed mutation at a victim whose outcome is of no interest."""
    data = rng.choice([data for destination, data in list(pair.pool)[-40:] if destination == 2] or [b""])
    pieces = invent(rng, data) if rng.random() < 0.7 else [seal(mutate(rng, data, rng.choice(pair.pool)[1]))]
    began = time.thread_time()
    for piece in pieces:
        victim.receive(pair.now, 0, 1, piece)
    victim.tick(pair.now)
    victim.take()
    assert time.thread_time() - began < SLOW_S, "took too long"


def resident_bytes() -> int:
    return int(FilePath("/proc/self/statm").read_text().split()[1]) * 4096


def run(count: int, seed: int) -> dict[str, int]:
    """Feed `count` mutated datagrams; what became of them. Raises AssertionError naming the round that broke a rule."""
    rng = random.Random(seed)
    outside, inside = Pair(rng), Pair(rng)
    outcomes: dict[str, int] = {}
    resident = 0
    for number in range(count):
        for pair in (outside, inside):
            if number % LIFE_MAX == 0:
                tally(outcomes, pair)
                if pair is outside:
                    pair.settle()
                    pair.check_arrivals()
                pair.expected.clear()
                pair.restart(rng.choice((1, 2)))
            if number % 25 == 0:
                pair.now += 0.01
                pair.talk()
        try:
            if number % 2:
                outsider_round(outside, rng)
            else:
                insider_round(inside, inside.nodes[2], rng)
                inside.nodes[1].take()
        except Exception as error:
            raise AssertionError(f"seed {seed}, datagram {number}: {error!r}") from error
        if number % 5000 == 0:
            check_bounds(inside.nodes[2])
        if number == count // 4:
            resident = resident_bytes()
    outside.check_arrivals()
    assert outside.unreachable == 0, "an outsider could come between two honest nodes"
    assert resident_bytes() - resident < RESIDENT_GROWTH_MAX, "memory grows"
    tally(outcomes, outside)
    tally(outcomes, inside)
    outcomes["genuine"] = outside.messages
    return outcomes


def tally(outcomes: dict[str, int], pair: Pair) -> None:
    """Add the counters of nodes that are about to be restarted."""
    for transport in pair.nodes.values():
        for name, value in transport.counters.as_dict().items():
            outcomes[name] = outcomes.get(name, 0) + value
            setattr(transport.counters, name, 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.datagrams", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    outcomes = run(options.count, options.seed)
    seen = {name: value for name, value in outcomes.items() if value}
    print(f"datagrams: {options.count} in {time.monotonic() - began:.1f} s: {seen}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
