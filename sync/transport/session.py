# SPDX-License-Identifier: Apache-2.0
"""The session with one peer's present incarnation, and the paths to it.

A session begins with a challenge. Each side sends a random number and accepts the other's incarnation only after that
number has come back under the other's seal: it lives now, and is nobody's recording. From then on every datagram
names both incarnations, so one that was written for another life of either side is refused, whatever the clocks say.
"""

from collections.abc import Callable, Hashable
from math import inf
from typing import Final

from sync.transport import wire
from sync.transport.effects import Counters, Effect, Path, PeerConfig, Resolve, Transmit, TransportConfig
from sync.transport.keys import Cipher, KeyRing, derive_cipher, open_ring
from sync.transport.wire import DATAGRAM_MIN, PREFIX, VERSION, Buffer, Prefix, Refused, nonce

CIPHERS_MAX: Final = 4
REDUCED_S: Final = 10.0  # how long large datagrams are avoided when only small ones got through


class Local:
    """What all sessions of one transport share."""

    __slots__ = (
        "cipher",
        "cluster",
        "config",
        "counters",
        "effects",
        "incarnation",
        "key_id",
        "keys",
        "node",
        "random64",
    )

    def __init__(self, config: TransportConfig, node: int, incarnation: int, random64: Callable[[], int]) -> None:
        self.config = config
        self.node = node
        self.incarnation = incarnation
        self.random64 = random64
        self.cluster = wire.cluster_number(config.cluster)
        self.counters = Counters()
        self.effects: list[Effect] = []
        self.use_keys(config.keys)

    def use_keys(self, keys: KeyRing | None) -> None:
        """Seal with the first of these keys from now on, open with any of them."""
        self.keys = keys or open_ring(self.config.cluster)
        self.key_id = self.keys.sealing.id
        self.cipher = self.derive(self.keys.sealing.id, self.node, self.incarnation)

    def derive(self, key_id: int, node: int, incarnation: int) -> Cipher:
        key = self.keys.find(key_id)
        return derive_cipher(key, self.config.cluster, node, incarnation, encrypt=self.config.encrypt)


class Session:
    """Greeting, identity and paths of one peer."""

    __slots__ = (
        "_backed_off",
        "_challenge",
        "_challenge_again_at",
        "_ciphers",
        "_local",
        "_moved_at",
        "_preferred",
        "_reduced_until",
        "_seek_again_at",
        "_sequences",
        "datagram_max",
        "greet_deadline",
        "greetings",
        "heard_at",
        "incarnation",
        "node",
        "parallel",
        "paths",
    )

    def __init__(self, local: Local, node: int, config: PeerConfig) -> None:
        self._local = local
        self.node = node
        self.incarnation = 0  # 0 until confirmed
        self.heard_at = -inf
        self.greet_deadline = inf
        self.greetings = 0
        self._backed_off = 0
        self._challenge = 0
        self._challenge_again_at = -inf
        self._ciphers: dict[tuple[int, int], Cipher] = {}
        self._sequences = {wire.ACK: 0, wire.HELLO: 0, wire.UNRELIABLE: 0}
        self._reduced_until = -inf
        self._seek_again_at = -inf
        self._moved_at = 0
        self.use_paths(config)

    # Paths

    def use_paths(self, config: PeerConfig) -> None:
        self.paths = config.paths
        self.parallel = config.parallel
        self._preferred = 0
        self.datagram_max = min(path.datagram_max for path in config.paths)

    @property
    def rotation(self) -> int:
        """Transmissions until every path has been used once."""
        return 1 if self.parallel else len(self.paths)

    def rto_range(self) -> tuple[float, float]:
        return self._local.config.rto_range_s(self.rotation)

    def path(self, attempt: int) -> Path:
        """The path of transmission number `attempt` (1, 2, …) of a datagram."""
        return self.paths[(self._preferred + attempt - 1) % len(self.paths)]

    def prefer(self, link: int, address: Hashable) -> None:
        """Begin with this path from now on: an answer has come over it after another one had failed."""
        for index, path in enumerate(self.paths):
            if path.link == link and path.address == address:
                self._preferred = index

    def leave(self, link: int) -> bool:
        """This link carries nothing any more: begin elsewhere, if there is another one, and have the peer do so, too.

        False when there is nothing to change.
        """
        others = [path for path in self.paths if path.link != link]
        if self.parallel or not others or self.path(1).link != link:
            return False
        self.prefer(others[0].link, others[0].address)
        if self.incarnation:
            self.transmit(self._hello(0, 0), 0, 1)
        return True

    def follow(self, prefix: Prefix, link: int, address: Hashable) -> bool:
        """The peer, in the present session, asks to be reached over this path first. False when that is nothing new."""
        if self.parallel or prefix.sequence <= self._moved_at:
            return False
        self._moved_at = prefix.sequence
        before = self._preferred
        self.prefer(link, address)
        return self._preferred != before

    def transmit(self, data: Buffer, segment_size: int, attempt: int) -> None:
        effects = self._local.effects
        if not self.parallel:
            path = self.path(attempt)
            effects.append(Transmit(path.link, path.address, data, segment_size))
            return
        for path in self.paths:
            effects.append(Transmit(path.link, path.address, data, segment_size))

    def transmit_everywhere(self, data: bytes) -> None:
        """What is rare, and must arrive even if one path carries one direction only and another one the other."""
        for path in self.paths:
            self._local.effects.append(Transmit(path.link, path.address, data, 0))

    def seek(self, now: float) -> None:
        """The peer is silent: have the ways to it resolved anew, at most once in the least retransmission timeout."""
        if now >= self._seek_again_at:
            self._seek_again_at = now + self._local.config.rto_floor_s
            for path in self.paths:
                self._local.effects.append(Resolve(path.link, path.address))

    def datagram_limit(self, now: float) -> int:
        """Bytes of the largest datagram to send to this peer at present."""
        return self.datagram_max if now >= self._reduced_until else DATAGRAM_MIN

    def reduce(self, now: float) -> None:
        """Large datagrams do not get through: send small ones for a while, then try again."""
        self._reduced_until = now + REDUCED_S

    # Headers and ciphers

    def prefix(self, kind: int, sequence: int) -> bytes:
        local = self._local
        return PREFIX.pack(
            VERSION,
            kind,
            local.node,
            self.node,
            local.cluster,
            local.key_id,
            local.incarnation,
            self.incarnation,
            sequence,
        )

    def seal(self, kind: int, sequence: int, header: bytes, payload: Buffer = b"") -> bytes:
        return self._local.cipher.seal(nonce(kind, self.node, 0, sequence), header, payload)

    def take_sequence(self, kind: int) -> int:
        self._sequences[kind] = sequence = self._sequences[kind] + 1
        return sequence

    def cipher_of(self, prefix: Prefix) -> Cipher:
        """The cipher with which this datagram claims to be sealed; Refused when its key is not valid."""
        cipher = self._ciphers.get((prefix.source_incarnation, prefix.key_id))
        if cipher is None:
            cipher = self._local.derive(prefix.key_id, self.node, prefix.source_incarnation)
        return cipher

    def keep_cipher(self, prefix: Prefix, cipher: Cipher) -> None:
        """Remember a cipher that has proved right."""
        name = (prefix.source_incarnation, prefix.key_id)
        if name not in self._ciphers:
            if len(self._ciphers) >= CIPHERS_MAX:
                self._ciphers.clear()
            self._ciphers[name] = cipher

    def forget_ciphers(self) -> None:
        """The valid keys have changed."""
        self._ciphers.clear()

    # Greeting

    def greet(self, now: float) -> None:
        """Ask who lives there, again and again until it answers or nothing waits for it any more."""
        if self.greet_deadline == inf:
            self._backed_off = 0
            self.greet_again(now)

    def greet_again(self, now: float) -> None:
        """The next greeting."""
        self.greetings += 1
        self._backed_off = min(self._backed_off + 1, 16)
        floor, ceiling = self.rto_range()
        self.greet_deadline = now + min(floor * (1 << self._backed_off - 1), ceiling)
        self.transmit(self._hello(self._own_challenge(), 0), 0, self.greetings)

    def greet_once(self) -> None:
        """Ask who lives there, on every path, without insisting."""
        self.transmit_everywhere(self._hello(self._own_challenge(), 0))

    def require_bound(self, now: float, prefix: Prefix) -> None:
        """Refused unless an authentic datagram belongs to the present session; the other side is then challenged."""
        if prefix.source_incarnation == self.incarnation and (
            prefix.destination_incarnation == self._local.incarnation
        ):
            return
        if now >= self._challenge_again_at:
            self._challenge_again_at = now + self._local.config.rto_floor_s / 2
            self.greet_once()
        raise Refused("unconfirmed" if prefix.source_incarnation != self.incarnation else "stale")

    def on_hello(self, prefix: Prefix, challenge: int, echo: int) -> bool:
        """Answer an authentic greeting; True when it confirms the peer's incarnation."""
        lives = prefix.source_incarnation
        confirmed = echo != 0 and echo == self._challenge
        if confirmed:
            self._challenge = 0
            self.greet_deadline = inf
        if challenge:
            known = confirmed or lives == self.incarnation
            self.transmit_everywhere(self._hello(0 if known else self._own_challenge(), challenge))
        return confirmed

    def confirm(self, incarnation: int) -> bool:
        """Bind the session to this incarnation; True when it is another one than before."""
        if incarnation == self.incarnation:
            return False
        self.incarnation = incarnation
        self._reduced_until = -inf
        self._moved_at = 0
        self._local.counters.sessions += 1
        return True

    def _own_challenge(self) -> int:
        if self._challenge == 0:
            self._challenge = self._local.random64() | 1
        return self._challenge

    def _hello(self, challenge: int, echo: int) -> bytes:
        sequence = self.take_sequence(wire.HELLO)
        self._local.counters.hellos += 1
        return self.seal(wire.HELLO, sequence, wire.encode_hello(self.prefix(wire.HELLO, sequence), challenge, echo))
