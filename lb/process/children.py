# SPDX-License-Identifier: Apache-2.0
"""Child processes of the daemon that are to run as long as it does."""

import asyncio
import logging
import os
import subprocess
from collections.abc import Sequence

RESTART_SECONDS_MIN = 0.5
RESTART_SECONDS_MAX = 30.0
STABLE_SECONDS = 60.0
STOP_SECONDS = 3.0
# The kernel ends the child when the daemon is killed.
DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "TERM", "--")
log = logging.getLogger("lb.process.children")


class Child:
    """Runs a command and starts it again when it ends, with growing pauses while it keeps ending.

    It is started in a worker thread: starting waits until the new process has begun to run the command, and on a busy
    machine the event loop must not wait for that.
    """

    def __init__(self, name: str, command: Sequence[str], *, dies_with_parent: bool) -> None:
        self.name = name
        self.starts = 0
        self._command = [*DIE_WITH_PARENT, *command] if dies_with_parent else list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Begins to keep it running; a second call changes nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def _run(self) -> None:
        pause = RESTART_SECONDS_MIN
        loop = asyncio.get_running_loop()
        while True:
            begin = loop.time()
            self.starts += 1
            try:
                self._process = await asyncio.to_thread(subprocess.Popen, self._command, stdin=subprocess.DEVNULL)
            except OSError as error:
                log.error("%s cannot be started (%s): %s", self.name, " ".join(self._command), error)
            else:
                await ended(self._process)
                log.warning(
                    "%s ended with code %s; it is started again in %.1f s", self.name, self._process.poll(), pause
                )
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
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await ended(process)
        except TimeoutError:
            process.kill()
            await ended(process)


async def ended(process: "subprocess.Popen[bytes]") -> None:
    """Returns when the process has ended, and collects it."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    process.poll()
