# SPDX-License-Identifier: Apache-2.0
"""Changes on their way from the event loop to the kernel: merged, waited for, tried again."""

import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ebpf.maps import Maps
from lb.configuration.change import succeed
from lb.configuration.model import EMPTY, Backend, ClusterConfig, Service, Vip
from lb.engine import driver as engine_driver
from lb.engine import packet_engine
from lb.engine.driver import EngineDriver
from lb.engine.packet_engine import EngineError, PacketEngine
from lb.engine.plan import Health
from tests.unit.lb_paths import node_config, opened_maps

BACKENDS = tuple(Backend(f"b{n}", f"10.0.2.{n}") for n in (1, 2))
CONFIG = succeed(
    EMPTY,
    ClusterConfig(
        vips=(Vip("10.0.1.100/24", "outside"),),
        services=(Service("web", "10.0.1.100", "tcp", "dsr", 80, backends=BACKENDS),),
    ),
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PacketEngine]:
    node = node_config(tmp_path)
    with opened_maps(node) as maps:
        yield PacketEngine(maps, node)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def driver(engine: PacketEngine, told: list[str]) -> AsyncIterator[EngineDriver]:
    driver = EngineDriver(engine, told.append)
    await driver.start()
    yield driver
    await driver.stop()


class Refusal:
    """A kernel that has no memory for tables for a number of times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        self._real = packet_engine.replace_tables
        monkeypatch.setattr(packet_engine, "replace_tables", self)

    def __call__(self, maps: Maps, tables: Any) -> None:
        if self.left:
            self.left -= 1
            raise OSError(errno.ENOMEM, "no memory")
        self._real(maps, tables)


async def test_settled_means_that_it_is_in_the_kernel(driver: EngineDriver, engine: PacketEngine) -> None:
    driver.request(CONFIG)
    await driver.settled()
    assert engine.config is CONFIG
    assert engine.maps.service_table.get(1) is not None


async def test_what_comes_together_is_one_update(driver: EngineDriver, engine: PacketEngine) -> None:
    driver.request(CONFIG)
    for weight in range(100):
        driver.request(health={1: Health(True, weight)})
    await driver.settled()
    assert driver.updates <= 2
    assert engine.facts.health == {1: Health(True, 99)}


async def test_failure_is_told_once_and_tried_again(
    driver: EngineDriver, engine: PacketEngine, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_driver, "RETRY_SECONDS", 0.05)
    Refusal(monkeypatch, times=3)
    driver.request(CONFIG)
    with pytest.raises(EngineError, match="no memory"):
        await driver.settled()
    driver.request(health={1: Health(False, 0)})
    while driver.updates == 0:
        try:
            await driver.settled()
        except EngineError:
            driver.request()
    assert engine.config is CONFIG
    assert engine.facts.health == {1: Health(False, 0)}, "what failed and what came meanwhile are both there"
    assert len(told) == 1


async def test_newer_value_wins_over_one_that_failed(
    driver: EngineDriver, engine: PacketEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.request(CONFIG)
    await driver.settled()
    Refusal(monkeypatch, times=1)
    driver.request(health={1: Health(False, 0)})
    with pytest.raises(EngineError):
        await driver.settled()
    driver.request(health={2: Health(False, 0)})
    await driver.settled()
    assert engine.facts.health == {2: Health(False, 0)}


async def test_defect_in_the_engine_does_not_stop_the_driver(
    driver: EngineDriver, engine: PacketEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(engine, "update", defect)
    driver.request(CONFIG)
    with pytest.raises(EngineError, match="ZeroDivisionError: a defect"):
        await driver.settled()
    monkeypatch.undo()
    driver.request()
    await driver.settled()
    assert engine.config is CONFIG
