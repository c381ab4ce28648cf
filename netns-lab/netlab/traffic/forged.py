# SPDX-License-Identifier: Apache-2.0
"""Floods the ring's port with datagrams that nobody of the cluster wrote.

    python -m netlab.traffic.forged ADDRESS:PORT … --cluster NAME --seconds 5

By turns: noise; a right prefix (version, kind, cluster, nodes) with noise behind it; a piece of one too short to be
anything. They come from an address outside the cluster or, with --source (root), from that of a member.
"""

import argparse
import asyncio
import random
import socket
from typing import Any

from netlab.traffic.common import run
from sync.transport.wire import PREFIX, UNRELIABLE, VERSION, WHOLE, cluster_number

IP_TRANSPARENT = 19
BURST = 64
NODES = 4
KEY_IDS = 3


def datagram(rng: random.Random, cluster: int) -> bytes:
    """One that no key has signed."""
    noise = rng.randbytes(rng.choice((60, 120, 400, 1200)))
    kind = rng.randrange(3)
    if kind == 0:
        return noise
    prefix = PREFIX.pack(
        VERSION,
        rng.randint(WHOLE, UNRELIABLE),
        rng.randint(1, NODES),
        rng.randint(1, NODES),
        cluster,
        rng.randrange(KEY_IDS),
        rng.getrandbits(63) | 1,
        rng.getrandbits(63) | 1,
        rng.getrandbits(62),
    )
    return prefix + noise if kind == 1 else prefix[: rng.randrange(len(prefix))]


def opened(source: str | None) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if source:
        sock.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        host, _, port = source.rpartition(":")
        sock.bind((host, int(port)))
    sock.setblocking(False)
    return sock


async def flood(options: argparse.Namespace, stop: asyncio.Event) -> dict[str, Any]:
    rng, cluster = random.Random(options.seed), cluster_number(options.cluster)
    pool = [datagram(rng, cluster) for _ in range(1024)]
    targets = [(host, int(port)) for host, _, port in (target.rpartition(":") for target in options.target)]
    sent = refused = 0
    with opened(options.source) as sock:
        while not stop.is_set():
            for _ in range(BURST):
                try:
                    sock.sendto(rng.choice(pool), rng.choice(targets))
                    sent += 1
                except (BlockingIOError, ConnectionRefusedError):
                    refused += 1
            await asyncio.sleep(BURST / options.per_second)
    return {"sent": sent, "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="+", help="ADDRESS:PORT")
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--source", help="ADDRESS:PORT to send from, not necessarily one's own")
    parser.add_argument("--per-second", type=float, default=10_000)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    run(lambda stop: flood(options, stop), options.seconds)


if __name__ == "__main__":
    main()
