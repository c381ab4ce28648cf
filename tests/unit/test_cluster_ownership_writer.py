# SPDX-License-Identifier: Apache-2.0
"""Decisions about VIPs are written once each, and a ring that takes nothing is not pestered."""

import asyncio

from netlab.ports import free_ports
from netlab.waiting import until

from lb.cluster.ownership import Write
from lb.cluster.ownership_writer import PAUSE_S, OwnershipWriter
from lb.cluster.state import ClusterState
from sync.config import Policy, RingConfig
from sync.driver import Ring, peer_paths

SECONDS = 0.5


async def test_a_ring_that_takes_nothing_is_asked_again_only_after_a_pause() -> None:
    own, absent = (f"127.0.0.1:{port}" for port in free_ports(2))
    config = RingConfig(node=1, policy=Policy.MAJORITY, peers={2: peer_paths([own], [absent])})
    tries: list[float] = []
    async with Ring(config, [own], scheduling="other") as ring:
        state = ClusterState(ring, 1, {"gw1": 1}, lambda: None, lambda *_: None)
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()

        def decide_anew() -> None:
            """As the cluster does: the same decision each time, as long as nothing has changed."""
            tries.append(loop.time())
            if tries[-1] - tries[0] < SECONDS:
                tasks.add(asyncio.create_task(writer.write([Write("10.0.0.1", None, None)])))

        writer = OwnershipWriter(ring, state, decide_anew)
        await until(lambda: ring.view is not None and not ring.view.serving)
        decide_anew()
        await until(lambda: all(task.done() for task in tasks) and not writer.busy)
    assert 2 < len(tries) <= SECONDS / PAUSE_S + 3
