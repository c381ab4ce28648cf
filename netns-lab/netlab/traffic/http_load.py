# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 connections with a record of every request: which backend answered, how long it took, what went wrong.

    python -m netlab.traffic.http_load HOST PORT --connections 2000 --concurrency 64

Each connection makes `--requests` requests, `--interval` seconds apart; 0 requests: until stopped. The backend is named
by the response header X-Backend. A connection whose later request fails was lost; one never made was refused.
"""

import argparse
import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from netlab.traffic.common import Failures, describe, run, url_host

READ_LIMIT = 64 * 1024


@dataclass
class Tally:
    begun: float = field(default_factory=time.monotonic)
    connections: int = 0
    requests: int = 0
    lost: int = 0
    backends: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    last_success: float = field(default_factory=time.monotonic)
    longest_silence_s: float = 0.0
    failures: Failures = field(default_factory=Failures)

    def success(self, started: float) -> None:
        now = time.monotonic()
        self.requests += 1
        self.slowest_s = max(self.slowest_s, now - started)
        self.longest_silence_s = max(self.longest_silence_s, now - self.last_success)
        self.last_success = now

    def report(self) -> dict[str, Any]:
        return {
            "seconds": round(time.monotonic() - self.begun, 3),
            "connections": self.connections,
            "requests": self.requests,
            "lost_connections": self.lost,
            "backends": self.backends,
            "slowest_ms": round(self.slowest_s * 1000, 1),
            "longest_silence_ms": round(self.longest_silence_s * 1000, 1),
            **self.failures.report(),
        }


class Load:
    def __init__(self, options: argparse.Namespace, stop: asyncio.Event) -> None:
        self.options = options
        self.stop = stop
        self.tally = Tally()
        self.left = options.connections
        self.request = (
            f"GET {options.path} HTTP/1.1\r\nHost: {url_host(options.host)}\r\nUser-Agent: lab\r\n"
            f"Connection: {'close' if options.requests == 1 else 'keep-alive'}\r\n\r\n"
        ).encode()

    async def all(self) -> dict[str, Any]:
        workers = min(self.options.concurrency, self.options.connections or self.options.concurrency)
        await asyncio.gather(*(self.worker() for _ in range(workers)))
        return self.tally.report()

    def take_turn(self) -> bool:
        """Whether one more connection is to be made; --connections 0 goes on until stopped."""
        if self.stop.is_set():
            return False
        if self.options.connections == 0:
            return True
        self.left -= 1
        return bool(self.left >= 0)

    async def worker(self) -> None:
        while self.take_turn():
            await self.connection()
            if self.options.pause:
                await self.sleep(self.options.pause)

    async def connection(self) -> None:
        established = False
        try:
            async with asyncio.timeout(self.options.timeout):
                reader, writer = await asyncio.open_connection(self.options.host, self.options.port, limit=READ_LIMIT)
            established = True
            self.tally.connections += 1
            try:
                await self.requests(reader, writer)
            finally:
                writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.tally.lost += established
            phase = "established" if established else "connect"
            self.tally.failures.add(time.monotonic() - self.tally.begun, f"{phase}: {describe(error)}")

    async def requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done, backend = 0, ""
        while not (self.stop.is_set() and done) and (done < self.options.requests or not self.options.requests):
            started = time.monotonic()
            writer.write(self.request)
            async with asyncio.timeout(self.options.timeout):
                answered_by = await read_response(reader)
            if not backend:
                backend = answered_by
                self.tally.backends[backend] = self.tally.backends.get(backend, 0) + 1
            elif backend != answered_by:
                raise ValueError(f"backend changed from {backend} to {answered_by} within a connection")
            self.tally.success(started)
            done += 1
            if self.options.interval:
                await self.sleep(self.options.interval)

    async def sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.stop.wait()
        except TimeoutError:
            return


async def read_response(reader: asyncio.StreamReader) -> str:
    """Read one response; the backend that sent it. ValueError for anything but a complete 200."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    await reader.readexactly(int(headers.get("content-length", "0")))
    if " 200 " not in status:
        raise ValueError(f"answer {status!r}")
    return headers.get("x-backend", "unnamed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=100, help="how many in all; 0: until stopped")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1, help="per connection; 0: until stopped")
    parser.add_argument("--interval", type=float, default=0.0, help="seconds between requests of a connection")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between connections of a worker")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for one connect or one answer")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--path", default="/")
    options = parser.parse_args()
    run(lambda stop: Load(options, stop).all(), options.seconds)


if __name__ == "__main__":
    main()
