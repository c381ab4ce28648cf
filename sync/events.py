# SPDX-License-Identifier: Apache-2.0
"""What goes into a ring node and what comes out of it.

``Node.step(now, event) -> list[effect]`` takes one of the events below and returns effects in the order in which they
must be carried out: transmissions come before deliveries, so that the token is on its way while the application works.
``Node.deadline()`` is the instant at which ``Timer`` must be fed at the latest. All times are seconds of one monotonic
clock of this node; nothing here assumes that two nodes' clocks agree.

The ordered stream. Every multicast message of a group has a position, counted per message, the same at all members.
A node delivers positions in strictly increasing order. Views are part of the same order: all members that go from one
view to the next have delivered the same messages before it. A member listed in ``View.joined`` starts (or starts
over) with that view: it has seen nothing of the group's earlier messages and needs the application's state as it
is at ``View.position``.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from sys import byteorder
from typing import NamedTuple
from zlib import crc32

from sync.transport.effects import PeerConfig, Resolve, Transmit

Payload = bytes | memoryview
Address = object
"""A peer's address, opaque to the core: whatever the driver's sockets use."""


class Order(IntEnum):
    """When a message may be delivered."""

    AGREED = 0
    """In the one total order, as soon as it is received; at its origin, as soon as it is on the token."""
    SAFE = 1
    """In the same total order, but only when every member is known to have it. Later messages wait behind it."""


class Refusal(IntEnum):
    """Why a request of this node was not carried out."""

    QUEUE_FULL = 1
    """Back-pressure: the queue holds ``queue_bytes_max`` bytes or ``queue_requests_max`` requests. Retry later."""
    TOO_LARGE = 2
    """A message is larger than ``message_bytes_max``."""
    NOT_SERVING = 3
    """The partition policy has taken this part of the cluster out of service."""
    LEFT = 4
    """The node has left the ring or was shut out by its critical resource."""
    HISTORY_LOST = 5
    """The node was excluded after it had put the request on the token; whether others delivered it is unknown."""
    UNREACHABLE = 6
    """A direct message's peer did not acknowledge it over any address within the failure budget."""
    UNKNOWN_PEER = 7
    """A direct message's peer is not an eligible member."""


class Reason(IntEnum):
    """Every transition and every drop of the ring core has one of these reasons; they are counted and traced."""

    TOKEN_ACCEPTED = 1
    TOKEN_PASSED = 2
    TOKEN_PARKED = 3
    """A to-be-merged token waits for this node's own token."""
    TOKEN_STALE = 4
    """Refused: hop or epoch not newer than what this node has already seen."""
    TOKEN_DIVERGED = 5
    """Refused: regenerated from a point this node is already beyond."""
    TOKEN_NOT_MEMBER = 6
    """Refused: this node, or this incarnation of it, is not on the token."""
    TOKEN_UNRANKED = 7
    """Refused: a to-be-merged token of a group of lower rank, or a second one."""
    TOKEN_UNWANTED = 8
    """Refused: the node is out of service."""
    TOKEN_ABANDONED = 9
    """Own token dropped because a newer branch of the group exists."""
    TOKEN_REGENERATED = 10
    MERGED = 11
    MERGE_GIVEN_UP = 12
    """The own token did not come within ``merge_wait``; the parked one was sent back."""
    PEER_UNREACHABLE = 20
    """Failure on delivery: excluded."""
    PEER_REFUSED = 21
    PEER_INVITED = 23
    PEER_DAMPED = 24
    """Not invited yet: its recent invitations failed."""
    NEWCOMER_DROPPED = 25
    """The list of newcomers is full, or the entry grew old."""
    HUNGRY_TIMEOUT = 30
    STARVING_TIMEOUT = 31
    ALARMED = 32
    """Another member is starving and its token copy is older than ours: call at once."""
    CALL_VETOED = 33
    CALL_GRANTED = 34
    CALL_REJECTED = 35
    ALONE = 36
    """Nobody answered for the time ``alone``: formed a ring of one."""
    VIEW_PROPOSED = 40
    VIEW_CANCELLED = 41
    """By this node: a member that was to be part of it has gone before it had it, or its number is used up."""
    VIEW_COMMITTED = 42
    LEFT_RING = 50
    SHUT_OUT = 51
    RETURNED = 52
    MALFORMED = 60
    """A peer's message did not decode."""
    NOT_ELIGIBLE = 61
    """A member is no longer eligible: asked to go."""
    STAYED_ON = 64
    """It was asked to go, has had the token since, and is still there: removed."""
    RELAY_REFUSED = 62
    STALE_MESSAGE = 63
    """An answer or refusal for something that is no longer pending."""


# ---------------------------------------------------------------------------------------------------------- events


@dataclass(slots=True)
class Datagrams:
    """Datagrams received, in order: (link, source address, data, segment_size); data is borrowed for the call."""

    batch: Sequence[tuple[int, Address, bytes | memoryview, int]]


@dataclass(slots=True)
class Timer:
    """The deadline may have come. Harmless when early."""


@dataclass(slots=True)
class Multicast:
    """Send messages to the group, all with one channel and order, adjacent in the total order if they fit one visit.

    ``tag`` comes back in ``Done`` or ``Refused``; unless
    ``Refused`` comes out of the same step, the request is queued. Payloads travel packed: many small ones are cheap.
    ``bulk`` sends them behind all small requests; ``urgent`` hastens an idle token.
    ``via``: a member to send through; for a node that is in no ring (open group), one message, agreed or safe.
    """

    tag: int
    channel: int
    payloads: Sequence[Payload]
    order: Order = Order.AGREED
    bulk: bool = False
    urgent: bool = True
    via: int | None = None


@dataclass(slots=True)
class Direct:
    """Send one message to one eligible peer outside of the order, reliably: ``Done`` or ``Refused`` follows."""

    tag: int
    peer: int
    channel: int
    payload: Payload | Sequence[Payload]


@dataclass(slots=True)
class Leave:
    """Leave the ring at the next visit of the token; ``Left`` follows. ``Rejoin`` undoes it."""


@dataclass(slots=True)
class Rejoin:
    """Take part again after ``Leave``."""


@dataclass(slots=True)
class LinkLost:
    """One of this node's links has no carrier any more."""

    link: int


@dataclass(slots=True)
class CriticalResource:
    """State of this node's critical resources taken together; False shuts the node out (policy ``critical``)."""

    available: bool


@dataclass(slots=True)
class Eligible:
    """Replace the eligible members online: peer id -> its paths, without this node itself.

    A member that is on the list no longer is asked to go and leaves at its next visit of the token. It needs no new
    list for that, and will ask to be let in again.
    """

    peers: Mapping[int, PeerConfig]


@dataclass(slots=True)
class Standing:
    """How much the group's state counts in a merge: the group of higher (standing, size, id) keeps its history.

    All members that know it say the same; 0 from one that does not.
    """

    value: int


Event = Datagrams | Timer | Multicast | Direct | Leave | Rejoin | LinkLost | CriticalResource | Eligible | Standing


# --------------------------------------------------------------------------------------------------------- effects


class View(NamedTuple):
    """A committed view."""

    number: int
    """Index in the history of views; grows, may skip."""
    members: tuple[int, ...]
    """In ring order, beginning with the proposer."""
    group: int
    """Group id: the lowest member."""
    joined: frozenset[int]
    """Members that start over with this view and need the group's state; never contains all members."""
    serving: bool
    """False: the partition policy wants this part out of service."""
    position: int
    """The view's place in the stream; it takes one position of its own."""
    incarnations: tuple[int, ...]
    """Of the members, in the same order."""
    origin: int
    """The member that proposed it."""

    @property
    def mark(self) -> int:
        """Tells it from another view of the same number, as there may be one in fast mode."""
        return crc32(repr((self.origin, self.position, self.members, self.incarnations)).encode())


class ViewChanged(NamedTuple):
    """Every message delivered before belongs to the view before."""

    view: View


class Deliver(NamedTuple):
    """A run of messages of one origin and channel; message i has position ``position + i``."""

    channel: int
    origin: int
    order: Order
    view: int
    """Number of the view they are delivered in."""
    position: int
    messages: int
    sizes: bytes | memoryview
    """``messages`` little-endian u32 lengths; ``lengths`` reads them."""
    data: bytes | memoryview
    """The payloads, one behind the other."""

    def payloads(self) -> list[bytes | memoryview]:
        """Views of the single payloads, no copy."""
        data = self.data
        if self.messages == 1:
            return [data]
        sizes = lengths(self.sizes)
        view = memoryview(data)
        ends = list(accumulate(sizes))
        return [view[end - size : end] for size, end in zip(sizes, ends, strict=True)]


class PeerMessage(NamedTuple):
    """A direct message of a peer."""

    peer: int
    incarnation: int
    channel: int
    payload: bytes | memoryview


class Done(NamedTuple):
    """A multicast was delivered here (position of its last message), or a direct message was acknowledged (-1)."""

    tag: int
    position: int


class Refused(NamedTuple):
    """The request with this tag failed."""

    tag: int
    reason: Refusal


class TokenVisit(NamedTuple):
    """This node has the token (a ring of one: kept it).

    ``lease_until``: before this instant of this node's clock no member of its view can have gone on to a view without
    it. Whoever wants to exclude it must try to reach it for a whole failure budget, and cannot have begun before this
    node's last pass and the rest that the token has had since. Emitted only when a lease can be given; with
    ``lease_until`` = now when an earlier one is given up (the node changes to another group).
    """

    hop: int
    lease_until: float
    members: int


class Left(NamedTuple):
    """The node is out of the ring: it left, was shut out, or was asked to go (``struck_off``: the others have it no
    more among the eligible); in the last case it asks to be let in."""

    struck_off: bool = False


class Trace(NamedTuple):
    """A transition or a drop, for counters, logs and timelines. Emitted only when ``RingConfig.trace``."""

    reason: Reason
    peer: int
    detail: str


Effect = Transmit | Resolve | ViewChanged | Deliver | PeerMessage | Done | Refused | TokenVisit | Left | Trace


def lengths(sizes: bytes | memoryview) -> array[int]:
    """The little-endian u32 that ``sizes`` consists of, at any alignment."""
    found = array("I")
    found.frombytes(sizes)
    if byteorder != "little":
        found.byteswap()
    return found
