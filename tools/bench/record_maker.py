# SPDX-License-Identifier: Apache-2.0
"""A process of its own that fills a ring buffer with records at a given rate, as the packet path would: beside the
daemon, not in it."""

import multiprocessing
import time
from multiprocessing.connection import Connection

from ebpf.ring_buffer import RingBuffer
from tools.bench.record_source import RecordSource

TICK_S = 0.002
STOP_TIMEOUT_S = 10.0
# When each burst began, and the total after it.
Bursts = list[tuple[float, int]]


def fill(source: RecordSource, node: int, rate: int, seconds: float) -> Bursts:
    """Make `rate` records a second (0: as fast as they are taken) without ever filling more than half the buffer."""
    buffer = RingBuffer(source.ring)
    room = buffer.capacity // 2
    begin, made, bursts = time.monotonic(), 0, []
    while (now := time.monotonic()) - begin < seconds:
        free = room - buffer.backlog
        amount = min(int((now - begin) * rate) - made if rate else free, free)
        if amount > 0:
            source.emit(amount, node=node, network=10 + node, first=made)
            made += amount
            bursts.append((now, made))
        time.sleep(TICK_S)
    return bursts


class RecordMaker:
    """The process, made before there are threads; it waits for `start`."""

    def __init__(self, source: RecordSource, node: int, rate: int, seconds: float) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, source, node, rate, seconds), daemon=True)
        self._process.start()

    def start(self) -> None:
        """Begin to make records."""
        self._pipe.send(True)

    def bursts(self) -> Bursts:
        """What was made; waits until all of it is."""
        made: Bursts = self._pipe.recv()
        self._process.join(STOP_TIMEOUT_S)
        return made


def _work(pipe: Connection, source: RecordSource, node: int, rate: int, seconds: float) -> None:
    pipe.recv()
    pipe.send(fill(source, node, rate, seconds))
