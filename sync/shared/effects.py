# SPDX-License-Identifier: Apache-2.0
"""What the shared data asks of its driver and tells its user."""

from typing import NamedTuple

from .items import Change
from .results import Result


class MulticastCommand(NamedTuple):
    """Multicast `payload` on the shared-data channel, in agreed order. `ticket` 0: it is none of the user's requests.

    `urgent`: somebody waits for the outcome; otherwise it may ride on the token's next regular visit.
    """

    ticket: int
    payload: bytes
    urgent: bool = True


class SendPeer(NamedTuple):
    """Send `payload` to one member on the shared-data peer channel, reliably."""

    node: int
    payload: bytes


class Answered(NamedTuple):
    """The request has come to its end (for a lock, barrier or queue: to its turn)."""

    ticket: int
    result: Result


class Changed(NamedTuple):
    """Data items changed, in the order of the stream. After `Replaced` the order within is arbitrary."""

    changes: list[Change]


class QueuesChanged(NamedTuple):
    """Elements were put into, taken from or given back to these queues."""

    names: set[str]


class LockLost(NamedTuple):
    """A lock of ours ended without our release: its lease ran out, or the group's state was replaced."""

    name: str
    ticket: int
    fencing: int


class Replaced(NamedTuple):
    """Our copy was replaced by another group's or a member's. What we wrote meanwhile may be gone: publish again.

    `lineage_changed`: the state descends from another founding. Changed with all differences follows.
    """

    lineage_changed: bool


class Complete(NamedTuple):
    """Whether our copy is the group's state as of now; while it is not, requests wait."""

    complete: bool


class StandingChanged(NamedTuple):
    """How much our state is to count when groups merge: whether it is in use, and the magnitude of its history.

    0: our copy is not the group's at present, others know."""

    value: int


Effect = (
    MulticastCommand | SendPeer | Answered | Changed | QueuesChanged | LockLost | Replaced | Complete | StandingChanged
)
