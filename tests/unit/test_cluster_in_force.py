# SPDX-License-Identifier: Apache-2.0
"""From the shared configuration to a packet path's maps, and what is waited for in between: real ring, real maps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from netlab.waiting import until

from lb.cluster import in_force
from lb.cluster.in_force import InForce
from lb.cluster.ownership import NODE_PREFIX, NodeFacts, pack
from lb.cluster.shared_config import SharedStore
from lb.cluster.state import ClusterState
from lb.configuration.model import ClusterConfig
from lb.control import Caller
from lb.engine.driver import EngineDriver
from lb.engine.packet_engine import PacketEngine
from sync.driver import Ring
from tests.unit.lb_paths import node_config, opened_maps
from tests.unit.test_cluster_planned_restart import OTHER, OWN, ring_of_one
from tests.unit.test_lb_engine_driver import CONFIG, Refusal

OPERATOR = Caller(0, 1, "root", "test")


@dataclass
class Gateway:
    """The parts of a gateway between its ring and its packet path."""

    ring: Ring
    state: ClusterState
    store: SharedStore
    following: InForce
    taken: list[ClusterConfig]


@asynccontextmanager
async def gateway(directory: Path) -> AsyncIterator[Gateway]:
    node = node_config(directory)
    with opened_maps(node) as maps:
        driver, taken = EngineDriver(PacketEngine(maps, node), lambda _: None), list[ClusterConfig]()
        async with ring_of_one() as (ring, state):
            store = SharedStore(directory)
            store.attach(ring)
            following = InForce(store, driver, state, taken.append)
            store.on_change(lambda _, new: driver.request(new))
            store.on_change(lambda _, new: following.follow())
            await driver.start()
            task = asyncio.create_task(following.run())
            try:
                yield Gateway(ring, state, store, following, taken)
            finally:
                task.cancel()
                await store.close()
                await driver.stop()


async def test_a_change_is_in_force_when_the_packet_path_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that refuses it at first has it when it was tried again."""
    refusal = Refusal(monkeypatch, 1)
    monkeypatch.setattr("lb.engine.driver.RETRY_SECONDS", 0.05)
    monkeypatch.setattr(in_force, "RETRY_S", 0.05)
    async with gateway(tmp_path) as here:
        before = here.following.is_current
        await here.store.apply(CONFIG, None, OPERATOR)
        assert (before, here.following.is_current) == (True, False), "the path has not been asked yet"
        await until(lambda: here.following.is_current)
        assert refusal.left == 0
        assert here.taken == [here.store.current]


async def test_what_the_others_have_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_force, "EVERYWHERE_TIMEOUT_S", 0.2)
    async with gateway(tmp_path) as here:

        async def tell(node: int, version: int) -> None:
            await here.ring.data.put(f"{NODE_PREFIX}{node}", pack(NodeFacts(name=f"gw{node}", config_version=version)))
            here.following.news()

        assert here.state.view is not None
        here.state.take_view(here.state.view._replace(members=(OWN, OTHER)))
        await tell(OWN, 2)
        await tell(OTHER, 1)
        assert await here.following.everywhere(1) == []
        assert await here.following.everywhere(2) == ["gw2"]
        monkeypatch.setattr(in_force, "EVERYWHERE_TIMEOUT_S", 30.0)
        waiting = asyncio.create_task(here.following.everywhere(2))
        await tell(OTHER, 2)
        assert await waiting == []
