# SPDX-License-Identifier: Apache-2.0
"""UDP payloads from a capture file (pcap, pcapng) or from an interface, by scapy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scapy.config import conf
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6  # noqa: F401  so that scapy takes IPv6 apart
from scapy.utils import PcapReader


class Datagram(NamedTuple):
    """A captured UDP payload; time in seconds of the capture's clock."""

    time: float
    payload: bytes


def from_file(path: Path, port: int) -> Iterator[Datagram]:
    """Raises OSError or scapy's Scapy_Exception if it is no capture file."""
    with PcapReader(str(path)) as packets:
        for packet in packets:
            yield from _payload(packet, port)


def from_interface(name: str, port: int, stop_at: float, clock: Any) -> Iterator[Datagram]:
    """What passes an interface, both directions, until `clock()` reaches `stop_at`. Needs CAP_NET_RAW."""
    socket = conf.L2listen(iface=name)
    try:
        while (left := stop_at - clock()) > 0:
            if socket.select([socket], min(left, 0.5)):
                packet = socket.recv(1 << 17)
                if packet is not None:
                    yield from _payload(packet, port)
    finally:
        socket.close()


def _payload(packet: Any, port: int) -> Iterator[Datagram]:
    if UDP not in packet:
        return
    udp = packet[UDP]
    if port in (udp.sport, udp.dport):
        # As captured: padding of short Ethernet frames is no part of it.
        yield Datagram(float(packet.time), bytes(udp.payload.original))
