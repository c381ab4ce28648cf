# SPDX-License-Identifier: Apache-2.0
"""The health process: `python -m lb.health --control SOCKET`. Asks lbd what to check and tells it what it found.

Started by lbd as its child; ends with it. Nothing here can delay the ring.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lb.api.control_client import ControlClient
from lb.api.problems import ApiProblem
from lb.configuration.model import HealthCheck, from_plain
from lb.health.checks import Target
from lb.health.scheduler import Finding, Scheduler

REPORT_DELAY_S = 0.02
RETRY_S = 0.5
TOPIC = "health"


class HealthProcess:
    """Joins the scheduler with lbd's control socket; survives lbd's restart."""

    def __init__(self, control: ControlClient) -> None:
        self._control = control
        self._scheduler = Scheduler(self._found)
        self._unsent: dict[int, Finding] = {}
        self._wake = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_targets())
            tasks.create_task(self._send_findings())

    def _found(self, finding: Finding) -> None:
        self._unsent[finding.backend_id] = finding
        self._wake.set()

    async def _follow_targets(self) -> None:
        while True:
            with contextlib.suppress(ApiProblem):
                await self._fetch_targets()
                self._unsent = {finding.backend_id: finding for finding in self._scheduler.findings()}
                self._wake.set()
                async for _ in self._control.events([TOPIC]):
                    await self._fetch_targets()
            await asyncio.sleep(RETRY_S)

    async def _fetch_targets(self) -> None:
        answer = await self._control.call("health.targets")
        self._scheduler.set_targets(target_from_plain(plain) for plain in answer["targets"])

    async def _send_findings(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(REPORT_DELAY_S)  # so that what changes together travels together
            self._wake.clear()
            batch, self._unsent = self._unsent, {}
            try:
                await self._control.call("health.report", {"findings": [asdict(f) for f in batch.values()]})
            except ApiProblem:
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


async def serve(control_socket: Path) -> None:
    """Check until told to stop (SIGTERM, SIGINT, or lbd's end where the kernel tells us)."""
    main = asyncio.current_task()
    assert main is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await HealthProcess(ControlClient(control_socket)).run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="lb-health", description="Checks the backends this gateway is to check.")
    parser.add_argument("--control", type=Path, required=True, help="lbd's control socket")
    asyncio.run(serve(parser.parse_args().control))
    return 0


if __name__ == "__main__":
    sys.exit(main())
