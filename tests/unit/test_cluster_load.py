# SPDX-License-Identifier: Apache-2.0
"""The load of VIPs: from the packet path's counters to the planner's weights."""

import numpy as np
import pytest

from lb.cluster.load import (
    AVERAGE_S,
    LOCAL_CONNECTION_PACKETS,
    QUIET_PACKETS_PER_S,
    VipRates,
    packets_counted,
    sum_of,
    weight,
)
from lb.cluster.placement import Policy, Reason, Seat, plan
from lb.cluster.state import wish_of
from lb.configuration.model import Backend, ClusterConfig, Service, Vip

BALANCED = Policy(rebalance="load", hysteresis_percent=25.0)


def service(number: int, address: str, *backends: int, forward: str = "nat") -> Service:
    return Service(
        name=f"s{number}",
        address=address,
        port=80,
        protocol="tcp",
        forward=forward,  # type: ignore[arg-type]
        backends=tuple(Backend(name=f"b{each}", address=f"10.0.2.{each}", id=each) for each in backends),
        id=number,
    )


def test_packets_count_for_the_address_of_their_service() -> None:
    config = ClusterConfig(
        services=(
            service(1, "10.0.1.100", 1, 2),
            service(2, "10.0.1.100", 3),
            service(3, "10.0.1.101", forward="local"),
        )
    )
    packets, opened = np.array([0, 10, 20, 30]), np.array([0, 5, 5, 7])
    counts = packets_counted(config, packets, opened)
    assert counts == {
        ("10.0.1.100", 1, 1): 10,
        ("10.0.1.100", 1, 2): 20,
        ("10.0.1.100", 2, 3): 30,
        ("10.0.1.101", 3, 0): 7 * LOCAL_CONNECTION_PACKETS,
    }


def test_a_rate_is_reached_in_time_and_a_burst_is_smoothed() -> None:
    rates, counter = VipRates(), ("a", 1, 1)
    for second in range(int(5 * AVERAGE_S) + 1):
        rates.take(float(second), {counter: 1000 * second})
    assert rates.rates["a"] == pytest.approx(1000, rel=0.02)
    before = 1000 * int(5 * AVERAGE_S)
    rates.take(5 * AVERAGE_S + 1, {counter: before + 11_000})
    assert rates.rates["a"] < 1000 + 10_000 * 1.1 / AVERAGE_S


def test_new_counters_and_counters_that_went_back_are_no_traffic() -> None:
    rates = VipRates()
    rates.take(0.0, {("a", 1, 1): 5_000_000})
    rates.take(1.0, {("a", 1, 1): 0, ("a", 1, 2): 9_000_000})
    assert rates.rates == {"a": 0.0}


def test_reports_of_all_gateways_are_added() -> None:
    assert sum_of([{"a": 1.0, "b": 2.0}, {}, {"a": 3.0}]) == {"a": 4.0, "b": 2.0}


def moves(loads: dict[str, float], owners: dict[str, int]) -> list[tuple[str, int | None, int | None]]:
    seats = [Seat(node, frozenset({"outside"})) for node in (1, 2)]
    vips = [Vip(address=f"{host}/24", segment="outside") for host in owners]
    wishes = [wish_of(vip, {}, weight(loads.get(vip.host, 0.0))) for vip in vips]
    planned = plan(seats, wishes, owners, BALANCED, may_rebalance=True)
    assert all(move.reason is Reason.REBALANCE for move in planned)
    return [(move.address, move.source, move.target) for move in planned]


def test_the_busy_address_stays_and_the_others_give_way() -> None:
    owners = {"10.0.1.1": 1, "10.0.1.2": 1, "10.0.1.3": 2}
    loads = {"10.0.1.1": 50_000.0, "10.0.1.2": 30_000.0}
    assert moves(loads, owners) == [("10.0.1.2", 1, 2)]


def test_after_the_move_nothing_goes_back_within_the_hysteresis() -> None:
    owners = {"10.0.1.1": 1, "10.0.1.2": 2, "10.0.1.3": 2}
    for wobble in (0.8, 1.0, 1.2):
        assert moves({"10.0.1.1": 50_000.0 * wobble, "10.0.1.2": 30_000.0}, owners) == []


def test_differences_among_quiet_addresses_move_nothing() -> None:
    owners = {"10.0.1.1": 1, "10.0.1.2": 2}
    assert moves({"10.0.1.1": 0.9 * QUIET_PACKETS_PER_S, "10.0.1.2": 1.0}, owners) == []
