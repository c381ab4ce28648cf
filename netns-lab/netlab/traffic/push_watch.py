# SPDX-License-Identifier: Apache-2.0
"""Connections that only listen: a server pushes numbers, the client checks that none is missing and none late.

    python -m netlab.traffic.push_watch HOST --count 20 --seconds 10

The hardest case of a takeover: the client has nothing to send that could find the new gateway for it.
"""

import argparse
import asyncio
import time
from typing import Any

from netlab.topology import PUSH_PORT
from netlab.traffic.common import Failures, describe, run
from netlab.traffic.endpoint import PUSH_RECORD


class Watch:
    def __init__(self, options: argparse.Namespace, stop: asyncio.Event) -> None:
        self.options = options
        self.stop = stop
        self.begun = time.monotonic()
        self.connected = 0
        self.lost = 0
        self.records = 0
        self.stall_s = 0.0
        self.failures = Failures()

    async def all(self) -> dict[str, Any]:
        await asyncio.gather(*(self.connection() for _ in range(self.options.count)))
        return {
            "seconds": round(time.monotonic() - self.begun, 3),
            "connections": self.connected,
            "lost_connections": self.lost,
            "records": self.records,
            "longest_stall_ms": round(self.stall_s * 1000, 1),
            **self.failures.report(),
        }

    async def connection(self) -> None:
        established = False
        try:
            async with asyncio.timeout(self.options.timeout):
                reader, writer = await asyncio.open_connection(self.options.host, self.options.port)
            established = True
            self.connected += 1
            try:
                await self.listen(reader)
            finally:
                writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.lost += established
            self.failures.add(time.monotonic() - self.begun, describe(error))

    async def listen(self, reader: asyncio.StreamReader) -> None:
        expected, last = 0, time.monotonic()
        while not self.stop.is_set():
            async with asyncio.timeout(self.options.timeout):
                (number,) = PUSH_RECORD.unpack(await reader.readexactly(PUSH_RECORD.size))
            if number != expected:
                raise ValueError(f"expected number {expected}, got {number}")
            now = time.monotonic()
            self.stall_s, last = max(self.stall_s, now - last), now
            expected += 1
            self.records += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=PUSH_PORT)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds without a number that make it lost")
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    run(lambda stop: Watch(options, stop).all(), options.seconds)


if __name__ == "__main__":
    main()
