# SPDX-License-Identifier: Apache-2.0
"""Rates of several gateways: what they tell each other, and the sums that are shown."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import msgpack
import pytest

from lb.api.cluster_traffic import FIELDS, ROWS_MAX, packed, summed, unpacked
from lb.api.datapath import Counters, Traffic
from lb.api.sampler import Sample
from lb.cluster.traffic import CHANNEL_TRAFFIC, FRESH_S, TELL_INTERVAL_S, TOLD_BYTES_MAX, TrafficExchange
from lb.control import ControlError
from sync.events import Deliver


@dataclass
class Bus:
    """A ring's total order for gateways in one process."""

    now: float = 0.0
    takers: list[Callable[[Deliver], None]] = field(default_factory=list)
    offers: int = 0

    def gateway(self, node: int, woken: list[int]) -> TrafficExchange:
        return TrafficExchange(node, _Port(self, node), lambda: woken.append(node), lambda: self.now)


@dataclass
class _Port:
    bus: Bus
    node: int

    def offer(self, channel: int, payload: bytes) -> bool:
        assert channel == CHANNEL_TRAFFIC
        self.bus.offers += 1
        batch = cast(Deliver, SimpleNamespace(origin=self.node, payloads=lambda: [payload]))
        for taker in self.bus.takers:
            taker(batch)
        return True

    def subscribe(self, channel: int, callback: Callable[[Deliver], None]) -> None:
        assert channel == CHANNEL_TRAFFIC
        self.bus.takers.append(callback)


def asked(own: bytes, wanted: bool) -> dict[str, Any]:
    return {"own": own, "wanted": wanted}


def test_who_watches_wakes_the_others_and_sees_what_they_told() -> None:
    bus, woken = Bus(), list[int]()
    first, second, third = (bus.gateway(node, woken) for node in (1, 2, 3))
    assert first.exchange(asked(b"one", True), (1, 2, 3)) == {"others": {}, "members": 3}
    assert woken == [2, 3]
    second.exchange(asked(b"two", False), (1, 2, 3))
    third.exchange(asked(b"three", False), (1, 2, 3))
    assert woken == [2, 3], "an answer asks nobody"
    bus.now += TELL_INTERVAL_S
    assert first.exchange(asked(b"one", True), (1, 2, 3))["others"] == {2: b"two", 3: b"three"}
    assert first.exchange(asked(b"one", True), (1, 2))["others"] == {2: b"two"}, "who left is no longer counted"
    bus.now += FRESH_S
    assert first.exchange(asked(b"one", True), (1, 2, 3))["others"] == {}, "old rates are no rates"


def test_nobody_tells_more_often_than_is_due() -> None:
    bus = Bus()
    only = bus.gateway(1, [])
    for _ in range(5):
        only.exchange(asked(b"", True), (1,))
    assert (bus.offers, only.shed) == (1, 4)


@pytest.mark.parametrize("params", [{}, asked(b"x" * (TOLD_BYTES_MAX + 1), True), {"own": "text", "wanted": True}])
def test_malformed_requests_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ControlError):
        Bus().gateway(1, []).exchange(params, (1,))


def sample(packets: int, before: int) -> Sample:
    def counters(count: int) -> Counters:
        return Counters(
            services={1: Traffic(count, 100 * count, 3, 2)}, backends={7: Traffic(count, 100 * count, 3, 2)}
        )

    return Sample(11.0, counters(packets), Sample(10.0, counters(before)))


def test_rates_are_the_same_after_the_way_and_add_up() -> None:
    told = unpacked(packed(sample(500, 100)))
    assert dict(zip(FIELDS, told["backends"][7], strict=True))["packets_per_s"] == 400
    total = summed(sample(60, 50).service(1), [told["services"][1]])
    assert (total["packets"], total["packets_per_s"], total["connections_active"]) == (560, 410, 4)
    unknown = Sample(11.0, Counters()).service(1)
    assert summed(unknown, [])["packets_per_s"] is None
    assert summed(unknown, [told["services"][1]])["packets_per_s"] == 400


def test_of_too_many_backends_the_busiest_are_told() -> None:
    def counters(scale: int) -> Counters:
        return Counters(backends={number: Traffic(scale * number) for number in range(1, ROWS_MAX + 100)})

    told = unpacked(packed(Sample(11.0, counters(2), Sample(10.0, counters(1)))))
    assert len(told["backends"]) == ROWS_MAX
    assert min(told["backends"]) == 100
    assert len(packed(Sample(11.0, counters(1 << 40), Sample(10.0, counters(1))))) < TOLD_BYTES_MAX


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", msgpack.packb({}), msgpack.packb({"services": {1: [1]}, "backends": {}}), msgpack.packb(7)]
)
def test_what_is_no_table_of_rates_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        unpacked(data)
