# SPDX-License-Identifier: Apache-2.0
"""TCP SYNs from distinct sources, as fast as one packet socket takes them.

    python -m netlab.traffic.syn_flood DEVICE MAC VIP PORT --count 1000000

Frames are built in bulk with numpy and handed over with sendmmsg, so that Python sees a thousand of them at a time.
Sources are 10.128.0.0/9 or fd01::/64 with changing ports; both checksums are right.
"""

import argparse
import ctypes
import ipaddress
import json
import os
import socket
import struct
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from netlab.traffic.common import announce_ready

BATCH = 1024
BUFFER_BYTES = 16 << 20
SYN = 0x02
TCP_HEADER = struct.Struct("!HHIIBBHHH")
SOURCE_V4 = 0x0A800000
SOURCE_V6 = ipaddress.IPv6Address("fd01::").packed
PORT_FIRST, PORT_SPAN = 1024, 60_000

Frames = NDArray[np.uint8]


class _Message(ctypes.Structure):
    """struct mmsghdr without address and control data."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


class _Part(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def checksum(words: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Internet checksum of each row of 16-bit words."""
    total = words.sum(axis=1, dtype=np.uint32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    folded: NDArray[np.uint16] = (~total).astype(np.uint16)
    return folded


def as_words(octets: Frames) -> NDArray[np.uint32]:
    return octets.reshape(len(octets), -1, 2).astype(np.uint32) @ np.array([256, 1], dtype=np.uint32)


def put(frames: Frames, offset: int, values: NDArray[Any], size: int) -> None:
    """Write one big-endian integer per row."""
    for index in range(size):
        frames[:, offset + index] = (values >> (8 * (size - 1 - index))) & 0xFF


def build(numbers: NDArray[np.int64], ethernet: bytes, vip: str, port: int) -> Frames:
    """One SYN frame per number, each from a source of its own."""
    target = ipaddress.ip_address(vip)
    tcp = TCP_HEADER.pack(0, port, 0, 0, 5 << 4, SYN, 65535, 0, 0)
    if target.version == 4:
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0x4000, 64, 6, 0, bytes(4), target.packed)
        ethertype, source_at, pseudo = b"\x08\x00", 12, struct.pack("!HH", 6, 20)
    else:
        header = struct.pack("!IHBB16s16s", 6 << 28, 20, 6, 64, SOURCE_V6, target.packed)
        ethertype, source_at, pseudo = b"\x86\xdd", 8, struct.pack("!IHBB", 20, 0, 0, 6)
    template = np.frombuffer(ethernet + ethertype + header + tcp, dtype=np.uint8)
    frames = np.tile(template, (len(numbers), 1))
    ip_at, tcp_at = 14, 14 + len(header)
    address_size = len(target.packed)
    if target.version == 4:
        put(frames, ip_at + source_at, SOURCE_V4 + numbers, 4)
        put(frames, ip_at + 10, checksum(as_words(frames[:, ip_at:tcp_at])), 2)
    else:
        put(frames, ip_at + source_at + 12, numbers, 4)
    put(frames, tcp_at, PORT_FIRST + numbers % PORT_SPAN, 2)
    addresses = frames[:, ip_at + source_at : ip_at + source_at + 2 * address_size]
    pseudo_part = np.tile(np.frombuffer(pseudo, dtype=np.uint8), (len(numbers), 1))
    summed = np.concatenate([addresses, pseudo_part, frames[:, tcp_at:]], axis=1)
    put(frames, tcp_at + 16, checksum(as_words(summed)), 2)
    return frames


class Sender:
    """Sends rows of an array as frames, BATCH a system call."""

    def __init__(self, device: str, frame_bytes: int) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self.socket.bind((device, 0))
        # One buffer for all batches: the descriptors into it are written once.
        self.buffer = np.zeros((BATCH, frame_bytes), dtype=np.uint8)
        self.parts = (_Part * BATCH)()
        self.messages = (_Message * BATCH)()
        size = ctypes.sizeof(_Part)
        for index in range(BATCH):
            self.parts[index].base = self.buffer.ctypes.data + index * frame_bytes
            self.parts[index].length = frame_bytes
            self.messages[index].parts = ctypes.addressof(self.parts) + index * size
            self.messages[index].part_count = 1

    def send(self, frames: Frames) -> int:
        """How many the kernel took; the rest is lost, as on a full wire."""
        self.buffer[: len(frames)] = frames
        done = 0
        while done < len(frames):
            at = ctypes.addressof(self.messages) + done * ctypes.sizeof(_Message)
            taken = self.libc.sendmmsg(self.socket.fileno(), ctypes.c_void_p(at), len(frames) - done, 0)
            if taken <= 0:
                number = ctypes.get_errno()
                if number not in (11, 105):  # EAGAIN, ENOBUFS: the queue is full for the moment
                    raise OSError(number, os.strerror(number))
                time.sleep(0.0005)
                continue
            done += taken
        return done


def flood(device: str, mac: str, vip: str, port: int, count: int, per_second: float) -> dict[str, Any]:
    ethernet = bytes.fromhex(mac.replace(":", "")) + own_mac(device)
    sender: Sender | None = None
    sent, begun = 0, time.monotonic()
    edges = [*range(0, count, BATCH), count]
    for first, last in pairwise(edges):
        frames = build(np.arange(first, last), ethernet, vip, port)
        sender = sender or Sender(device, frames.shape[1])
        sent += sender.send(frames)
        if per_second and (ahead := sent / per_second - (time.monotonic() - begun)) > 0:
            time.sleep(ahead)
    seconds = time.monotonic() - begun
    return {"sent": sent, "seconds": round(seconds, 3), "per_second": round(sent / seconds)}


def own_mac(device: str) -> bytes:
    """/sys shows the devices of the namespace it was mounted in; a packet socket knows the address too."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as opened:
        opened.bind((device, 0))
        address: bytes = opened.getsockname()[4]
        return address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("mac", help="of the gateway")
    parser.add_argument("vip")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--per-second", type=float, default=0, help="0: as fast as it goes")
    options = parser.parse_args()
    announce_ready()
    report = flood(options.device, options.mac, options.vip, options.port, options.count, options.per_second)
    json.dump(report, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
