# SPDX-License-Identifier: Apache-2.0
"""Child processes of the daemon that are to run as long as it does."""

import asyncio
import ctypes
import logging
import signal
from collections.abc import Sequence

RESTART_SECONDS_MIN = 0.5
RESTART_SECONDS_MAX = 30.0
STABLE_SECONDS = 60.0
STOP_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
log = logging.getLogger("lb.children")


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """Runs a command and starts it again when it ends, with growing pauses while it keeps ending.

    `dies_with_parent`: the kernel ends it when the daemon is killed.
    """

    def __init__(self, name: str, command: Sequence[str], *, dies_with_parent: bool) -> None:
        self.name = name
        self.starts = 0
        self._command = list(command)
        self._dies_with_parent = dies_with_parent
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def _run(self) -> None:
        pause = RESTART_SECONDS_MIN
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            self.starts += 1
            before = _die_with_parent if self._dies_with_parent else None
            try:
                self._process = await asyncio.create_subprocess_exec(*self._command, preexec_fn=before)
            except OSError as error:
                log.error("%s cannot be started (%s): %s", self.name, " ".join(self._command), error)
            else:
                code = await self._process.wait()
                log.warning("%s ended with code %d; it is started again in %.1f s", self.name, code, pause)
            if loop.time() - begin > STABLE_SECONDS:
                pause = RESTART_SECONDS_MIN
            await asyncio.sleep(pause)
            pause = min(pause * 2, RESTART_SECONDS_MAX)

    async def stop(self) -> None:
        """Ends it: asked first, then forced."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
