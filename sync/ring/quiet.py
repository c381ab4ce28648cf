# SPDX-License-Identifier: Apache-2.0
"""An idle token that comes back as it was sent: known by one comparison, sent on by one addition.

A visit changes an idle token in three places only: the count of hops, the visited member's last hop and, where it
rests, how long it has rested. The first two grow by the same amounts every turn. So a token, read as one large
little-endian number, grows by a constant a turn, its rest aside, and whatever else happens to it makes it another
number. That spares a visit most of its work, and an idle ring does nothing else: by the next visit the processor's
caches have been used by others, and what is not run need not be fetched again.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from sync.ring.lineage import LINEAGE_KEPT
from sync.ring.messages import HOP_AT, RESTED_AT, Buffers, last_hop_at
from sync.ring.token import COUNT_MAX, Token

RESTED_BITS: Final = (1 << 32) - 1 << 8 * RESTED_AT


def settled(token: Token) -> bool:
    """Nothing on the token waits for somebody to see it, and it is far from the end of counting."""
    return (
        not token.parcels
        and not token.farewells
        and len(token.lineage) <= LINEAGE_KEPT
        and token.hop < COUNT_MAX >> 1
        and not any(member.flags for member in token.members)
    )


class QuietTurn:
    """The token a node has passed on, and how it looks if nothing has happened when it is back."""

    __slots__ = ("_length", "_number", "_onward", "_turn", "eligible", "successor", "token")

    def __init__(self, token: Token, local: int, eligible: Set[int], sent: bytes) -> None:
        """`token`, which is `settled`, left as `sent`. `eligible`: the set of peers its members were judged by."""
        self.token = token
        self.eligible = eligible
        self.successor = token.successor(local).id
        units = [1 << 8 * last_hop_at(token, index) for index in range(len(token.members))]
        own = next(unit for unit, member in zip(units, token.members, strict=True) if member.id == local)
        hop, size = 1 << 8 * HOP_AT, len(token.members)
        self._length = len(sent)
        self._turn = hop * (size - 1) + (sum(units) - own) * size
        """What the others add to it in a turn."""
        self._onward = hop + own * size
        """What this node adds to it."""
        self._number = (int.from_bytes(sent, "little") & ~RESTED_BITS) + self._turn
        """The token as it is expected, without its rest."""

    def returns(self, data: bytes | memoryview) -> bool:
        """Is this the token, one turn later? If so, ``token`` is now what the data says."""
        number = int.from_bytes(data, "little")
        rested = number & RESTED_BITS
        if number - rested != self._number or len(data) != self._length:
            return False
        token = self.token
        members = token.members
        size = len(members)
        for member in members:
            member.last_hop += size
        token.hop += size
        token.rested_us = rested >> 8 * RESTED_AT
        return True

    def sent_on(self) -> Buffers:
        """The token as it is sent to the successor, and expected back."""
        number = self._number + self._onward
        self._number = number + self._turn
        return [(number + (self.token.rested_us << 8 * RESTED_AT)).to_bytes(self._length, "little")]
