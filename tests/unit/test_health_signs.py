# SPDX-License-Identifier: Apache-2.0
"""Signs in clients' traffic that a backend is ill: from the packet path's counters to words."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpf import loader
from ebpf.maps import Maps
from lb.health.signs import SignMeter, SignReader, Signs

QUIET = Signs(5, 5)
ROWS: list[tuple[Signs, Signs, float, list[str]]] = [
    # before, now, seconds between, words
    (QUIET, QUIET, 1.0, []),
    (QUIET, Signs(15, 5), 1.0, []),
    (QUIET, Signs(16, 5), 1.0, ["11 clients' connections a second refused"]),
    (QUIET, Signs(5, 17), 1.0, ["12 ICMP errors a second"]),
    (QUIET, Signs(11, 11), 1.0, ["6 clients' connections a second refused; 6 ICMP errors a second"]),
    (QUIET, Signs(45, 5), 4.0, []),
    (Signs(900, 900), QUIET, 1.0, []),
]


@pytest.mark.parametrize(("before", "now", "seconds", "words"), ROWS)
def test_more_signs_in_a_second_than_the_bound(before: Signs, now: Signs, seconds: float, words: list[str]) -> None:
    meter = SignMeter()
    assert list(meter.above({7: before}, {7: 10}, 100.0)) == [], "the first counts are a beginning"
    assert [text for _, text in meter.above({7: now}, {7: 10}, 100.0 + seconds)] == words


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    with loader.mounted_bpffs(tmp_path / "bpf") as bpffs:
        yield bpffs / "node" / "maps"


def made(pins: Path) -> Maps:
    return loader.create_maps(pins, {"connections": 64, "half_open": 64, "tables": 4})


def count(maps: Maps, target: int, refused: int) -> None:
    row = maps.target_counters.get(target)
    assert row is not None
    row["refused"][0] += refused
    row["unreachable"][-1] += 1
    maps.target_counters.set(target, row)


def test_counts_are_those_of_all_processors_and_follow_a_path_that_is_loaded_anew(pins: Path) -> None:
    reader = SignReader(pins)
    assert reader.read([7]) == {}, "no packet path, no signs"
    maps = made(pins)
    count(maps, 7, 30)
    assert reader.read([7, 8]) == {7: Signs(30, 1), 8: Signs(0, 0)}
    maps.close()
    loader.remove(pins.parent)
    assert reader.read([7]) == {}
    made(pins).close()
    assert reader.read([7]) == {7: Signs(0, 0)}
