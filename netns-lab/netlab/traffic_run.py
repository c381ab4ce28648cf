# SPDX-License-Identifier: Apache-2.0
"""A program of netlab.traffic at work in a node: started, ready, stopped, and what it reports."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from netlab import services
from netlab.state import LabError
from netlab.traffic.common import READY_VARIABLE

Inside = Callable[..., Any]
# Until a program is at work, on a busy machine.
READY_S = 90.0


class Traffic:
    """A traffic program under way; `report` once it has been finished. `inside` calls a function in its node."""

    def __init__(self, inside: Inside, program: str, arguments: list[str]) -> None:
        self.program = program
        self.report: dict[str, Any] = {}
        self._finished = False
        self._child: subprocess.Popen[str] = inside(self._start, program, arguments)

    @staticmethod
    def command(program: str, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", f"netlab.traffic.{program}", *arguments]

    def _start(self, program: str, arguments: list[str]) -> "subprocess.Popen[str]":
        """Start it, and wait until it is at work: from then on it can be stopped and will report."""
        done, pending = os.pipe()
        environment = services.whole_environment({**services.environment(), READY_VARIABLE: str(pending)})
        try:
            child = subprocess.Popen(
                self.command(program, arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                pass_fds=[pending],
            )
        finally:
            os.close(pending)
        try:
            # The pipe's other end is closed when the program is ready, or when it has ended.
            if not select.select([done], [], [], READY_S)[0]:
                child.kill()
                raise LabError(f"{program} was not ready within {READY_S:g} s")
        finally:
            os.close(done)
        return child

    def finish(self, timeout: float = 60.0) -> dict[str, Any]:
        """Stop it and take its report."""
        if not self._finished:
            if self._child.poll() is None:
                self._child.terminate()
            self._take(timeout)
        return self.report

    def wait(self, timeout: float = 120.0) -> dict[str, Any]:
        """Let it come to its own end and take its report."""
        if not self._finished:
            self._take(timeout)
        return self.report

    def _take(self, timeout: float) -> None:
        output, errors = self._child.communicate(timeout=timeout)
        self._finished = True
        if self._child.returncode != 0:
            raise RuntimeError(f"{self.program} failed with code {self._child.returncode}:\n{errors[-2000:]}")
        self.report = json.loads(output)

    def abort(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
            self._child.communicate()
