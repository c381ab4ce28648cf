# SPDX-License-Identifier: Apache-2.0
"""A network that loses, duplicates, reorders, delays, damages and cuts, by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

from sync.transport.effects import Transmit
from tests.sim.scenario import Scenario

ASK_AGAIN_S = 1.0
"""Linux repeats a question for a neighbour after so long (`retrans_time_ms`)."""


class Address(NamedTuple):
    """A node's address on a link."""

    node: int
    link: int


class Delivery(NamedTuple):
    """A datagram on its way."""

    after: float
    source: Address
    target: Address
    data: bytes


class Network:
    """Decides the fate of each datagram. Healed, it only delays."""

    def __init__(self, scenario: Scenario, rng: random.Random) -> None:
        self._scenario = scenario
        self._rng = rng
        self.cut: set[tuple[int, int, int]] = set()
        """(from node, to node, link): directions that carry nothing."""
        self.healthy = False
        self._asked: dict[tuple[int, int, int], float] = {}
        """Ways whose neighbour entry is unresolved -> when it was last asked for."""

    def heal(self) -> None:
        self.healthy = True
        self.cut.clear()
        self._asked.clear()

    def pull(self, now: float, node: int, link: int) -> set[tuple[int, int, int]]:
        """The ways that close when this node's cable is pulled.

        It forgets its neighbours with the carrier, and has asked for each at another time before the cable is mended.
        """
        out = [(node, other, link) for other in range(1, self._scenario.nodes + 1) if other != node]
        self._asked.update((way, now - self._rng.uniform(0, ASK_AGAIN_S)) for way in out)
        return {*out, *((other, node, link) for _, other, link in out)}

    def resolve(self, way: tuple[int, int, int]) -> None:
        """The neighbour is to be asked for with the next datagram, whenever it was last."""
        if way in self._asked:
            self._asked[way] = -inf

    def _blocked(self, now: float, way: tuple[int, int, int]) -> bool:
        """Is this way closed? An unresolved neighbour is asked for once in a while, and needs to hear and be heard."""
        if way in self._asked and now >= self._asked[way] + ASK_AGAIN_S:
            back = (way[1], way[0], way[2])
            self._asked[way] = now
            if way not in self.cut:
                self._asked.pop(back, None)  # it learns from the question
                if back not in self.cut:
                    del self._asked[way]
        return way in self.cut or way in self._asked

    def send(self, now: float, sender: int, effect: Transmit) -> Iterator[Delivery]:
        data, size = bytes(effect.data), effect.segment_size
        target = effect.address
        assert isinstance(target, Address)
        source = Address(sender, effect.link)
        for start in range(0, len(data), size) if size else (0,):
            yield from self._fate(now, source, target, data[start : start + size] if size else data)

    def _fate(self, now: float, source: Address, target: Address, data: bytes) -> Iterator[Delivery]:
        scenario, rng = self._scenario, self._rng
        after = (scenario.delay_ms + rng.random() * scenario.jitter_ms) / 1000
        if self._blocked(now, (source.node, target.node, target.link)):
            return
        if self.healthy:
            yield Delivery(after, source, target, data)
            return
        if rng.random() < scenario.loss:
            return
        if rng.random() < scenario.reordering:
            after += rng.random() * 0.01
        if rng.random() < scenario.corruption:
            data = self._damage(data)
        yield Delivery(after, source, target, data)
        if rng.random() < scenario.duplication:
            yield Delivery(after + rng.random() * 0.03, source, target, data)

    def _damage(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[self._rng.randrange(len(damaged))] ^= 1 << self._rng.randrange(8)
        return bytes(damaged)
