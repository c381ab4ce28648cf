# SPDX-License-Identifier: Apache-2.0
"""Configuration of a ring node: few numbers to choose, the rest derived from them and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from sync.transport.effects import PeerConfig
from sync.transport.keys import KeyRing
from sync.transport.wire import MESSAGE_LENGTH_MAX

TOKEN_BYTES_MAX = MESSAGE_LENGTH_MAX * 3 // 4
"""Payload on the token; the rest of a transport message is left for its headers."""
IDLE_TURNS_HUNGRY = 1.6
"""So many idle turns without the token make a node hungry."""
MESSAGE_BYTES_LIMIT = TOKEN_BYTES_MAX // 3


class ConfigError(ValueError):
    """A setting that cannot work: names it, its value, the reason and the remedy."""


class Mode(Enum):
    """When a change of the view takes effect."""

    CONSISTENT = "consistent"
    """Once all members are known to have it: consistent history of views (the thesis's three phases)."""
    FAST = "fast"
    """On receipt, about one turn earlier; an excluded member's history may then differ (two phases)."""


class Policy(Enum):
    """What a part of a divided cluster does."""

    ALL = "all"
    """Every part goes on."""
    MAJORITY = "majority"
    """Only a part with more than half of the eligible members serves."""
    CRITICAL = "critical"
    """A node that has lost its critical resources shuts itself out."""


@dataclass(frozen=True)
class Timers:
    """Derived times in seconds."""

    failure_after: float
    """From an unanswered message to failure on delivery."""
    turn_idle: float
    """One turn of an idle token."""
    hungry: float
    """Without the token for that long (or 1.4 of the last turn, if that is more): starving, call 911.
    ``hungry_per_member`` is added per member."""
    hungry_idle: float
    """The same for a turn in which the token rests."""
    hungry_per_member: float
    starving: float
    """Call again."""
    alone: float
    """Nobody has answered for that long: form a ring of one."""
    merge_wait: float
    """How long a to-be-merged token waits for the own one."""
    beacon: float
    """Between beacons to an absent eligible member."""
    newcomer: float
    """How long a request to join is remembered."""
    damping_max: float
    """Longest time a node whose invitations keep failing is not invited."""


@dataclass(frozen=True)
class RingConfig:
    """One node's ring settings; the same at all nodes except ``node`` and ``peers``.

    Raises ``ConfigError`` for values that contradict each other.
    """

    node: int
    """This node's id, 1..255, unique in the cluster."""
    peers: Mapping[int, PeerConfig] = field(default_factory=dict)
    """The other eligible members and how to reach them."""
    cluster: str = "ring"
    keys: KeyRing | None = None
    encrypt: bool = False
    failure_detection_ms: float = 40.0
    """The one number: a node that does not answer for that long is excluded. All timers derive from it."""
    mode: Mode = Mode.CONSISTENT
    policy: Policy = Policy.ALL
    turn_idle_ms: float | None = None
    """Turn of an idle token; default 0.55 of the failure budget. Longer costs less CPU and detects later."""
    hungry_ms: float | None = None
    """Least time without the token before 911; default 0.55 of the failure budget. A slow ring waits longer, one
    whose token rests for 1.6 of its idle turn."""
    beacon_ms: float | None = None
    """Between beacons to an absent eligible member; default 250, or twice the failure budget if that is more."""
    visit_bytes_max: int = 1 << 20
    """Payload a node may add to the token per visit."""
    message_bytes_max: int = 8 << 20
    queue_bytes_max: int = 16 << 20
    """Payload queued at this node before requests are refused."""
    queue_requests_max: int = 65536
    newcomers_max: int = 64
    relays_max: int = 256
    trace: bool = False
    """Emit ``Trace`` effects."""

    def __post_init__(self) -> None:
        self._check_identity()
        self._check_times()
        self._check_sizes()

    @property
    def timers(self) -> Timers:
        budget = self.failure_detection_ms / 1000
        turn = 0.55 * budget if self.turn_idle_ms is None else self.turn_idle_ms / 1000
        beacon = max(0.25, 2 * budget) if self.beacon_ms is None else self.beacon_ms / 1000
        hungry = 0.55 * budget if self.hungry_ms is None else self.hungry_ms / 1000
        return Timers(
            failure_after=budget,
            turn_idle=turn,
            hungry=hungry,
            hungry_idle=max(hungry, IDLE_TURNS_HUNGRY * turn),
            hungry_per_member=0.0005,
            starving=1.25 * budget,
            alone=4 * budget,
            merge_wait=hungry + 2 * budget,
            beacon=beacon,
            newcomer=6 * budget,
            damping_max=max(2.0, 20 * budget),
        )

    def serving(self, members: int, eligible: int) -> bool:
        """May a view of so many eligible members, of so many that there are, serve under the partition policy?"""
        return self.policy is not Policy.MAJORITY or 2 * members > eligible

    def _check_identity(self) -> None:
        if not 1 <= self.node <= 255:
            raise ConfigError(f"node is {self.node}; give each node its own id in 1..255")
        if self.node in self.peers:
            raise ConfigError(f"peers contains this node itself ({self.node}); list only the others")
        wrong = [peer for peer in self.peers if not 1 <= peer <= 255]
        if wrong:
            raise ConfigError(f"peers contains the id {wrong[0]}; ids lie in 1..255")

    def _check_times(self) -> None:
        if not 5 <= self.failure_detection_ms <= 60_000:
            raise ConfigError(
                f"failure_detection_ms is {self.failure_detection_ms:g}; below 5 a busy machine looks dead, "
                "above 60000 nobody wants to wait: choose a value between"
            )
        timers = self.timers
        if not 0 < timers.turn_idle <= 0.85 * timers.failure_after:
            raise ConfigError(
                f"turn_idle_ms is {timers.turn_idle * 1000:g}; it must be above 0 and at most 0.85 of "
                f"failure_detection_ms ({self.failure_detection_ms:g}), because a lease lasts for little more than "
                "that after a visit of the token: lower it, or raise failure_detection_ms"
            )
        if timers.hungry < 0.3 * timers.failure_after:
            raise ConfigError(
                f"hungry_ms is {timers.hungry * 1000:g}; below 0.3 of failure_detection_ms "
                f"({self.failure_detection_ms:g}) a healthy ring calls 911 when one datagram is lost: raise it"
            )
        if timers.hungry > 2 * timers.failure_after:
            raise ConfigError(
                f"hungry_ms is {timers.hungry * 1000:g}; above twice failure_detection_ms a lost token goes "
                "unnoticed for longer than a lost node: lower it"
            )
        if timers.beacon < timers.failure_after:
            raise ConfigError(
                f"beacon_ms is {timers.beacon * 1000:g}; below failure_detection_ms ({self.failure_detection_ms:g}) "
                "absent nodes are called before their last absence is even noticed: raise it"
            )

    def _check_sizes(self) -> None:
        if not 1024 <= self.visit_bytes_max <= 4 << 20:
            raise ConfigError(f"visit_bytes_max is {self.visit_bytes_max}; it must lie in 1 KiB..4 MiB")
        if not 1 <= self.message_bytes_max <= self.queue_bytes_max:
            raise ConfigError(
                f"message_bytes_max is {self.message_bytes_max}; it must be at least 1 and fit "
                f"queue_bytes_max ({self.queue_bytes_max})"
            )
        if self.message_bytes_max > MESSAGE_BYTES_LIMIT:
            raise ConfigError(
                f"message_bytes_max is {self.message_bytes_max}; the most is {MESSAGE_BYTES_LIMIT}, because several "
                f"must fit a token of {TOKEN_BYTES_MAX} bytes: send larger data in pieces"
            )
