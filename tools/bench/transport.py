# SPDX-License-Identifier: Apache-2.0
"""The ring's transport alone: two processes in two network namespaces joined by a veth pair, authenticated.

One side sends, the other receives and acknowledges. Printed per cell: messages and megabytes a second, and processor
time per message on each side, kernel included. The `ping` cell sends one message at a time, as a token travels.
"""

import argparse
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import SystemRandom
from typing import Any

from sync.sockets import READ_MAX, Sockets, datagram_max, parse_address
from sync.transport import (
    Arrived,
    Delivered,
    KeyRing,
    Path,
    PeerConfig,
    Transmit,
    Transport,
    TransportConfig,
)

ADDRESSES = {1: "10.199.0.1:7400", 2: "10.199.0.2:7400"}
CELLS = {"ping": 64, "64B": 64, "1KiB": 1024, "16KiB": 16384, "64KiB": 65536, "1MiB": 1 << 20}
QUEUE_BYTES = 4 << 20
QUEUE_MESSAGES = 512
STOP = b"stop"


class Side:
    """One node: transport and socket, driven by a loop of its own."""

    def __init__(self, node: int, *, encrypt: bool) -> None:
        other = 3 - node
        local, peer = parse_address(ADDRESSES[node]), parse_address(ADDRESSES[other])
        self.sockets = Sockets([local])
        self.link = self.sockets.links[0]
        config = TransportConfig("bench", KeyRing([bytes(range(32))]), encrypt=encrypt, failure_after_s=1.0)
        path = Path(0, peer, datagram_max(local, peer))
        self.transport = Transport(
            config, local=node, incarnation=time.time_ns(), rng=SystemRandom(), peers={other: PeerConfig((path,))}
        )
        self.poll = select.epoll()
        self.poll.register(self.link.fileno(), select.EPOLLIN)
        self.delivered = 0
        self.arrived = 0
        self.stopped = False

    def carry_out(self) -> None:
        for effect in self.transport.take():
            if type(effect) is Transmit:
                self.sockets.transmit(effect)
            elif type(effect) is Arrived:
                self.arrived += 1
                if effect.payload == STOP:
                    self.stopped = True
            elif type(effect) is Delivered:
                self.delivered += 1

    def turn(self) -> None:
        """Wait for a datagram or the deadline, and deal with it."""
        wait = min(self.transport.deadline() - time.monotonic(), 1.0)
        if self.poll.poll(max(wait, 0)):
            now = time.monotonic()
            while self.link.read(partial(self.transport.receive, now)) == READ_MAX:
                pass
        now = time.monotonic()
        if self.transport.deadline() <= now:
            self.transport.tick(now)
        self.carry_out()


def receive_until_stopped(encrypt: bool) -> None:
    side = Side(2, encrypt=encrypt)
    print("ready", flush=True)
    while not side.stopped:
        side.turn()
    usage = os.times()
    deadline = time.monotonic() + 0.1  # so that the last acknowledgement can be repeated
    while time.monotonic() < deadline:
        side.turn()
    print(json.dumps({"arrived": side.arrived, "cpu_s": usage.user + usage.system}), flush=True)


def send_for(duration_s: float, size: int, depth: int, encrypt: bool) -> dict[str, float]:
    """Keep `depth` messages on the way for so many seconds."""
    side = Side(1, encrypt=encrypt)
    payload = os.urandom(size)
    sent = 0
    start, usage = time.monotonic(), os.times()
    end = start + duration_s
    while (now := time.monotonic()) < end or side.delivered < sent:
        if now < end:
            while sent - side.delivered < depth:
                side.transport.send(now, 2, 1, payload)
                sent += 1
            side.carry_out()
        side.turn()
    elapsed, used = time.monotonic() - start, os.times()
    side.transport.send(time.monotonic(), 2, 1, STOP)
    side.carry_out()
    while side.delivered <= sent:
        side.turn()
    counters = side.transport.counters
    return {
        "messages": sent,
        "elapsed_s": elapsed,
        "cpu_s": used.user + used.system - usage.user - usage.system,
        "retransmissions": counters.retransmissions,
    }


@contextmanager
def namespaces(name: str, mtu: int) -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a veth pair."""
    pair = (f"{name}-1", f"{name}-2")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    try:
        for space in pair:
            ip("netns", "add", space)
        ip("link", "add", "v", "mtu", str(mtu), "netns", pair[0], "type", "veth", "peer", "v", "netns", pair[1])
        ip("-n", pair[1], "link", "set", "v", "mtu", str(mtu))
        for node, space in enumerate(pair, 1):
            ip("-n", space, "address", "add", ADDRESSES[node].partition(":")[0] + "/24", "dev", "v")
            ip("-n", space, "link", "set", "v", "up")
        yield pair
    finally:
        for space in pair:
            subprocess.run(["ip", "netns", "delete", space], check=False, stderr=subprocess.DEVNULL)


def run_cell(pair: tuple[str, str], cell: str, duration_s: float, encrypt: bool) -> dict[str, Any]:
    size = CELLS[cell]
    depth = 1 if cell == "ping" else max(2, min(QUEUE_MESSAGES, QUEUE_BYTES // size))
    this = [sys.executable, "-m", "tools.bench", "transport", *(["--encrypt"] if encrypt else [])]
    receiver = subprocess.Popen(
        ["ip", "netns", "exec", pair[1], *this, "--as-receiver"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        sender_output = subprocess.run(
            ["ip", "netns", "exec", pair[0], *this, "--as-sender", f"{duration_s}/{size}/{depth}"],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=duration_s + 30,
        ).stdout
        received = json.loads(receiver.communicate(timeout=10)[0])
    finally:
        receiver.kill()
    sent = json.loads(sender_output)
    messages = sent["messages"]
    if received["arrived"] != messages + 1:
        raise RuntimeError(f"{messages + 1} messages sent, {received['arrived']} arrived")
    return {
        "cell": cell,
        "messages_per_s": round(messages / sent["elapsed_s"]),
        "megabytes_per_s": round(messages * size / sent["elapsed_s"] / 1e6, 1),
        "sender_cpu_us": round(sent["cpu_s"] / messages * 1e6, 1),
        "receiver_cpu_us": round(received["cpu_s"] / messages * 1e6, 1),
        "retransmissions": sent["retransmissions"],
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench transport", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each cell")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--encrypt", action="store_true")
    parser.add_argument("--cells", nargs="*", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--as-receiver", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--as-sender", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.as_receiver:
        receive_until_stopped(options.encrypt)
        return 0
    if options.as_sender:
        duration, size, depth = options.as_sender.split("/")
        print(json.dumps(send_for(float(duration), int(size), int(depth), options.encrypt)))
        return 0
    with namespaces(f"bench-transport-{os.getpid()}", options.mtu) as pair:
        for cell in options.cells:
            row = run_cell(pair, cell, options.seconds, options.encrypt)
            print(json.dumps(row) if options.json else "  ".join(f"{key}={value}" for key, value in row.items()))
    return 0
