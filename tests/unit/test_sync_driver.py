# SPDX-License-Identifier: Apache-2.0
"""The ring driver on loopback: a ring of one, and of three in one process."""

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from netlab.ports import free_ports
from netlab.waiting import until

from sync.config import Policy, RingConfig
from sync.data import RequestRefused, VersionConflict
from sync.driver import Ring, peer_paths
from sync.events import Deliver, Left, Order, View
from sync.scheduling import LoopLag, Priority, set_scheduling, worker_pool
from sync.shared import Change
from sync.transport.keys import KeyRing

FAILURE_MS = 400.0  # three nodes in one process on a busy machine are late for each other


def make_rings(count: int, host: str = "127.0.0.1", **settings: Any) -> list[Ring]:
    """Rings that know each other and share a key."""
    shown = f"[{host}]" if ":" in host else host
    addresses = {n: f"{shown}:{port}" for n, port in enumerate(free_ports(count, host=host), 1)}
    keys = KeyRing([b"k" * 32])
    rings = []
    for node, own in addresses.items():
        peers = {peer: peer_paths([own], [address]) for peer, address in addresses.items() if peer != node}
        config = RingConfig(
            node=node, peers=peers, keys=keys, failure_detection_ms=FAILURE_MS, beacon_ms=500.0, **settings
        )
        rings.append(Ring(config, [own], scheduling="other"))
    return rings


@contextlib.asynccontextmanager
async def formed(count: int, **settings: Any) -> AsyncIterator[list[Ring]]:
    """So many rings in one view, complete."""
    rings = make_rings(count, **settings)
    for ring in rings:
        ring.start()
    try:
        await until(lambda: all(len(ring.members) == count and ring.data.complete for ring in rings))
        yield rings
    finally:
        for ring in rings:
            await ring.leave()
            ring.close()


async def test_what_others_wait_for_does_not_wait_for_the_idle_token() -> None:
    async with formed(3) as rings:
        delays = []
        for number in range(9):
            value, begun = b"%d" % number, time.monotonic()
            rings[2].data.hasten("news", value)
            await until(lambda value=value: all(ring.data.get("news") == value for ring in rings))  # type: ignore[misc]
            delays.append(time.monotonic() - begun)
            await asyncio.sleep(0.05)
        assert sorted(delays)[4] < rings[0].config.timers.turn_idle / 4, delays


async def test_a_ring_of_one_works_like_any_other() -> None:
    (ring,) = make_rings(1)
    async with ring:
        assert ring.members == (1,)
        assert await ring.data.put("x", b"1") > 0
        assert await ring.data.add("n", 4) == 4
        async with ring.lock("l") as lock:
            assert lock.valid
    assert ring.view is None


async def test_a_node_that_was_shut_out_for_a_while_goes_on_telling_and_can_leave_in_order() -> None:
    async with formed(2, policy=Policy.CRITICAL) as (stays, goes):

        async def listen() -> list[object]:
            return [event async for event in goes]

        listener = asyncio.create_task(listen())
        goes.set_critical_resource(False)
        await until(lambda: stays.members == (1,) and goes.view is None)
        goes.set_critical_resource(True)
        await until(lambda: len(stays.members) == len(goes.members) == 2)
        await goes.leave()
        await until(lambda: stays.members == (1,))
        assert stays.stats()["peer_unreachable"] == 0, "nobody had to find out"
        told = await asyncio.wait_for(listener, 10)
        kinds = [type(event) for event in told if isinstance(event, View | Left)]
        assert kinds.count(Left) == 2
        assert kinds[-2:] == [View, Left]


async def test_members_are_struck_off_and_named_again_while_the_ring_runs() -> None:
    """And a majority is one of those that are named."""

    def name(*named: Ring) -> None:
        for ring in named:
            ring.set_peers({other.config.node: peers[other.config.node] for other in named if other is not ring})

    async with formed(4, policy=Policy.MAJORITY) as rings:
        # Every ring has one link, so whoever reaches a node does it over the same path.
        peers = {**rings[0].config.peers, 1: rings[1].config.peers[1]}
        told: list[tuple[int, Left]] = []
        for ring in rings:
            ring.on_left(lambda left, node=ring.config.node: told.append((node, left)))  # type: ignore[misc]
        name(*rings[:2])
        await until(lambda: all(ring.view and ring.view.members in ((1, 2), (2, 1)) and ring.view.serving
                                for ring in rings[:2]))  # fmt: skip
        await until(lambda: {node for node, _ in told} == {3, 4})
        assert all(left.struck_off for _, left in told)
        assert sum(ring.stats()["peer_unreachable"] for ring in rings[:2]) == 0, "they went by themselves"
        assert await rings[0].data.put("x", b"1") > 0
        name(*rings[:3])
        await until(lambda: all(set(ring.members) == {1, 2, 3} and ring.data.complete for ring in rings[:3]))
        assert rings[2].data.get("x") == b"1"
        name(*rings)
        await until(lambda: all(len(ring.members) == 4 and ring.data.complete for ring in rings))
        await rings[3].leave()
        await until(lambda: set(rings[0].members) == {1, 2, 3})
        assert told[-1] == (4, Left(struck_off=False))


async def test_when_the_leader_dies_the_next_leads_and_one_that_was_away_learns_that_it_leads_no_more() -> None:
    async with formed(3, policy=Policy.CRITICAL) as rings:
        elections = {ring.config.node: ring.election("chief") for ring in rings}
        deposed: list[int] = []
        terms = [await elections[1].campaign()]
        waiting = {node: asyncio.create_task(elections[node].campaign()) for node in (2, 3)}
        await until(lambda: all(ring.shared.requests and ring.election("chief").leader == 1 for ring in rings[1:]))
        rings[0].close()
        (done,), _ = await asyncio.wait(waiting.values(), timeout=20, return_when=asyncio.FIRST_COMPLETED)
        leader = next(node for node, task in waiting.items() if task is done)
        heir = 5 - leader
        elections[leader].on_deposed(lambda: deposed.append(leader))
        await until(lambda: elections[heir].leader == leader and elections[leader].leading)
        rings[leader - 1].set_critical_resource(False)
        terms += [done.result(), await asyncio.wait_for(waiting[heir], 20)]
        rings[leader - 1].set_critical_resource(True)
        await until(lambda: elections[leader].leader == heir and deposed == [leader])
        assert not elections[leader].leading
        assert elections[heir].leading
        assert terms == sorted(set(terms)), "a term grows from leader to leader"


async def test_messages_come_in_one_order_at_all() -> None:
    async with formed(3) as rings:
        seen: list[list[tuple[int, bytes]]] = [[], [], []]
        for ring, log in zip(rings, seen, strict=True):

            def record(batch: Deliver, log: list[tuple[int, bytes]] = log) -> None:
                log += [(batch.origin, bytes(payload)) for payload in batch.payloads()]

            ring.subscribe(20, record)
        positions = await asyncio.gather(
            *(ring.multicast(20, [b"%d" % n, b"second"], order=Order.SAFE if n % 2 else Order.AGREED)
              for ring in rings for n in range(10))
        )  # fmt: skip
        assert len(set(positions)) == 30
        await until(lambda: all(len(log) == 60 for log in seen))
        assert seen[0] == seen[1] == seen[2]


async def test_an_encrypted_ring_over_ipv6_carries_what_any_other_does() -> None:
    async with formed(3, host="::1", encrypt=True) as rings:
        got: dict[int, list[bytes]] = {ring.config.node: [] for ring in rings}
        for ring in rings:
            ring.subscribe(20, lambda batch, log=got[ring.config.node]: log.extend(map(bytes, batch.payloads())))  # type: ignore[misc]
        # Of several fragments, and of less than one.
        sent = [b"%d" % ring.config.node * 100_000 for ring in rings] + [b"small"]
        for ring, payload in zip((*rings, rings[0]), sent, strict=True):
            await ring.multicast(20, payload)
        await until(lambda: all(log == sent for log in got.values()))
        assert await rings[1].data.put("x", b"1") > 0
        await until(lambda: rings[2].data.get("x") == b"1")
        await rings[0].leave()
        await until(lambda: all(set(ring.members) == {2, 3} for ring in rings[1:]))


async def _instead(ring: Ring, absent: str, present: str) -> None:
    async with ring.transaction() as change:
        change.require_absent(absent)
        change.require_present(present)
        change[absent] = b""


async def test_shared_data_from_every_node() -> None:
    async with formed(3) as (first, second, third):
        changes: list[Change] = []
        watch = third.data.watch("config/", changes.extend)
        version = await first.data.put("config/a", b"1")
        with pytest.raises(VersionConflict) as conflict:
            await second.data.put("config/a", b"2", version=version - 1)
        assert conflict.value.version == version
        async with second.transaction() as change:
            change.require("config/a", version)
            change["config/a"] = b"2"
            change["other"] = b"x"
        with pytest.raises(VersionConflict):
            await _instead(second, "other", "new")
        with pytest.raises(VersionConflict):
            await _instead(second, "new", "missing")
        await _instead(second, "new", "other")
        await until(lambda: third.data.get("config/a") == b"2" and third.data.get("new") == b"")
        assert [c.item.value for c in changes if c.item] == [b"1", b"2"]
        watch.cancel()
        first.data["config/a"] = b"3"
        await until(lambda: third.data.get("config/a") == b"3")
        assert len(changes) == 2
        replay: list[Change] = []
        third.data.watch("config/", replay.extend, from_version=0)
        assert [c.key for c in replay] == ["config/a"]


async def test_a_waiter_that_gives_up_leaves_no_lock_behind() -> None:
    async with formed(2) as (first, second):
        lock = first.lock("l")
        await lock.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await second.lock("l").acquire()
        await lock.release()
        third = first.lock("l")
        await asyncio.wait_for(third.acquire(), 10)
        with pytest.raises(RequestRefused):
            await second.lock("l", wait=False).acquire()
        await third.release()


async def test_primitives_across_nodes() -> None:
    async with formed(3) as rings:
        firsts = await asyncio.gather(*(ring.barrier("start") for ring in rings))
        assert sorted(firsts) == [False, False, True]
        sums = await asyncio.gather(*(ring.counter("c").add(2) for ring in rings))
        assert sorted(sums) == [2, 4, 6]
        taker = asyncio.ensure_future(rings[2].queue("q").get())
        await rings[0].queue("q").put(b"work")
        assert await taker == b"work"
        election = rings[1].election("chief")
        await election.campaign()
        await until(lambda: rings[0].election("chief").leader == 2)
        await election.resign()
        order: list[int] = []

        async def once(ring: Ring) -> None:
            async with ring.first_comer("setup") as acting:
                if acting:
                    await asyncio.sleep(0.05)
                    order.append(ring.config.node)
                else:
                    assert order, "passed before the first comer was done"

        await asyncio.gather(*(once(ring) for ring in rings))
        assert len(order) == 1


async def test_a_queue_element_comes_back_when_its_taker_fails() -> None:
    async with formed(2) as (first, second):
        await first.queue("q").put(b"a")

        async def fail() -> None:
            async with second.queue("q").take() as value:
                assert value == b"a"
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await first.queue("q").get(wait=False) == b"a"


async def test_direct_messages_and_events() -> None:
    async with formed(2) as (first, second):
        got: list[bytes] = []
        second.subscribe_peer(30, lambda message: got.append(bytes(message.payload)))
        await first.send(2, 30, b"x" * 200_000)
        assert got == [b"x" * 200_000]
        events = aiter(second)
        assert isinstance(await anext(events), View)
        following = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await first.multicast(40, b"unclaimed")
        message = await asyncio.wait_for(following, 5)
        assert getattr(message, "payload", None) == b"unclaimed"


async def test_a_failing_callback_disturbs_nobody() -> None:
    async with formed(2) as (first, second):
        got: list[int] = []

        def fail(batch: Deliver) -> None:
            raise RuntimeError

        second.subscribe(20, fail)
        second.subscribe(20, lambda batch: got.append(batch.messages))
        await first.multicast(20, b"x")
        await until(lambda: got == [1])
        assert second.counters["callback_errors"] == 1


async def test_back_pressure_is_told_and_ends() -> None:
    rings = make_rings(1, queue_bytes_max=1 << 20, message_bytes_max=1 << 18)
    async with rings[0] as ring:
        payload = bytes(1 << 17)
        taken = 0
        while ring.offer(20, payload) and taken < 100:
            taken += 1
        assert 0 < taken <= 100
        await asyncio.wait_for(ring.wait_for_room(), 5)
        assert ring.offer(20, payload)


def test_channels_of_the_ring_itself_cannot_be_subscribed() -> None:
    (ring,) = make_rings(1)
    with pytest.raises(ValueError, match="16"):
        ring.subscribe(1, lambda batch: None)


async def test_scheduling_is_put_back_when_the_ring_closes() -> None:
    before = os.sched_getscheduler(0)
    (ring,) = make_rings(1)
    ring._engine._scheduling = "auto"
    async with ring:
        pass
    assert os.sched_getscheduler(0) == before


async def test_what_is_long_overdue_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (ring,) = make_rings(1)
    async with ring:
        deadlines = iter([-math.inf])
        deadline = ring._node.deadline
        monkeypatch.setattr(ring._node, "deadline", lambda: next(deadlines, None) or deadline())
        visits = ring.counters["token_visits"]
        ring._engine.rearm()
        await until(lambda: ring.counters["token_visits"] > visits + 1)
        assert ring.stats()["loop_lag_max_ms"] < 10_000


async def test_a_loop_may_keep_its_own_workers() -> None:
    loop = asyncio.get_running_loop()
    with worker_pool("other", 1) as pool:
        loop.set_default_executor(pool)
        own = await asyncio.to_thread(threading.get_ident)
        port = free_ports(1)[0]
        async with Ring(RingConfig(node=1), [f"127.0.0.1:{port}"], scheduling="other", workers=0):
            assert await asyncio.to_thread(threading.get_ident) == own


@pytest.mark.parametrize(("ring", "workers"), [("auto", 1), ("rr:1", 1), ("rr:5", 4)])
def test_the_ring_may_interrupt_its_workers(ring: str, workers: int) -> None:
    before = Priority()
    try:
        set_scheduling("rr:2")
    except PermissionError:
        pytest.skip("real-time priorities are not permitted here")
    finally:
        before.restore()
    with worker_pool(ring, 2) as pool:
        policy = pool.submit(os.sched_getscheduler, 0).result()
        level = pool.submit(os.sched_getparam, 0).result().sched_priority
    assert (policy & ~os.SCHED_RESET_ON_FORK, level) == (os.SCHED_RR, workers)


def test_no_worker_is_started_when_work_comes() -> None:
    """Starting one holds up whoever submits: the event loop."""
    with worker_pool("other", 3) as pool:
        before = threading.active_count()
        release = threading.Event()
        busy = [pool.submit(release.wait, 10) for _ in range(8)]
        assert threading.active_count() == before
        release.set()
        assert all(work.result() for work in busy)


def test_unknown_scheduling_is_refused() -> None:
    with pytest.raises(ValueError, match="auto"):
        set_scheduling("fast")


def test_loop_lag_counts_by_bound() -> None:
    lag = LoopLag()
    for late in (0.0005, 0.0015, 0.7):
        lag.add(late)
    figures = lag.figures()
    assert (figures["loop_lag_within_1_ms"], figures["loop_lag_within_2_ms"]) == (1, 1)
    assert figures["loop_lag_above_500_ms"] == 1
    assert figures["loop_lag_max_ms"] == 700
