# SPDX-License-Identifier: Apache-2.0
"""The least that a turn can cost: a program on the ring's event loop that takes one authenticated datagram in a turn,
authenticates one and sends it on, and does nothing else. What a node of an idle ring costs beyond that is the ring.

    python -m tools.bench.bare_turn OWN NEXT REST_S     (addresses; the one whose REST_S is not 0 holds it so long)
"""

import asyncio
import os
import socket
import sys

import uvloop
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sync.scheduling import set_scheduling

PORT = 7400
LENGTH = 256  # about what a token of three members takes, with its header
NONCE = 12
BEGIN_AFTER_S = 1.0  # the others are there by then


def bounce(own: str, following: str, rest_s: float) -> None:
    """Pass a datagram on for ever; the one that rests begins."""
    set_scheduling("auto")
    cipher = AESGCM(bytes(16))
    loop = asyncio.get_running_loop()
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    link.bind((own, PORT))
    target = (following, PORT)

    def send() -> None:
        nonce = os.urandom(NONCE)
        link.sendto(nonce + cipher.encrypt(nonce, bytes(LENGTH), None), target)

    def receive() -> None:
        data, _, _, _ = link.recvmsg(65536, 64)
        cipher.decrypt(data[:NONCE], data[NONCE:], None)
        if rest_s:
            loop.call_later(rest_s, send)
        else:
            send()

    loop.add_reader(link.fileno(), receive)
    if rest_s:
        loop.call_later(BEGIN_AFTER_S, send)


async def main(own: str, following: str, rest_s: float) -> None:
    """Run until ended from outside."""
    bounce(own, following, rest_s)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
