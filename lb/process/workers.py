# SPDX-License-Identifier: Apache-2.0
"""Threads for work that must not hold up the event loop.

With a ring the event loop's thread has a real-time priority. A worker thread holds the interpreter's lock now and
then; if it were an ordinary thread, a busy machine could take the processor from it just then, and the ring would
wait for it, token and all (priority inversion). So workers get a real-time priority too, one below the ring's. Child
processes get none: they hold no lock of ours.
"""

import contextlib
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

from lb.configuration.node import NodeConfig

_AUTOMATIC_PRIORITY = 1
START_SECONDS_MAX = 30


def worker_priority(node: NodeConfig) -> int:
    """The SCHED_RR priority of worker threads; 0: they are ordinary threads."""
    if node.ring is None:
        return 0
    policy, _, level = node.ring.scheduling.partition(":")
    if policy == "auto":
        return _AUTOMATIC_PRIORITY
    return max(1, int(level) - 1) if policy == "rr" else 0


def _take_priority(priority: int) -> None:
    if priority:
        # Without the permission the ring's own thread does not have it either, and there is nothing to invert.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def worker_pool(node: NodeConfig, count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads with the priority that the node's workers have.

    All of them are started here. A pool that starts them when work comes makes the submitter wait until the new thread
    has run for the first time, and on a busy machine the event loop would wait for it for a tenth of a second.
    """
    priority = worker_priority(node)
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_take_priority, initargs=(priority,))
    all_there = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(all_there.wait, START_SECONDS_MAX)
    all_there.wait(START_SECONDS_MAX)
    return pool


def spawn_with_fork() -> None:
    """Child processes are made with fork, not vfork, in this process.

    vfork is cheaper, but the thread that calls it stands still, with the interpreter's lock in its hands, until the
    child has begun its command; and the child has no real-time priority. Measured on two saturated cores: the event
    loop stands still for 56 to 69 ms with vfork, for 8 to 18 ms with fork.
    """
    # The knob of the library reference, section "Disabling use of vfork()".
    setattr(subprocess, "_USE_VFORK", False)  # noqa: B010
