# SPDX-License-Identifier: Apache-2.0
"""What the transport asks its surroundings to do, and the configuration it is given."""

from collections.abc import Hashable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Final, NamedTuple, Protocol

from sync.transport.keys import KeyRing
from sync.transport.wire import DATAGRAM_MIN, MESSAGE_LENGTH_MAX, Buffer

RTO_MIN_S: Final = 0.001
ATTEMPTS_MIN: Final = 2  # transmissions on every path before a message may count as lost


class Randomness(Protocol):
    """Where challenges come from; `random.SystemRandom()` in production, a seeded generator in a simulation."""

    def getrandbits(self, k: int, /) -> int: ...


class Transmit(NamedTuple):
    """Put `data` on the wire: one datagram, or (segment_size > 0) several of that size, the last one shorter."""

    link: int
    address: Hashable
    data: Buffer
    segment_size: int


class Arrived(NamedTuple):
    """A complete, authentic message, given out once. The payload belongs to the receiver and never changes again."""

    peer: int
    incarnation: int
    channel: int
    payload: Buffer


class Delivered(NamedTuple):
    """The peer has the whole message and has given (or is about to give) it to its upper layer."""

    handle: int
    peer: int


class Reason(Enum):
    """Why a message came back."""

    UNREACHABLE = "every address and attempt is exhausted"
    RESTARTED = "the peer's incarnation to which it was sent is gone"
    REMOVED = "the peer was taken out of the configuration"


class Undelivered(NamedTuple):
    """Not known to have been delivered (the last acknowledgement may have been lost), and no longer tried."""

    handle: int
    peer: int
    reason: Reason


class Resolve(NamedTuple):
    """Nothing comes back from there: see to it that the network does not still wait for an answer it owes.

    A neighbour that was asked for (ARP, ND) while the cable was out is asked for again only after a second; until
    then the way to it is closed in this direction alone.
    """

    link: int
    address: Hashable


class Asked(NamedTuple):
    """The peer has repeated a message sent with patience that had arrived before: it does not know that it has."""

    peer: int


Effect = Transmit | Arrived | Delivered | Undelivered | Resolve | Asked


class Path(NamedTuple):
    """One way to a peer: our link (local socket), the peer's address there, the largest UDP payload it carries."""

    link: int
    address: Hashable
    datagram_max: int = 1472


@dataclass(frozen=True)
class PeerConfig:
    """How a peer is reached. `parallel`: datagrams travel all paths at once, else attempts rotate over them."""

    paths: tuple[Path, ...]
    parallel: bool = False

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("a peer needs at least one path (link and address)")
        for path in self.paths:
            if path.datagram_max < DATAGRAM_MIN:
                raise ValueError(
                    f"datagram_max {path.datagram_max} of {path.address!r} is below {DATAGRAM_MIN} bytes, the least "
                    "that every IPv6 path carries; raise the MTU of that link"
                )


@dataclass(frozen=True)
class TransportConfig:
    """The transport's settings. Times in seconds, sizes in bytes.

    A message comes back when it has itself been under way, or made no progress, for `failure_after_s`; never earlier,
    and never before two transmissions on every path. Within that time it is sent `attempts` times per path or more,
    each waiting for the adaptive timeout, at least `rto_floor_s`.
    """

    cluster: str
    keys: KeyRing | None = None
    encrypt: bool = False
    failure_after_s: float = 0.040
    attempts: int = 4
    rto_floor_s: float = 0.008
    window_bytes: int = 2 * 1024 * 1024
    queue_message_max: int = 65536
    queue_bytes_max: int = 4 * MESSAGE_LENGTH_MAX

    def __post_init__(self) -> None:
        if not ATTEMPTS_MIN <= self.attempts <= 100:
            raise ValueError(f"attempts is {self.attempts}; it must lie in {ATTEMPTS_MIN}..100")
        if self.rto_floor_s <= 0:
            raise ValueError(f"rto_floor_s is {self.rto_floor_s}; it must be above 0")
        if self.failure_after_s < self.attempts * RTO_MIN_S:
            raise ValueError(
                f"failure_after_s is {self.failure_after_s}: too short for {self.attempts} attempts of {RTO_MIN_S} s; "
                "raise it or lower attempts"
            )
        if self.encrypt and self.keys is None:
            raise ValueError("encryption is asked for but there is no key; name a key file or turn it off")
        if self.window_bytes < 65536:
            raise ValueError(f"window_bytes is {self.window_bytes}; the least is 65536, one burst")

    def rto_range_s(self, path_count: int) -> tuple[float, float]:
        """(floor, ceiling) of the retransmission timeout when transmissions rotate over this many paths."""
        ceiling = max(self.failure_after_s / (self.attempts * path_count), RTO_MIN_S)
        return min(self.rto_floor_s, ceiling), ceiling


class PeerReport(NamedTuple):
    """How a peer is doing. Times in seconds; `heard_at` on the caller's clock, minus infinity if never."""

    incarnation: int  # 0: no session
    heard_at: float
    round_trip_s: float  # smoothed; 0 before the first sample
    timeout_s: float
    window_bytes: int
    in_flight_bytes: int
    queued_messages: int
    path: Path  # where the next message begins


class TurnedAway(NamedTuple):
    """Datagrams from one peer's addresses refused for one reason: how many, and what the last one says, unproven."""

    total: int
    source: Hashable
    version: int
    claimed: int  # node id


class Backlogged(Exception):
    """The queue towards a peer is full: wait for Delivered or Undelivered of earlier messages."""


@dataclass(slots=True)
class Counters:
    """Everything the transport has done or refused, by reason."""

    sent: int = 0  # messages handed to the transport
    delivered: int = 0  # of these, acknowledged
    undelivered: int = 0  # of these, given back
    cancelled: int = 0
    arrived: int = 0  # messages given to the upper layer
    arrived_unreliable: int = 0
    retransmissions: int = 0  # chunks or parts of chunks sent again
    fast_retransmissions: int = 0  # of these, asked for by the receiver rather than by the clock
    cuts: int = 0  # chunks cut smaller because large datagrams did not get through
    sessions: int = 0  # peer incarnations confirmed
    acks: int = 0
    hellos: int = 0
    # Refused before anything else was done with them:
    unknown_source: int = 0  # from an address that is no peer's
    too_short: int = 0
    other_version: int = 0
    other_cluster: int = 0
    unknown_kind: int = 0
    malformed: int = 0
    misdirected: int = 0  # for another node
    reflected: int = 0  # our own, sent back
    impersonated: int = 0  # names another node than the address belongs to
    unknown_key: int = 0
    bad_tag: int = 0
    # Authentic, yet not accepted:
    unconfirmed: int = 0  # the source incarnation has not proved that it lives
    stale: int = 0  # addressed to another incarnation of this node
    duplicate: int = 0  # seen before (a retransmission, or a replay)
    beyond_window: int = 0
    damaged_chunk: int = 0  # complete, but its payload does not fit its tag: all of it is asked for again
    impossible_ack: int = 0  # acknowledges what was never sent
    # Shed at a bound:
    backlogged: int = 0  # send() refused
    reassembly_full: int = 0
    unreliable_dropped: int = 0  # no session with the peer yet, or replaced by a newer one

    def as_dict(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def count(self, reason: str) -> None:
        setattr(self, reason, getattr(self, reason) + 1)
