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

from lb.cluster.ownership import RESTART_PREFIX
from lb.cluster.state import ClusterState
from lb.events import Event
from sync.driver import Ring

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


class PlannedRestart:
    """Both sides of it: this gateway's own restart, and the patience with those of the others.

    Own addresses are answered for until the time in `kept_until` (monotonic seconds, 0: none is under way), whatever
    the ring says meanwhile. `tell(event)` is told of a gateway that does not come back.
    """

    def __init__(self, run_dir: Path, ring: Ring, state: ClusterState, tell: Callable[[Event], object]) -> None:
        self._run_dir = run_dir
        self._ring = ring
        self._state = state
        self._tell = tell
        self._patience = Patience(self._overdue)
        self.kept_until = noted_restart(run_dir)

    @property
    def keeping(self) -> bool:
        """Whether this gateway still answers for what it held before its restart."""
        return self.kept_until > time.monotonic()

    async def excuse(self) -> float:
        """Ask the others to wait for this gateway; returns until when the kernel has to answer without it."""
        await self._ring.data.put(self._key(self._state.node), msgpack.packb(GRACE_S))
        until = time.monotonic() + LEASE_S
        note_restart(self._run_dir, until)
        return until

    def over(self) -> None:
        """This gateway is back: nobody has to wait for it any more."""
        if self.kept_until:
            self.kept_until = 0.0
            forget_restart(self._run_dir)
        if self._state.node in self._state.restarting:
            del self._ring.data[self._key(self._state.node)]

    def watch(self) -> None:
        """Count the time of the nodes that ask for patience now."""
        self._patience.watch(self._state.restarting)

    def close(self) -> None:
        """Stop counting."""
        self._patience.close()

    def _overdue(self, node: int) -> None:
        state = self._state
        if state.coordinator == state.node and node in state.restarting:
            text = f"{state.name(node)} has not come back from its restart in time"
            self._tell(Event("node.overdue", text, severity="warning"))
            del self._ring.data[self._key(node)]

    @staticmethod
    def _key(node: int) -> str:
        return f"{RESTART_PREFIX}{node}"
