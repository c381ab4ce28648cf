# SPDX-License-Identifier: Apache-2.0
"""Worker threads are never below the ring in the eyes of the scheduler, and never above it."""

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from lb.configuration.node import Ring
from lb.process.workers import worker_pool, worker_priority
from tests.unit.lb_paths import node_config

# The ring's scheduling, and the priority of the workers.
PRIORITIES = [("auto", 1), ("rr:1", 1), ("rr:5", 4), ("nice:-10", 0), ("other", 0)]


@pytest.mark.parametrize(("scheduling", "priority"), PRIORITIES)
def test_priority_follows_the_ring(tmp_path: Path, scheduling: str, priority: int) -> None:
    node = replace(node_config(tmp_path), ring=Ring(("10.0.0.1",), "key", scheduling=scheduling))
    assert worker_priority(node) == priority


def test_alone_no_thread_is_real_time(tmp_path: Path) -> None:
    assert worker_priority(node_config(tmp_path)) == 0


def test_threads_have_it_and_their_children_do_not(tmp_path: Path) -> None:
    node = replace(node_config(tmp_path), ring=Ring(("10.0.0.1",), "key", scheduling="rr:3"))
    own = os.sched_getscheduler(0)
    command = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
    with worker_pool(node, 1, "test") as pool:
        policy = pool.submit(os.sched_getscheduler, 0).result() & ~os.SCHED_RESET_ON_FORK
        level = pool.submit(os.sched_getparam, 0).result().sched_priority
        child = pool.submit(subprocess.check_output, command, text=True).result()
    assert (policy, level) == (os.SCHED_RR, 2)
    assert int(child) == os.SCHED_OTHER
    assert os.sched_getscheduler(0) == own, "the caller's own thread is left alone"


def test_no_thread_is_started_when_work_comes(tmp_path: Path) -> None:
    """Starting one holds up whoever submits: the event loop."""
    with worker_pool(node_config(tmp_path), 3, "ready") as pool:
        before = threading.active_count()
        assert before >= 4
        release = threading.Event()
        busy = [pool.submit(release.wait, 10) for _ in range(8)]
        assert threading.active_count() == before
        release.set()
        assert all(work.result() for work in busy)
