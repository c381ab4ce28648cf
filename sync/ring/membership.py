# SPDX-License-Identifier: Apache-2.0
"""States of a node and the only transitions between them.

A transition that is not in the table is a defect of this program and raises. docs/protocol.md shows the diagram that
``diagram()`` draws from the tables (``python -m sync.ring.membership``).
"""

from collections.abc import Mapping
from enum import Enum


class _Named(Enum):
    """Members are single objects: hashed as such they are found several times faster in the tables below."""

    __hash__ = object.__hash__


class TokenState(_Named):
    """A node's relation to the token (thesis figure 10)."""

    EATING = "Eating"
    HUNGRY = "Hungry"
    STARVING = "Starving"
    OUT = "Out"
    """Left, or shut out by a critical resource; not in the thesis."""


class ViewState(_Named):
    """How far the node's view is agreed upon (thesis figure 9)."""

    AGREEMENT = "Agreement"
    CHAOS = "Chaos"
    RESERVE = "Reserve"


class TokenEvent(_Named):
    ACCEPT = "token accepted"
    PASS = "token passed on"
    DELIVERY_FAILED = "token not delivered, or refused"
    HUNGRY_TIMEOUT = "hungry timeout"
    ALARM = "911 of an older copy"
    VETO = "911 answered NO"
    GRANT = "911 granted"
    REJECT = "911 answered REJECTED"
    ABANDON = "newer branch seen"
    ALONE = "nobody answers"
    WITHDRAW = "leave, or resource lost"
    RETURN = "rejoin, or resource back"


class ViewEvent(_Named):
    RESERVED = "a view with this node received"
    CANCELLED = "the view was cancelled"
    COMMITTED = "all members have the view"
    UNCERTAIN = "starving, left or invited anew"
    RESUMED = "token is back, nothing changed"


_T, _E = TokenState, TokenEvent
TOKEN_TRANSITIONS: Mapping[tuple[TokenState, TokenEvent], TokenState] = {
    (_T.HUNGRY, _E.ACCEPT): _T.EATING,
    (_T.STARVING, _E.ACCEPT): _T.EATING,
    (_T.EATING, _E.PASS): _T.HUNGRY,
    (_T.HUNGRY, _E.DELIVERY_FAILED): _T.EATING,
    (_T.STARVING, _E.DELIVERY_FAILED): _T.EATING,
    (_T.HUNGRY, _E.HUNGRY_TIMEOUT): _T.STARVING,
    (_T.HUNGRY, _E.ALARM): _T.STARVING,
    (_T.STARVING, _E.VETO): _T.HUNGRY,
    (_T.STARVING, _E.GRANT): _T.EATING,
    (_T.STARVING, _E.REJECT): _T.STARVING,
    (_T.STARVING, _E.ALONE): _T.EATING,
    (_T.EATING, _E.ABANDON): _T.STARVING,
    (_T.HUNGRY, _E.ABANDON): _T.STARVING,
    (_T.STARVING, _E.ABANDON): _T.STARVING,
    (_T.EATING, _E.WITHDRAW): _T.OUT,
    (_T.HUNGRY, _E.WITHDRAW): _T.OUT,
    (_T.STARVING, _E.WITHDRAW): _T.OUT,
    (_T.OUT, _E.RETURN): _T.STARVING,
}

_V, _W = ViewState, ViewEvent
VIEW_TRANSITIONS: Mapping[tuple[ViewState, ViewEvent], ViewState] = {
    (_V.AGREEMENT, _W.RESERVED): _V.RESERVE,
    (_V.CHAOS, _W.RESERVED): _V.RESERVE,
    (_V.RESERVE, _W.RESERVED): _V.RESERVE,
    (_V.RESERVE, _W.CANCELLED): _V.CHAOS,
    (_V.RESERVE, _W.COMMITTED): _V.AGREEMENT,
    (_V.AGREEMENT, _W.UNCERTAIN): _V.CHAOS,
    (_V.CHAOS, _W.UNCERTAIN): _V.CHAOS,
    (_V.RESERVE, _W.UNCERTAIN): _V.CHAOS,
    (_V.CHAOS, _W.RESUMED): _V.AGREEMENT,
}


class States:
    """The two states of one node. ``moves`` counts every transition."""

    __slots__ = ("moves", "token", "view")

    def __init__(self) -> None:
        self.token = TokenState.STARVING
        self.view = ViewState.CHAOS
        self.moves: dict[tuple[Enum, Enum], int] = dict.fromkeys((*TOKEN_TRANSITIONS, *VIEW_TRANSITIONS), 0)

    def on_token(self, event: TokenEvent) -> None:
        self.moves[self.token, event] += 1
        self.token = TOKEN_TRANSITIONS[self.token, event]
        if self.token is TokenState.STARVING or self.token is TokenState.OUT:
            self.on_view(ViewEvent.UNCERTAIN)

    def on_view(self, event: ViewEvent) -> None:
        self.moves[self.view, event] += 1
        self.view = VIEW_TRANSITIONS[self.view, event]


def diagram() -> str:
    """Mermaid state diagrams of both tables."""
    blocks = []
    for title, table in (("Token states", TOKEN_TRANSITIONS), ("View states", VIEW_TRANSITIONS)):
        lines = [f"    {old.value} --> {new.value}: {event.value}" for (old, event), new in table.items()]
        start = "Starving" if table is TOKEN_TRANSITIONS else "Chaos"
        body = "\n".join(["stateDiagram-v2", f"    [*] --> {start}", *lines])
        blocks.append(f"{title}:\n\n```mermaid\n{body}\n```")
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")
