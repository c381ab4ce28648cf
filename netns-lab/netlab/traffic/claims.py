# SPDX-License-Identifier: Apache-2.0
"""Watches one device for who claims an address: every ARP reply or announcement and every neighbour advertisement.

    python -m netlab.traffic.claims DEVICE ADDRESS … --seconds 10

Reports the claims in order, runs of the same claimant joined. Two owners show as claimants that alternate.
"""

import argparse
import ipaddress
import json
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

ETH_P_ALL = 3
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
PACKET_IGNORE_OUTGOING = 23
SOL_PACKET = 263
ICMPV6 = 58
NEIGHBOUR_ADVERTISEMENT = 136
LINK_ADDRESS_OPTION = 2
RUNS_MAX = 10_000


@dataclass
class Run:
    """Claims in a row by one claimant; times are seconds of the monotonic clock."""

    address: str
    mac: str
    first: float
    last: float
    count: int = 1


def claim_of(frame: bytes) -> tuple[str, str] | None:
    """(address, MAC) that a frame claims, None if it claims nothing."""
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    if ethertype == ETH_P_ARP and len(frame) >= 42:
        return arp_claim(frame[14:42])
    if ethertype == ETH_P_IPV6 and len(frame) >= 78 and frame[20] == ICMPV6 and frame[54] == NEIGHBOUR_ADVERTISEMENT:
        return str(ipaddress.IPv6Address(frame[62:78])), advertised_mac(frame)
    return None


def arp_claim(arp: bytes) -> tuple[str, str] | None:
    """Replies, and requests for the sender's own address (announcements), claim it; a probe from 0.0.0.0 does not."""
    (operation,) = struct.unpack_from("!H", arp, 6)
    sender, target = arp[14:18], arp[24:28]
    if sender == bytes(4) or (operation == 1 and sender != target):
        return None
    return str(ipaddress.IPv4Address(sender)), arp[8:14].hex(":")


def advertised_mac(frame: bytes) -> str:
    if len(frame) >= 86 and frame[78] == LINK_ADDRESS_OPTION:
        return frame[80:86].hex(":")
    return frame[6:12].hex(":")


class Watch:
    def __init__(self, device: str, addresses: set[str]) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, struct.pack("i", 1))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind((device, ETH_P_ALL))
        self.socket.setblocking(False)
        self.addresses = addresses
        self.runs: dict[str, list[Run]] = {address: [] for address in addresses}
        self.stopping = False

    def watch(self, seconds: float | None) -> None:
        end = float("inf") if seconds is None else time.monotonic() + seconds
        while not self.stopping and time.monotonic() < end:
            if select.select([self.socket], [], [], 0.05)[0]:
                self.take()

    def take(self) -> None:
        try:
            while True:
                claim = claim_of(self.socket.recv(128))
                if claim is not None and claim[0] in self.addresses:
                    self.note(*claim)
        except BlockingIOError:
            return

    def note(self, address: str, mac: str) -> None:
        runs, now = self.runs[address], time.monotonic()
        if runs and runs[-1].mac == mac:
            runs[-1].last = now
            runs[-1].count += 1
        elif len(runs) < RUNS_MAX:
            runs.append(Run(address, mac, now, now))

    def report(self) -> dict[str, Any]:
        return {address: [vars(run) for run in runs] for address, runs in self.runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device")
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    watch = Watch(options.device, {str(ipaddress.ip_address(address)) for address in options.addresses})

    def stop(*_: object) -> None:
        watch.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    watch.watch(options.seconds)
    json.dump(watch.report(), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
