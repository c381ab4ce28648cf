# SPDX-License-Identifier: Apache-2.0
"""Local failure detectors: the judgement on paper, the tries against the real thing."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netlab.commands import run
from netlab.waiting import until

from lb.cluster.resources import Resources, ResourceState, try_once
from lb.configuration.node import Resource
from lb.health.probes import Judge
from tests.unit.cluster_namespaces import pair

# Of a connection that nobody answers.
KERNEL_GIVES_UP_S = 60


def resource(kind: str, **options: Any) -> Resource:
    return Resource(name=options.pop("name", kind), kind=kind, **options)  # type: ignore[arg-type]


def test_rise_and_fall() -> None:
    judge = Judge(rise=2, fall=3)
    seen = [
        (judge.observe(good), judge.healthy) for good in (True, False, False, True, False, False, False, True, True)
    ]
    assert seen == [
        (True, True),
        (False, True),
        (False, True),
        (False, True),
        (False, True),
        (False, True),
        (True, False),
        (False, False),
        (True, True),
    ]


def test_a_certain_outcome_counts_at_once() -> None:
    judge = Judge(rise=2, fall=3, healthy=True)
    assert judge.observe(False, certain=True)
    assert judge.healthy is False


@given(st.integers(1, 5), st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_a_change_needs_an_unbroken_run(rise: int, fall: int, outcomes: list[bool]) -> None:
    judge = Judge(rise, fall)
    for position, good in enumerate(outcomes):
        if judge.observe(good) and position:
            needed = rise if good else fall
            assert outcomes[position + 1 - needed : position + 1] == [good] * needed


async def test_tcp() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    good = await try_once(resource("tcp", address="127.0.0.1", port=port))
    assert good.good, good.detail
    server.close()
    await server.wait_closed()
    bad = await try_once(resource("tcp", address="127.0.0.1", port=port))
    assert not bad.good
    assert "refused" in bad.detail


async def test_tcp_that_never_answers_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        fillers = []
        for _ in range(4):  # fill the backlog: further SYNs are dropped
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        began = time.monotonic()
        outcome = await try_once(resource("tcp", address="127.0.0.1", port=port, timeout_ms=100))
        for filler in fillers:
            filler.close()
    assert not outcome.good
    assert "100 ms" in outcome.detail
    assert time.monotonic() - began < KERNEL_GIVES_UP_S


def own_command() -> str:
    return Path("/proc/self/comm").read_text().strip()


async def test_process() -> None:
    comm = own_command()
    assert (await try_once(resource("process", process=comm))).good
    assert not (await try_once(resource("process", process="no-such-program"))).good


def ended(process: Path) -> bool:
    """Gone, or a zombie that only waits to be asked for."""
    try:
        return "Z" in (process / "stat").read_text().rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_script_says_why_and_takes_its_children_along(tmp_path: Path) -> None:
    assert (await try_once(resource("script", command=("true",)))).good
    bad = await try_once(resource("script", command=("sh", "-c", "echo table full; exit 3")))
    assert (bad.good, bad.detail) == (False, "exit code 3: table full")
    mark = tmp_path / "pid"
    slow = resource("script", command=("sh", "-c", f"sleep 60 & echo $! > {mark}; wait"), timeout_ms=1000)
    assert not (await try_once(slow)).good
    child = Path("/proc") / mark.read_text().strip()
    await until(lambda: ended(child))  # killed is not yet gone: the kernel ends a process when it next runs
    missing = await try_once(resource("script", command=("/no/such/script",)))
    assert "/no/such/script" in missing.detail


IN_NAMESPACE = """
import asyncio, json, sys
from lb.configuration.node import Resource
from lb.cluster.resources import Resources, try_once

async def main():
    seen = {}
    for address in ("10.9.0.2", "fd09::2"):
        options = {"address": address, "interface": "wire", "timeout_ms": 3000}
        seen["ping " + address] = (await try_once(Resource(name="p", kind="ping", **options))).good
        seen["arp " + address] = (await try_once(Resource(name="a", kind="arp", **options))).good
    silent = {"address": "10.9.0.9", "interface": "wire", "timeout_ms": 200}
    seen["silent"] = [(await try_once(Resource(name="x", kind=kind, **silent))).good for kind in ("ping", "arp")]
    print(json.dumps(seen), flush=True)
    changed = asyncio.Event()
    states = []
    def note(state):
        states.append(state.healthy)
        changed.set()
    watched = Resources([Resource(name="w", kind="link", interface="wire", interval_ms=500, fall=100)], note)
    await watched.start()
    for _ in range(3):
        await asyncio.wait_for(changed.wait(), 30)
        changed.clear()
        print(json.dumps([states[-1], watched.failed, watched.settled]), flush=True)
    await watched.stop()

asyncio.run(main())
"""


def test_ping_arp_and_link() -> None:
    with pair() as hosts:
        child = hosts.start(hosts.left, IN_NAMESPACE)
        seen = json.loads(child.read_line())
        assert seen == {
            "ping 10.9.0.2": True,
            "arp 10.9.0.2": True,
            "ping fd09::2": True,
            "arp fd09::2": True,
            "silent": [False, False],
        }
        assert json.loads(child.read_line()) == [True, [], True]
        # The other end goes down: carrier is lost here. `fall` would take a minute; the kernel's word counts at once.
        run("ip", "-n", hosts.right, "link", "set", "wire", "down")
        assert json.loads(child.read_line()) == [False, ["w"], True]
        run("ip", "-n", hosts.right, "link", "set", "wire", "up")
        assert json.loads(child.read_line()) == [True, [], True]
        child.communicate_checked()


@pytest.mark.parametrize("required", [True, False])
async def test_only_a_required_resource_takes_the_node_out(tmp_path: Path, required: bool) -> None:
    flag = tmp_path / "good"
    told: list[ResourceState] = []
    script = resource(
        "script", command=("test", "-e", str(flag)), required=required, interval_ms=50, rise=1, fall=2, critical=True
    )
    watched = Resources([script], told.append)
    assert watched.settled is not required
    await watched.start()
    try:
        await until(lambda: bool(told))
        assert (watched.failed, watched.critical_ok) == (["script"] if required else [], False)
        flag.touch()
        await until(lambda: len(told) == 2)
        assert (watched.failed, watched.critical_ok) == ([], True)
        assert [state.healthy for state in told] == [False, True]
    finally:
        await watched.stop()
