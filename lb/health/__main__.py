# SPDX-License-Identifier: Apache-2.0
"""The health process: `python -m lb.health --control SOCKET --maps DIRECTORY`.

Asks lbd what to check and tells it what it found.
Started by lbd as its child; ends with it. Nothing here can delay the ring.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lb.configuration.model import HealthCheck
from lb.configuration.plain import from_plain
from lb.control import ControlError
from lb.control.client import ControlClient
from lb.health.checks import Target
from lb.health.scheduler import Finding, Scheduler
from lb.health.signs import SIGNS_INTERVAL_S, SignMeter, SignReader

REPORT_DELAY_S = 0.02
RETRY_S = 0.5
TOPIC = "health"


class HealthProcess:
    """Joins the scheduler with lbd's control socket; survives lbd's restart."""

    def __init__(self, control: ControlClient, maps: Path) -> None:
        self._control = control
        self._signs = SignReader(maps)
        self._scheduler = Scheduler(self._found)
        self._unsent: dict[int, Finding] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_targets())
            tasks.create_task(self._send_findings())
            tasks.create_task(self._watch_signs())

    def _found(self, finding: Finding) -> None:
        self._unsent[finding.backend_id] = finding
        self._wake.set()

    async def _follow_targets(self) -> None:
        while True:
            with contextlib.suppress(ControlError):
                await self._fetch_targets()
                self._unsent = {finding.backend_id: finding for finding in self._scheduler.findings()}
                self._wake.set()
                async for _ in self._control.events([TOPIC]):
                    await self._fetch_targets()
            await asyncio.sleep(RETRY_S)

    async def _fetch_targets(self) -> None:
        answer = await self._control.call("health.targets")
        self._scheduler.set_targets(target_from_plain(plain) for plain in answer["targets"])

    async def _watch_signs(self) -> None:
        meter = SignMeter()
        while True:
            await asyncio.sleep(SIGNS_INTERVAL_S)
            bounds = {number: target.check.signs_per_s_max for number, target in self._scheduler.targets().items()}
            watched = {number: bound for number, bound in bounds.items() if bound}
            counts = await asyncio.to_thread(self._signs.read, list(watched)) if watched else {}
            for backend_id, detail in meter.above(counts, watched, time.monotonic()):
                self._scheduler.suspect(backend_id, detail)

    async def _send_findings(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(REPORT_DELAY_S)  # so that what changes together travels together
            self._wake.clear()
            batch, self._unsent = self._unsent, {}
            try:
                await self._control.call("health.report", {"findings": [asdict(f) for f in batch.values()]})
            except ControlError:
                self._unsent = batch | self._unsent
                await asyncio.sleep(RETRY_S)
                self._wake.set()


def target_from_plain(plain: Mapping[str, Any]) -> Target:
    """The target as `HealthBoard.targets` wrote it. KeyError or ValueError for anything else."""
    return Target(
        backend_id=plain["backend_id"],
        name=plain["name"],
        address=plain["address"],
        port=plain["port"],
        host=plain["host"],
        check=from_plain(HealthCheck, plain["check"]),
        mark=plain["mark"],
    )


async def serve(control_socket: Path, maps: Path) -> None:
    """Check until told to stop (SIGTERM, SIGINT, or lbd's end where the kernel tells us)."""
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await HealthProcess(ControlClient(control_socket), maps).run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="lb-health", description="Checks the backends this gateway is to check.")
    parser.add_argument("--control", type=Path, required=True, help="lbd's control socket")
    parser.add_argument("--maps", type=Path, required=True, help="directory of the packet path's pinned maps")
    options = parser.parse_args()
    asyncio.run(serve(options.control, options.maps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
