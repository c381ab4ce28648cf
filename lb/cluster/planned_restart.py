# SPDX-License-Identifier: Apache-2.0
"""Coming back after a planned restart without any address moving: the stretched lease, and the peers' patience.

Before it stops, a daemon writes `restart/<node>` into the shared data, lets the kernel answer for a while without it,
and notes that in its run directory. The others leave the node's addresses alone until it is back and complete, or its
time is over; the coordinator ends it. The kernel's lease ends before the others' patience does.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgpack

LEASE_S = 20.0
GRACE_S = LEASE_S + 1.0
AGAIN_S = 1.0
FILE_NAME = "restart.msgpack"


def note_restart(directory: Path, until: float) -> None:
    """Note that addresses stay answered until then (monotonic seconds; worthless after a reboot, as the clock is)."""
    (directory / FILE_NAME).write_bytes(msgpack.packb([_boot_id(), until]))


def noted_restart(directory: Path) -> float:
    """Until when an earlier daemon of this boot let the kernel answer; 0 if it did not, or if that is over."""
    try:
        boot, until = msgpack.unpackb((directory / FILE_NAME).read_bytes())
    except (OSError, ValueError, TypeError, msgpack.UnpackException):
        return 0.0
    return float(until) if boot == _boot_id() and until > time.monotonic() else 0.0


def forget_restart(directory: Path) -> None:
    """The restart is over."""
    with contextlib.suppress(OSError):
        os.unlink(directory / FILE_NAME)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Patience:
    """Counts the time that each restarting node is given; `over(node)` is called when it ends, and again after."""

    def __init__(self, over: Callable[[int], None]) -> None:
        self._over = over
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def watch(self, restarting: Iterable[int]) -> None:
        """These nodes ask for patience now."""
        wanted = set(restarting)
        loop = asyncio.get_running_loop()
        for node in wanted - self._timers.keys():
            self._timers[node] = loop.call_later(GRACE_S, self._ended, node)
        for node in self._timers.keys() - wanted:
            self._timers.pop(node).cancel()

    def close(self) -> None:
        """Stop counting."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _ended(self, node: int) -> None:
        # Told again and again: whoever coordinates by then acts on it.
        self._timers[node] = asyncio.get_running_loop().call_later(AGAIN_S, self._ended, node)
        self._over(node)
