# SPDX-License-Identifier: Apache-2.0
"""Parallel downloads over HTTP, checked by hash, with the longest time in which no byte came.

    python -m netlab.traffic.downloads HOST PORT --path /file/name --count 10 --sha256 HEX --rate 2000000

With --rate the client reads no faster than that, evenly, with a small receive buffer: the download lasts and a break in
it shows as a stall. With --repeat every download starts again when it is complete, until stopped; a download cut short
by the stop itself is neither complete nor failed.
"""

import argparse
import asyncio
import hashlib
import socket
import time
from typing import Any

from netlab.traffic.common import Failures, describe, run, url_host

CHUNK = 256 * 1024
RATED_CHUNK = 32 * 1024


class Downloads:
    def __init__(self, options: argparse.Namespace, stop: asyncio.Event) -> None:
        self.options = options
        self.stop = stop
        self.begun = time.monotonic()
        self.complete = 0
        self.bytes = 0
        self.stalls_ms: list[float] = []
        self.failures = Failures()

    async def all(self) -> dict[str, Any]:
        await asyncio.gather(*(self.worker() for _ in range(self.options.count)))
        return {
            "seconds": round(time.monotonic() - self.begun, 3),
            "complete": self.complete,
            "bytes": self.bytes,
            "longest_stall_ms": round(max(self.stalls_ms, default=0.0), 1),
            **self.failures.report(),
        }

    async def worker(self) -> None:
        while True:
            await self.download()
            if self.stop.is_set() or not self.options.repeat:
                return

    async def download(self) -> None:
        try:
            async with asyncio.timeout(self.options.timeout):
                reader, writer = await self.connect()
            try:
                writer.write(
                    f"GET {self.options.path} HTTP/1.1\r\nHost: {url_host(self.options.host)}\r\n"
                    "Connection: close\r\n\r\n".encode()
                )
                await self.body(reader)
            finally:
                writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            self.failures.add(time.monotonic() - self.begun, describe(error))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self.options.rate:
            return await asyncio.open_connection(self.options.host, self.options.port, limit=CHUNK)
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RATED_CHUNK)
        opened.setblocking(False)
        await asyncio.get_running_loop().sock_connect(opened, (self.options.host, self.options.port))
        return await asyncio.open_connection(sock=opened, limit=RATED_CHUNK)

    async def pace(self, begun: float, received: int) -> None:
        if self.options.rate:
            await asyncio.sleep(max(0.0, begun + received / self.options.rate - time.monotonic()))

    async def body(self, reader: asyncio.StreamReader) -> None:
        async with asyncio.timeout(self.options.timeout):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if " 200 " not in head.split("\r\n")[0]:
            raise ValueError(f"answer {head.splitlines()[0]!r}")
        left = int(head.partition("content-length:")[2].split("\r\n")[0])
        digest, begun, received, stall = hashlib.sha256(), time.monotonic(), 0, 0.0
        while left and not (self.stop.is_set() and self.options.repeat):
            asked = time.monotonic()
            async with asyncio.timeout(self.options.timeout):
                data = await reader.read(min(left, RATED_CHUNK if self.options.rate else CHUNK))
            if not data:
                raise ValueError(f"connection closed {left} bytes early")
            stall = max(stall, time.monotonic() - asked)
            digest.update(data)
            left -= len(data)
            received += len(data)
            self.bytes += len(data)
            await self.pace(begun, received)
        self.stalls_ms.append(stall * 1000)
        if left:
            return
        if self.options.sha256 and digest.hexdigest() != self.options.sha256:
            raise ValueError(f"wrong content: sha256 {digest.hexdigest()}")
        self.complete += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--path", required=True)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--sha256", default="")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds without a byte that make it a failure")
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second of each download; 0: unlimited")
    parser.add_argument("--repeat", action="store_true")
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    run(lambda stop: Downloads(options, stop).all(), options.seconds)


if __name__ == "__main__":
    main()
