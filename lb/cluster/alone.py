# SPDX-License-Identifier: Apache-2.0
"""What a gateway does that has found none of the others: it looks before it takes what may be theirs.

Just started, or with links that have just come back, it waits for a moment in which the ring may find the others. And
until it has met one for the first time, it asks the segments whether somebody answers for the addresses it has not
taken: those it leaves alone. What it has taken it defends like any other gateway, unless it hears at its ring's port
that the others are there and only not understood: then it asks for that as well, and gives up what they answer for.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from lb.cluster.occupancy import ASK_EVERY_S, Occupancy
from lb.configuration.model import Vip
from lb.events import Event

PATIENCE_S = 1.0


class Alone:
    """`untaken()`: the VIPs that may be somebody else's; `yielding()`: those taken that are to be given up if they are.
    `again()` is called when a wait is over, or something is to be given up; `tell(event)` is told once of each address
    that is left alone."""

    def __init__(
        self,
        occupancy: Occupancy,
        untaken: Callable[[], Iterable[Vip]],
        yielding: Callable[[], Iterable[Vip]],
        again: Callable[[], None],
        tell: Callable[[Event], object],
    ) -> None:
        # For as long as no other gateway has been found.
        self._occupancy: Occupancy | None = occupancy
        self._untaken = untaken
        self._yielding = yielding
        self._again = again
        self._tell = tell
        self._told: set[str] = set()
        self._waits_until = 0.0

    @property
    def waits(self) -> bool:
        """Whether a gateway that is alone takes nothing yet."""
        return time.monotonic() < self._waits_until

    def wait(self) -> None:
        """Give the ring time to find the others, from now on."""
        self._waits_until = time.monotonic() + PATIENCE_S
        asyncio.get_running_loop().call_later(PATIENCE_S + 0.001, self._again)

    def look_around(self) -> None:
        """Ask who has the addresses, and go on asking until another gateway has been found."""
        if self._occupancy is not None:
            yielding = list(self._yielding())
            self._occupancy.ask([*self._untaken(), *yielding])
            if self.occupied().keys() & {vip.host for vip in yielding}:
                self._again()
            asyncio.get_running_loop().call_later(ASK_EVERY_S, self.look_around)

    def occupied(self) -> dict[str, str]:
        """Address → MAC address of who answers for it; nothing once another gateway has been found."""
        return self._occupancy.occupied() if self._occupancy is not None else {}

    def left_alone(self) -> frozenset[str]:
        """The occupied addresses that are not this gateway's to hold, when somebody decides by them: each is told of
        once."""
        doubtful = {vip.host for vip in (*self._untaken(), *self._yielding())}
        occupied = {host: mac for host, mac in self.occupied().items() if host in doubtful}
        for host in sorted(occupied.keys() - self._told):
            text = f"{host} is answered for by {occupied[host]}, and no other gateway has been found: left alone"
            self._tell(Event("vip.in_use", text, subject=host, why="occupied", severity="error"))
        self._told |= occupied.keys()
        return frozenset(occupied)

    def found_others(self) -> None:
        """Another gateway is in the view: from now on the ring says who has what."""
        if self._occupancy is not None:
            self._occupancy.close()
            self._occupancy = None
