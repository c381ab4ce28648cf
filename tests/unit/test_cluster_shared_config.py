# SPDX-License-Identifier: Apache-2.0
"""The shared configuration over real rings on loopback: order, conflict, cold start, return."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netlab.ports import free_ports
from netlab.waiting import until

from lb.cluster.shared_config import SharedStore, decode, encode
from lb.configuration.model import ClusterConfig, Vip
from lb.configuration.store import FILE_NAME, VersionConflict, load, save
from lb.control import Caller
from sync.config import RingConfig
from sync.driver import Ring, peer_paths

ANNA = Caller(0, 1, "anna", "test")


def config(*hosts: str, version: int = 0) -> ClusterConfig:
    return ClusterConfig(vips=tuple(Vip(f"{host}/24", "lan") for host in hosts), version=version)


def hosts(store: SharedStore) -> list[str]:
    return [vip.host for vip in store.current.vips]


@asynccontextmanager
async def gateway(node: int, ports: Sequence[int], directory: Path) -> AsyncIterator[tuple[SharedStore, Ring]]:
    listen = [f"127.0.0.1:{ports[node - 1]}"]
    peers = {other: peer_paths(listen, [f"127.0.0.1:{port}"]) for other, port in enumerate(ports, 1) if other != node}
    # Generous: the test machine may be busy, and failure detection is not what is tested here.
    ring = Ring(RingConfig(node=node, peers=peers, failure_detection_ms=400, beacon_ms=500), listen, scheduling="other")
    store = SharedStore(directory)
    settled: list[asyncio.Task[None]] = []
    store.attach(ring)
    ring.on_complete(lambda complete: settled.append(asyncio.ensure_future(store.settle())) if complete else None)
    async with ring:
        await until(lambda: bool(settled) and settled[-1].done())
        yield store, ring
    await store.close()


async def test_a_change_reaches_all_and_is_kept_everywhere(tmp_path: Path) -> None:
    ports = free_ports(2)
    async with gateway(1, ports, tmp_path / "1") as (one, _), gateway(2, ports, tmp_path / "2") as (two, ring):
        await until(lambda: len(ring.members) == 2)
        seen: list[int] = []
        two.on_change(lambda _old, new: seen.append(new.version))
        applied = await one.apply(config("10.0.1.100"), None, ANNA)
        assert applied.version == 1
        await until(lambda: hosts(two) == ["10.0.1.100"])
        await two.close()
        assert load(tmp_path / "1" / FILE_NAME) == load(tmp_path / "2" / FILE_NAME) == applied
        assert seen == [1]


async def test_of_two_operators_at_once_one_is_told(tmp_path: Path) -> None:
    ports = free_ports(2)
    async with gateway(1, ports, tmp_path / "1") as (one, _), gateway(2, ports, tmp_path / "2") as (two, ring):
        await until(lambda: len(ring.members) == 2)
        outcomes = await asyncio.gather(
            one.apply(config("10.0.1.100"), 0, ANNA), two.apply(config("10.0.1.200"), 0, ANNA), return_exceptions=True
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert [type(outcome) for outcome in refused] == [VersionConflict]
        await until(lambda: one.current == two.current)
        assert one.current.version == 1
        assert hosts(one) in (["10.0.1.100"], ["10.0.1.200"])


async def test_without_a_version_the_second_change_follows_the_first(tmp_path: Path) -> None:
    ports = free_ports(2)
    async with gateway(1, ports, tmp_path / "1") as (one, _), gateway(2, ports, tmp_path / "2") as (two, ring):
        await until(lambda: len(ring.members) == 2)
        await asyncio.gather(one.apply(config("10.0.1.100"), None, ANNA), two.apply(config("10.0.1.200"), None, ANNA))
        await until(lambda: one.current == two.current and one.current.version == 2)


async def test_a_node_that_was_away_adopts_what_the_cluster_decided(tmp_path: Path) -> None:
    ports = free_ports(2)
    save(tmp_path / "2" / FILE_NAME, config("10.0.9.9", version=50))
    async with gateway(1, ports, tmp_path / "1") as (one, ring):
        await one.apply(config("10.0.1.100"), None, ANNA)
        async with gateway(2, ports, tmp_path / "2") as (two, _):
            await until(lambda: len(ring.members) == 2 and two.current == one.current)
            assert hosts(two) == ["10.0.1.100"]
            await two.close()
    assert load(tmp_path / "2" / FILE_NAME).version == 1


async def test_on_a_cold_start_the_newest_version_wins_whoever_comes_first(tmp_path: Path) -> None:
    ports = free_ports(2)
    save(tmp_path / "1" / FILE_NAME, config("10.0.1.1", version=5))
    save(tmp_path / "2" / FILE_NAME, config("10.0.2.2", version=7))
    async with gateway(1, ports, tmp_path / "1") as (one, ring):
        assert one.current.version == 5
        async with gateway(2, ports, tmp_path / "2") as (two, _):
            await until(lambda: len(ring.members) == 2 and one.current.version == 7)
            assert hosts(one) == hosts(two) == ["10.0.2.2"]


@given(st.lists(st.integers(1, 254), max_size=5, unique=True), st.booleans())
def test_round_trip(numbers: list[int], restored: bool) -> None:
    wanted = config(*(f"10.0.1.{number}" for number in numbers), version=3)
    assert decode(encode(wanted, restored=restored)) == (wanted, restored)


@given(st.binary(max_size=100))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a configuration"):
        decode(data)
