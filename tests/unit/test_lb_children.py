# SPDX-License-Identifier: Apache-2.0
"""Children run as long as the daemon, are started again, and never hold up the event loop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from netlab.waiting import eventually, until

from lb.process import children
from lb.process.children import Child

SLEEP = ["sleep", "60"]


def _pid(child: Child) -> int:
    assert child._process is not None
    return child._process.pid


async def test_runs_until_stopped() -> None:
    child = Child("test", SLEEP, dies_with_parent=False)
    await child.start()
    await child.start()
    await until(lambda: child.running)
    pid = _pid(child)
    await child.stop()
    assert child.starts == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_is_started_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESTART_SECONDS_MIN", 0.02)
    child = Child("test", ["false"], dies_with_parent=False)
    begin = time.monotonic()
    await child.start()
    await until(lambda: child.starts == 4)
    assert time.monotonic() - begin >= 0.02 + 0.04 + 0.08
    await child.stop()


async def test_killed_child_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESTART_SECONDS_MIN", 0.02)
    child = Child("test", SLEEP, dies_with_parent=True)
    await child.start()
    await until(lambda: child.running)
    os.kill(_pid(child), signal.SIGKILL)
    await until(lambda: child.starts == 2 and child.running)
    await child.stop()


async def test_one_that_ignores_the_request_is_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(children, "STOP_SECONDS", 0.2)
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    script = f"{ignore}; open('{tmp_path}/on', 'w'); time.sleep(60)"
    child = Child("test", [sys.executable, "-c", script], dies_with_parent=False)
    await child.start()
    await until((tmp_path / "on").exists)
    await child.stop()
    assert not child.running


async def test_command_that_does_not_exist_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "RESTART_SECONDS_MIN", 0.01)
    child = Child("test", ["/no/such/command"], dies_with_parent=False)
    await child.start()
    await until(lambda: child.starts >= 2)
    await child.stop()
    assert not child.running


PARENT = """
import asyncio
from lb.process.children import Child
async def main():
    child = Child("test", ["sleep", "61.5"], dies_with_parent=True)
    await child.start()
    while not child.running:
        await asyncio.sleep(0.01)
    print(child._process.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_dies_with_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip()
    # setpriv has to have become the command, or there is nothing yet that could be told.
    eventually(lambda: "sleep" in (child / "comm").read_text())
    parent.kill()
    parent.wait()
    eventually(lambda: not child.exists() or (child / "stat").read_text().split()[2] == "Z")
