# SPDX-License-Identifier: Apache-2.0
"""Forwards every frame between two devices of one namespace, each a fixed time late.

    python -m netlab.delay_link DEVICE DEVICE MILLISECONDS

For kernels without the netem queueing discipline. Frames pass with their virtio header (PACKET_VNET_HDR), so that
unfinished checksums and oversize segments survive the trip.
"""

import select
import socket
import struct
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
FRAME_MAX = 1 << 17
QUEUE_MAX = 20_000
BUFFER_BYTES = 8 << 20

Queue = deque[tuple[float, bytes]]


def open_device(name: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, struct.pack("i", 1))
    opened.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, struct.pack("i", 1))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    # Bound to the protocol only now: no frame of another device can have come in before.
    opened.bind((name, ETH_P_ALL))
    opened.setblocking(False)
    return opened


def take(source: socket.socket, queue: Queue, delay_s: float) -> None:
    """Queue what has arrived; above QUEUE_MAX frames the newest are lost, as in a full switch."""
    try:
        while True:
            frame = source.recv(FRAME_MAX)
            if len(queue) < QUEUE_MAX:
                queue.append((time.monotonic() + delay_s, frame))
    except BlockingIOError:
        return


def give(target: socket.socket, queue: Queue) -> None:
    now = time.monotonic()
    while queue and queue[0][0] <= now:
        _, frame = queue.popleft()
        try:
            target.send(frame)
        except OSError:
            # The cable is cut or its queue is full: the frame is lost.
            continue


def forward(names: tuple[str, str], delay_s: float) -> None:
    left, right = (open_device(name) for name in names)
    towards_right: Queue = deque()
    towards_left: Queue = deque()
    while True:
        due = [queue[0][0] for queue in (towards_right, towards_left) if queue]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        ready = select.select([left, right], [], [], timeout)[0]
        if left in ready:
            take(left, towards_right, delay_s)
        if right in ready:
            take(right, towards_left, delay_s)
        give(right, towards_right)
        give(left, towards_left)


if __name__ == "__main__":
    forward((sys.argv[1], sys.argv[2]), float(sys.argv[3]) / 1000)
