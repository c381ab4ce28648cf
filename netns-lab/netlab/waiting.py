# SPDX-License-Identifier: Apache-2.0
"""Wait for what is about to become true, instead of sleeping: for the lab, its scenarios and the other tests.

A bound ends a wait that has failed and measures nothing: it is generous, because a test machine is a busy one.
"""

import asyncio
import http.client
import inspect
import subprocess
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from netlab.state import LabError

Result = TypeVar("Result")

PATIENCE_S = 30.0
POLL_S = 0.02
# Characters of a check's source that a failure shows.
DESCRIBED_MAX = 300
# What a check may raise for "not yet".
RETRIED = (
    AssertionError,
    LookupError,
    OSError,
    ValueError,
    LabError,
    http.client.HTTPException,
    subprocess.CalledProcessError,
)


def eventually(check: Callable[[], Result], seconds: float = PATIENCE_S, what: str = "") -> Result:
    """Poll until `check` returns something true; its value. AssertionError with the last answer after `seconds`."""
    wait = _Wait(check, seconds, what)
    while not (value := wait.ask()):
        time.sleep(POLL_S)
    return value


async def until(check: Callable[[], Result], seconds: float = PATIENCE_S, what: str = "") -> Result:
    """`eventually` inside an event loop, which goes on running meanwhile."""
    wait = _Wait(check, seconds, what)
    while not (value := wait.ask()):  # noqa: ASYNC110 (what is waited for is seldom in this loop's hands)
        await asyncio.sleep(POLL_S)
    return value


class _Wait(Generic[Result]):
    """What is waited for, and for how long."""

    def __init__(self, check: Callable[[], Result], seconds: float, what: str) -> None:
        self._check, self._seconds, self._what = check, seconds, what
        self._deadline = time.monotonic() + seconds

    def ask(self) -> Result | None:
        """The check's answer, None if it raised "not yet"; AssertionError if it is not true when the time is over."""
        value: Result | None = None
        try:
            value = self._check()
            last: object = value
        except RETRIED as error:
            last = error
        if not value and time.monotonic() > self._deadline:
            awaited = self._what or _described(self._check)
            raise AssertionError(f"not within {self._seconds:g} s: {awaited}; last: {last!r}")
        return value


def _described(check: Callable[[], object]) -> str:
    """A check as its caller wrote it, or its name where there is no source."""
    try:
        lines = inspect.getsource(check).split()
    except (OSError, TypeError):
        return repr(check)
    return " ".join(lines)[:DESCRIBED_MAX]
