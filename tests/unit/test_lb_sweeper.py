# SPDX-License-Identifier: Apache-2.0
"""Connections expire by state, in bulk; those that stay are counted."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebpf import layout
from ebpf.layout import State
from ebpf.maps import Maps
from lb.configuration.model import Timeouts
from lb.engine.sweeper import FOREIGN_FACTOR, corrected_loads, is_expired, sweep, timeout_table
from tests.unit.lb_paths import node_config, opened_maps

NOW = 1_000_000
NODE = 3
TIMEOUTS = Timeouts()


@pytest.fixture
def maps(tmp_path: Path) -> Iterator[Maps]:
    with opened_maps(node_config(tmp_path)) as maps:
        yield maps


# State, and the seconds of silence after which it is gone.
LIMITS = [
    (State.SYN, 60),
    (State.ESTABLISHED, 432_000),
    (State.FIN_CLIENT, 120),
    (State.FIN_SERVER, 120),
    (State.CLOSING, 10),
    (State.RESET, 10),
    (State.UDP_ONCE, 30),
    (State.UDP, 120),
]


def connections(count: int, **fields: Any) -> tuple[Any, Any]:
    keys, values = np.zeros(count, layout.FLOW_KEY), np.zeros(count, layout.CONNECTION)
    keys["source"][:, 12:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(-1, 4)
    keys["protocol"] = 6
    values["owner"] = NODE
    for name, value in fields.items():
        values[name] = value
    return keys, values


@pytest.mark.parametrize(("state", "limit"), LIMITS)
def test_silence_allowed_by_state(state: State, limit: int) -> None:
    _, values = connections(4, state=state, last_seen_s=[NOW - limit - 1, NOW - limit, NOW, NOW + 5])
    assert is_expired(values, timeout_table(TIMEOUTS), NOW, NODE).tolist() == [True, False, False, False]


def test_connection_of_another_gateway_is_kept_for_longer() -> None:
    _, values = connections(2, state=State.UDP, owner=NODE + 1, last_seen_s=[NOW - 121, NOW - 120 * FOREIGN_FACTOR - 1])
    assert is_expired(values, timeout_table(TIMEOUTS), NOW, NODE).tolist() == [False, True]


def test_every_state_has_its_timeout() -> None:
    assert {state for state, _ in LIMITS} == set(State)


def test_state_of_a_later_version_does_not_stay_for_ever() -> None:
    _, values = connections(1, state=200, last_seen_s=NOW - 61)
    assert is_expired(values, timeout_table(TIMEOUTS), NOW, NODE).all()


def test_timeouts_are_those_of_the_configuration() -> None:
    _, values = connections(1, state=State.ESTABLISHED, last_seen_s=NOW - 11)
    assert is_expired(values, timeout_table(Timeouts(tcp_established_s=10)), NOW, NODE).all()


def test_sweep_removes_and_counts(maps: Maps) -> None:
    keys, values = connections(3000, state=State.ESTABLISHED, last_seen_s=NOW, service=1, opened_s=500)
    values["target"] = np.arange(3000) % 3 + 1
    values["last_seen_s"][:1000] = NOW - 500_000
    values["opened_s"][2999] = 77
    maps.connections.update(keys, values)
    half_open = connections(10, state=State.SYN, last_seen_s=NOW - 100, service=2)
    maps.half_open.update(*half_open)
    census = sweep((maps.connections, maps.half_open), TIMEOUTS, NOW, NODE, pause_s=0)
    assert (census.seen, census.expired) == (2000, 1010)
    assert len(maps.connections.dump()[0]) == 2000
    assert len(maps.half_open.dump()[0]) == 0
    assert census.by_service[1] == 2000
    assert census.by_target[:4].tolist() == np.bincount(values["target"][1000:], minlength=4).tolist()
    assert census.oldest() == {1: 77}
    assert maps.connections.get(keys[0]) is None
    assert maps.connections.get(keys[2999]) is not None


def test_loads_are_set_right(maps: Maps) -> None:
    maps.target_load.set(2, np.array((999, 0), layout.TARGET_LOAD))
    keys, values = connections(5, state=State.ESTABLISHED, last_seen_s=NOW, target=2, service=1)
    maps.connections.update(keys, values)
    census = sweep((maps.connections,), TIMEOUTS, NOW, NODE, pause_s=0)
    maps.target_load.update(*corrected_loads(census, [2, 3]))
    assert [int(maps.target_load.get(target)["active"]) for target in (2, 3)] == [5, 0]  # type: ignore[index]


def test_large_table_is_swept_in_little_processor_time(maps: Maps) -> None:
    keys, values = connections(60_000, state=State.ESTABLISHED, last_seen_s=NOW, service=1, target=1)
    maps.connections.update(keys, values)
    begin = time.process_time()
    census = sweep((maps.connections,), TIMEOUTS, NOW, NODE, pause_s=0)
    per_entry_us = (time.process_time() - begin) / census.seen * 1e6
    assert census.seen > 59_000
    assert per_entry_us < 5
