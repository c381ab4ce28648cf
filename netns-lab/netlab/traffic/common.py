# SPDX-License-Identifier: Apache-2.0
"""What the traffic programs share: ending on a signal, and the result as one JSON line."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

ERRORS_KEPT = 20
# Names the descriptor of a pipe that is closed when the program is ready.
READY_VARIABLE = "LAB_READY_FD"


class Failures:
    """Counts every failure by its text and keeps the first few with their time."""

    def __init__(self) -> None:
        self.count = 0
        self.by_text: dict[str, int] = {}
        self.first: list[dict[str, object]] = []

    def add(self, at: float, text: str) -> None:
        self.count += 1
        self.by_text[text] = self.by_text.get(text, 0) + 1
        if len(self.first) < ERRORS_KEPT:
            self.first.append({"at": round(at, 3), "error": text})

    def report(self) -> dict[str, object]:
        return {"failed": self.count, "errors": self.by_text, "first_errors": self.first}


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def announce_ready() -> None:
    """Tell whoever started this program, if it asked for it, that signals are handled and work begins."""
    descriptor = os.environ.pop(READY_VARIABLE, None)
    if descriptor is not None:
        os.close(int(descriptor))


def run(body: Callable[[asyncio.Event], Awaitable[dict[str, Any]]], seconds: float | None) -> None:
    """Run `body` until it returns; its event is set after `seconds`, or at SIGTERM or SIGINT."""

    async def main() -> dict[str, Any]:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if seconds is not None:
            loop.call_later(seconds, stop.set)
        announce_ready()
        return await body(stop)

    json.dump(asyncio.run(main()), sys.stdout)
    sys.stdout.write("\n")


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
