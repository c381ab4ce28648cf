# SPDX-License-Identifier: Apache-2.0
"""Watches one device for who claims an address: all ARP in its name, and every neighbour advertisement.

    python -m netlab.traffic.claims DEVICE ADDRESS … --seconds 10

Reports the claims in order, runs of the same claimant joined. Two owners show as claimants that alternate. With
--ask-ms it asks all the time, by broadcast, so that whoever thinks it owns the address answers. The answers put right
what this host's kernel believes; with --source-mac, and addresses that are not this host's, they do not.
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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netlab.traffic.common import announce_ready

ETH_P_ALL = 3
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
PACKET_IGNORE_OUTGOING = 23
SOL_PACKET = 263
ICMPV6 = 58
NEIGHBOUR_SOLICITATION = 135
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
    """Whoever sends in an address's name claims it, with a question as well; a probe from 0.0.0.0 does not."""
    sender = arp[14:18]
    if sender == bytes(4):
        return None
    return str(ipaddress.IPv4Address(sender)), arp[8:14].hex(":")


def advertised_mac(frame: bytes) -> str:
    if len(frame) >= 86 and frame[78] == LINK_ADDRESS_OPTION:
        return frame[80:86].hex(":")
    return frame[6:12].hex(":")


def question(address: str, mac: bytes, sources: Sequence[str]) -> bytes:
    """An ARP request or a neighbour solicitation for the address, to all who listen for such."""
    target = ipaddress.ip_address(address)
    source: bytes = next(s for s in map(ipaddress.ip_address, sources) if s.version == target.version).packed
    if target.version == 4:
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + source + bytes(6) + target.packed
        return b"\xff" * 6 + mac + ETH_P_ARP.to_bytes(2, "big") + arp
    group = bytes.fromhex("ff0200000000000000000001ff") + target.packed[-3:]
    body: bytes = struct.pack("!BBHI", NEIGHBOUR_SOLICITATION, 0, 0, 0) + target.packed + bytes([1, 1]) + mac
    total = sum(struct.unpack(f"!{len(body) // 2}H", body)) + sum(struct.unpack("!16H", source + group))
    total += len(body) + ICMPV6
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + (~total & 0xFFFF).to_bytes(2, "big") + body[4:]
    header: bytes = struct.pack("!IHBB", 6 << 28, len(body), ICMPV6, 255) + source + group
    return b"\x33\x33" + group[-4:] + mac + ETH_P_IPV6.to_bytes(2, "big") + header + body


class Watch:
    def __init__(self, device: str, addresses: set[str], sources: Sequence[str], source_mac: str = "") -> None:
        self.sources = sources
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, struct.pack("i", 1))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind((device, ETH_P_ALL))
        self.socket.setblocking(False)
        self.mac: bytes = bytes.fromhex(source_mac.replace(":", "")) or self.socket.getsockname()[4]
        self.addresses = addresses
        self.runs: dict[str, list[Run]] = {address: [] for address in addresses}
        self.stopping = False

    def watch(self, seconds: float | None, ask_s: float) -> None:
        end = float("inf") if seconds is None else time.monotonic() + seconds
        questions = [question(address, self.mac, self.sources) for address in self.addresses] if ask_s else []
        following = time.monotonic()
        while not self.stopping and time.monotonic() < end:
            if ask_s and time.monotonic() >= following:
                following = time.monotonic() + ask_s
                for frame in questions:
                    self.ask(frame)
            if select.select([self.socket], [], [], ask_s or 0.05)[0]:
                self.take()

    def ask(self, frame: bytes) -> None:
        try:
            self.socket.send(frame)
        except OSError:
            # The watcher's own link is down for the moment.
            return

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
    parser.add_argument("--ask-ms", type=float, default=0.0, help="ask for the addresses this often")
    parser.add_argument("--source", action="append", default=[], help="address to ask from, one per family")
    parser.add_argument("--source-mac", default="", help="link address to ask from; this device's own if not given")
    options = parser.parse_args()
    addresses = {str(ipaddress.ip_address(address)) for address in options.addresses}
    watch = Watch(options.device, addresses, options.source, options.source_mac)

    def stop(*_: object) -> None:
        watch.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    announce_ready()
    watch.watch(options.seconds, options.ask_ms / 1000)
    json.dump(watch.report(), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
