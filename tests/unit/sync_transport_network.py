# SPDX-License-Identifier: Apache-2.0
"""A virtual network for transports: seeded delay, loss, duplication, damage; time jumps from event to event."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from sync.transport import (
    Arrived,
    Asked,
    Delivered,
    KeyRing,
    Path,
    PeerConfig,
    Reason,
    Resolve,
    Transmit,
    Transport,
    TransportConfig,
    Undelivered,
    wire,
)

EVENTS_MAX = 200_000
KEYS = KeyRing([bytes(range(32))])


@dataclass
class Weather:
    """Chances per datagram, and delays in seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    damage: float = 0.0
    delay_min: float = 0.0001
    delay_max: float = 0.0001
    datagram_max: int = 65507  # larger ones vanish without a word


@dataclass
class Station:
    """A node: its transport and everything that came out of it."""

    transport: Transport
    arrived: list[Arrived] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    undelivered: list[tuple[float, Undelivered]] = field(default_factory=list)
    resolved: list[tuple[float, Resolve]] = field(default_factory=list)


class Network:
    """Nodes 1..n, each on `links` links; the address of node i on a link is ("node", i, link)."""

    def __init__(
        self,
        count: int = 2,
        *,
        seed: int = 1,
        links: int = 1,
        parallel: bool = False,
        weather: Weather | None = None,
        config: TransportConfig | None = None,
        datagram_max: int = 1472,
    ) -> None:
        self.random = random.Random(seed)
        self.weather = weather or Weather()
        self.now = 100.0
        self.config = config or TransportConfig("test", KEYS)
        self.links, self.parallel, self.datagram_max = links, parallel, datagram_max
        self.stations: dict[int, Station] = {}
        self.cut: set[tuple[int, int, int]] = set()  # (from, to, link)
        self.heard: Callable[[int, int, int, bytes], None] | None = None
        self._events: list[tuple[float, int, int, int, tuple[str, int, int], bytes]] = []
        self._count = 0
        self._nodes = range(1, count + 1)
        for node in self._nodes:
            self.start(node, incarnation=1000 + node)

    def start(self, node: int, *, incarnation: int, config: TransportConfig | None = None) -> Station:
        """(Re)start a node without memory."""
        peers = {other: self.peer_config(other) for other in self._nodes if other != node}
        transport = Transport(
            config or self.config, local=node, incarnation=incarnation, rng=random.Random(incarnation), peers=peers
        )
        self.stations[node] = Station(transport)
        return self.stations[node]

    def peer_config(self, node: int) -> PeerConfig:
        return PeerConfig(
            tuple(Path(link, ("node", node, link), self.datagram_max) for link in range(self.links)), self.parallel
        )

    def __getitem__(self, node: int) -> Station:
        return self.stations[node]

    def send(self, source: int, destination: int, payload: bytes, channel: int = 7, patience: float = 0.0) -> int:
        handle = self.stations[source].transport.send(self.now, destination, channel, payload, patience=patience)
        self.collect(source)
        return handle

    def ask(self, source: int, destination: int, handle: int) -> None:
        self.stations[source].transport.ask(self.now, destination, handle)
        self.collect(source)

    def collect(self, node: int) -> None:
        """Carry out a node's effects."""
        station = self.stations[node]
        for effect in station.transport.take():
            if type(effect) is Transmit:
                self._transmit(node, effect)
            elif type(effect) is Arrived:
                station.arrived.append(effect)
            elif type(effect) is Delivered:
                station.delivered.append(effect)
            elif type(effect) is Undelivered:
                station.undelivered.append((self.now, effect))
            elif type(effect) is Resolve:
                station.resolved.append((self.now, effect))
            elif type(effect) is Asked:
                station.asked.append(effect.peer)

    def inject(self, destination: int, data: bytes, *, source: int, link: int = 0, at: float | None = None) -> None:
        """Let a datagram appear at a node as if it came from another one's address."""
        self._count += 1
        event = (self.now if at is None else at, self._count, destination, link, ("node", source, link), data)
        heapq.heappush(self._events, event)

    def run(self, duration: float) -> None:
        """Let this many seconds pass."""
        end = self.now + duration
        for _ in range(EVENTS_MAX):
            deadlines = [(station.transport.deadline(), node) for node, station in self.stations.items()]
            deadline, node = min(deadlines)
            arrival = self._events[0][0] if self._events else inf
            if min(deadline, arrival) > end:
                self.now = end
                return
            self.now = max(self.now, min(deadline, arrival))
            if arrival <= deadline:
                _, _, node, link, source, data = heapq.heappop(self._events)
                self.stations[node].transport.receive(self.now, link, source, data)
            else:
                self.stations[node].transport.tick(self.now)
            self.collect(node)
        raise AssertionError(f"more than {EVENTS_MAX} events in {duration} s: the nodes do not come to rest")

    def _transmit(self, source: int, effect: Transmit) -> None:
        data = bytes(effect.data)
        size = effect.segment_size or max(len(data), 1)
        assert len(data) <= wire.BURST_LENGTH_MAX, "the kernel takes no larger burst"
        assert isinstance(effect.address, tuple)
        destination = effect.address[1]
        for at in range(0, len(data), size):
            datagram = data[at : at + size]
            assert len(datagram) <= self.datagram_max
            if self.heard is not None:
                self.heard(source, destination, effect.link, datagram)
            self._carry(source, destination, effect.link, datagram)

    def _carry(self, source: int, destination: int, link: int, datagram: bytes) -> None:
        weather, chance = self.weather, self.random
        if (source, destination, link) in self.cut or len(datagram) > weather.datagram_max:
            return
        for _ in range(2 if chance.random() < weather.duplication else 1):
            if chance.random() < weather.loss:
                continue
            if chance.random() < weather.damage:
                at = chance.randrange(len(datagram))
                datagram = datagram[:at] + bytes((datagram[at] ^ 1 << chance.randrange(8),)) + datagram[at + 1 :]
            delay = chance.uniform(weather.delay_min, weather.delay_max)
            self.inject(destination, datagram, source=source, link=link, at=self.now + delay)


def payloads(network: Network, node: int) -> list[bytes]:
    """What a node has been given, in order."""
    return [bytes(arrived.payload) for arrived in network[node].arrived]


def reasons(network: Network, node: int) -> list[Reason]:
    """Why a node's messages came back."""
    return [undelivered.reason for _, undelivered in network[node].undelivered]
