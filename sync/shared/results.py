# SPDX-License-Identifier: Apache-2.0
"""What a command can come to. Every replica computes the same outcome; the node that asked hands it to its caller."""

import enum
from typing import NamedTuple


class Refusal(enum.Enum):
    """Why a well-formed command had no effect. Refused commands change nothing, on any replica."""

    NO_SUCH_ITEM = "there is no such item"
    NOT_A_COUNTER = "the item is not an 8-byte counter"
    COUNTER_OVERFLOW = "the counter would leave 64 bits"
    PATCH_BEYOND_END = "a partial write must begin inside the item or at its end"
    VALUE_TOO_LARGE = "the value would exceed VALUE_BYTES_MAX"
    STORE_FULL = "ITEMS_MAX or STORE_BYTES_MAX is reached: delete items first"
    LOCK_TAKEN = "the lock is held by another and waiting was not asked for"
    NOT_HOLDER = "the lock is not held by this request"
    TOO_MANY_LOCKS = "LOCKS_MAX is reached"
    TOO_MANY_WAITERS = "WAITERS_MAX is reached"
    TOO_MANY_BARRIERS = "BARRIERS_MAX is reached"
    BARRIER_MISMATCH = "the barrier is in use with another mode or number of parties"
    NOT_AT_BARRIER = "this request is not at the barrier"
    TOO_MANY_QUEUES = "QUEUES_MAX is reached"
    QUEUE_FULL = "QUEUE_ELEMENTS_MAX or QUEUE_BYTES_MAX is reached: take elements first"
    QUEUE_EMPTY = "the queue is empty and waiting was not asked for"
    NOT_TAKEN = "this request holds no element of the queue"
    NOT_A_MEMBER = "the origin was no member, or an earlier incarnation of one, when the command was ordered"
    NOT_SERVING = "the ring takes no requests now: it is out of service or was left"
    WITHDRAWN = "the request was withdrawn by its caller"


class Owner(NamedTuple):
    """A request of one incarnation of one node: what holds locks, waits in queues and receives outcomes."""

    node: int
    session: int
    ticket: int


class Committed(NamedTuple):
    """All writes of the command became visible together, as `version`. `counters`: results of the ADD operations."""

    version: int
    counters: tuple[int, ...] = ()


class ConditionFailed(NamedTuple):
    """Condition number `condition` did not hold: the item's version is `version` (0: none). Nothing was written."""

    condition: int
    version: int


class Granted(NamedTuple):
    """The lock is ours; `fencing` is larger than for any earlier holder in this lineage."""

    fencing: int


class Passed(NamedTuple):
    """The barrier let this request through; `first` if it is the one that must act."""

    generation: int
    first: bool


class Taken(NamedTuple):
    """An element of a queue, ours until acknowledged."""

    element: int
    value: bytes


class Done(NamedTuple):
    """A release, renewal, acknowledgement or put took effect."""

    value: int = 0


class Refused(NamedTuple):
    """The command had no effect, for `reason`."""

    reason: Refusal


class Unknown(NamedTuple):
    """The command was ordered, but this node's copy was replaced before its outcome was seen: read and decide."""


Result = Committed | ConditionFailed | Granted | Passed | Taken | Done | Refused | Unknown


class Outcome(NamedTuple):
    """Result of one request."""

    owner: Owner
    result: Result
