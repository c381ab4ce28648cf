# SPDX-License-Identifier: Apache-2.0
"""A planned restart as the gateway itself and as those that wait for it see it, over a real ring of one."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
from netlab.ports import free_ports
from netlab.waiting import until

from lb.cluster import planned_restart
from lb.cluster.ownership import RESTART_PREFIX
from lb.cluster.planned_restart import FILE_NAME, LEASE_S, PlannedRestart
from lb.cluster.state import ClusterState
from lb.events import Event
from sync.config import RingConfig
from sync.driver import Ring

OWN, OTHER = 1, 2


@asynccontextmanager
async def ring_of_one() -> AsyncIterator[tuple[Ring, ClusterState]]:
    listen = [f"127.0.0.1:{port}" for port in free_ports(1)]
    ring = Ring(RingConfig(node=OWN), listen, scheduling="other")
    state = ClusterState(ring, OWN, {"gw1": OWN, "gw2": OTHER}, lambda: None, lambda *_: None)
    ring.on_view(state.take_view)
    async with ring:
        await until(lambda: state.view is not None)
        yield ring, state


async def test_the_next_daemon_keeps_the_addresses_until_it_is_back(tmp_path: Path) -> None:
    told: list[Event] = []
    async with ring_of_one() as (ring, state):
        stopping = PlannedRestart(tmp_path, ring, state, told.append)
        assert (stopping.keeping, stopping.kept_until) == (False, 0.0)
        until_when = await stopping.excuse()
        assert until_when == pytest.approx(time.monotonic() + LEASE_S, abs=LEASE_S / 2)
        assert state.restarting == {OWN}
        returned = PlannedRestart(tmp_path, ring, state, told.append)
        assert (returned.keeping, returned.kept_until) == (True, until_when)
        returned.over()
        assert (returned.keeping, returned.kept_until) == (False, 0.0)
        await until(lambda: not state.restarting)
        assert not PlannedRestart(tmp_path, ring, state, told.append).keeping
        assert told == []


@pytest.mark.parametrize("note", [b"", b"\xc1", msgpack.packb(1), msgpack.packb(["another boot", 1e12])])
async def test_a_note_that_is_none_keeps_nothing(tmp_path: Path, note: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(note)
    async with ring_of_one() as (ring, state):
        assert not PlannedRestart(tmp_path, ring, state, lambda _: None).keeping


async def test_whoever_does_not_come_back_is_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned_restart, "GRACE_S", 0.05)
    told: list[Event] = []
    async with ring_of_one() as (ring, state):
        restart = PlannedRestart(tmp_path, ring, state, told.append)
        await ring.data.put(f"{RESTART_PREFIX}{OTHER}", msgpack.packb(0))
        restart.watch()
        await until(lambda: not state.restarting)
        restart.close()
    assert [(event.kind, event.severity) for event in told] == [("node.overdue", "warning")]
    assert "gw2" in told[0].message
