# SPDX-License-Identifier: Apache-2.0
"""A network that loses, duplicates, reorders, delays, damages and cuts, by a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from sync.transport.effects import Transmit
from tests.sim.scenario import Scenario


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

    def heal(self) -> None:
        self.healthy = True
        self.cut.clear()

    def send(self, sender: int, effect: Transmit) -> Iterator[Delivery]:
        data, size = bytes(effect.data), effect.segment_size
        target = effect.address
        assert isinstance(target, Address)
        source = Address(sender, effect.link)
        for start in range(0, len(data), size) if size else (0,):
            yield from self._fate(source, target, data[start : start + size] if size else data)

    def _fate(self, source: Address, target: Address, data: bytes) -> Iterator[Delivery]:
        scenario, rng = self._scenario, self._rng
        after = (scenario.delay_ms + rng.random() * scenario.jitter_ms) / 1000
        if self.healthy:
            yield Delivery(after, source, target, data)
            return
        if (source.node, target.node, target.link) in self.cut or rng.random() < scenario.loss:
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
