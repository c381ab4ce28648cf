# SPDX-License-Identifier: Apache-2.0
"""A gateway fetches its group's table: from whom, how often, and when it is complete."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from netlab.waiting import until

from lb.connections import joining
from lb.connections.joining import Joining
from lb.connections.transfer import TransferError
from sync.events import View

OWN = 1
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "FETCH_RETRY_S", 0.0)


def view(number: int, *members: int, joined: tuple[int, ...] = ()) -> View:
    incarnations = tuple(100 + node for node in members)
    return View(number, members, min(members), frozenset(joined), True, number, incarnations, members[0])


@dataclass
class Table:
    """A table that `answer` fills, or not; what it was asked for and what was told of it."""

    answer: Callable[[int], None] = lambda giver: None
    asked: list[int] = field(default_factory=list)
    told: list[bool] = field(default_factory=list)
    fetching: int = 0
    hold: asyncio.Event | None = None

    async def fetch(self, giver: int) -> None:
        self.asked.append(giver)
        self.fetching += 1
        assert self.fetching == 1, "two fetches at once"
        try:
            if self.hold is not None:
                await self.hold.wait()
            self.answer(giver)
        finally:
            try:
                await asyncio.sleep(0.01)  # a cancelled fetch takes a moment to end, too
            finally:
                self.fetching -= 1

    def joining(self) -> Joining:
        return Joining(OWN, "table", self.fetch, self.told.append)


async def test_the_first_of_a_group_is_complete_at_once() -> None:
    table = Table()
    joiner = table.joining()
    joiner.take_view(view(1, OWN))
    assert (joiner.complete, table.told, table.asked) == (True, [True], [])


async def test_who_refuses_is_asked_last_and_who_is_silent_no_more() -> None:
    def answer(giver: int) -> None:
        if giver == 2:
            raise TransferError("silent", silent=True)
        if len(table.asked) < 5:
            raise TransferError("refused")

    table = Table(answer)
    joiner = table.joining()
    joiner.take_view(view(1, OWN, 2, 3, 4, 5, joined=(OWN, 5)))
    await until(lambda: joiner.complete)
    assert table.asked == [2, 3, 4, 3, 3]
    assert table.told == [True]


async def test_it_goes_on_without_when_nobody_is_left_or_gives() -> None:
    def refuse(giver: int) -> None:
        raise TransferError("refused")

    table = Table(refuse)
    joiner = table.joining()
    joiner.take_view(view(1, OWN, 2, joined=(OWN,)))
    await until(lambda: joiner.complete)
    assert table.asked == [2] * joining.FETCH_ATTEMPTS_MAX
    joiner.take_view(view(2, OWN, joined=(OWN,)))
    await until(lambda: joiner.complete)
    assert table.told == [True, False, True]


async def test_whoever_joins_again_fetches_again_and_is_complete_only_then() -> None:
    table = Table(hold=asyncio.Event())
    joiner = table.joining()
    for number in (1, 3):
        joiner.take_view(view(number, OWN, 2, joined=(OWN,)))
        await until(lambda: joiner.fetching and table.fetching == 1)
        joiner.take_view(view(number + 1, OWN, 2, 3, joined=(3,)))
        await asyncio.sleep(0.03)
        assert (joiner.complete, table.fetching) == (False, 1)
    table.hold.set()  # type: ignore[union-attr]
    await until(lambda: joiner.complete)
    assert table.asked == [2, 2]
    await joiner.close()
