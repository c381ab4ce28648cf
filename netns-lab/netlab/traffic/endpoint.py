# SPDX-License-Identifier: Apache-2.0
"""What a backend serves besides HTTP: a UDP echo that names itself, and a TCP stream that pushes without being asked.

    python -m netlab.traffic.endpoint --name b1 --address 10.0.1.21 --address 10.0.1.100

Echo: the answer is the backend's name, padded to NAME_BYTES, and the datagram. Push: PUSH_RECORD once every
PUSH_INTERVAL_S, each holding the next number from 0.
"""

import argparse
import asyncio
import socket
import struct
from typing import Any, cast

from netlab.topology import ECHO_PORT, PUSH_PORT
from netlab.traffic.common import run

NAME_BYTES = 8
PUSH_RECORD = struct.Struct("!Q")
PUSH_INTERVAL_S = 0.01
# Seconds of probes, while the machine has no processor for this process: what a backend loses is no gateway's loss.
QUEUE_BYTES = 4 << 20
SO_RCVBUFFORCE = 33


class Echo(asyncio.DatagramProtocol):
    """One socket per address, so that the answer's source is the address that was asked."""

    def __init__(self, name: str) -> None:
        self.prefix = name.encode().ljust(NAME_BYTES)
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, QUEUE_BYTES)

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.count += 1
        self.transport.sendto(self.prefix + data, address)


async def push(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    number = 0
    try:
        while True:
            writer.write(PUSH_RECORD.pack(number))
            await writer.drain()
            number += 1
            await asyncio.sleep(PUSH_INTERVAL_S)
    except OSError:
        return
    finally:
        writer.close()


async def serve(name: str, addresses: list[str], stop: asyncio.Event) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    echoes = []
    for address in addresses:
        _, echo = await loop.create_datagram_endpoint(lambda: Echo(name), local_addr=(address, ECHO_PORT))
        echoes.append(echo)
    server = await asyncio.start_server(push, addresses, PUSH_PORT)
    await stop.wait()
    server.close()
    return {"echoed": sum(echo.count for echo in echoes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--address", action="append", required=True)
    options = parser.parse_args()
    run(lambda stop: serve(options.name, options.address, stop), None)


if __name__ == "__main__":
    main()
