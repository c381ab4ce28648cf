# SPDX-License-Identifier: Apache-2.0
"""Frames made and read for people: the packet of `where`, and what a captured one says. Pure bytes."""

import ipaddress
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TCP, UDP, IPIP, IPV6_IN_IP, ICMP, ICMP6 = 6, 17, 4, 41, 1, 58
PROTOCOL_NAMES = {TCP: "TCP", UDP: "UDP", IPIP: "IPIP", IPV6_IN_IP: "IP6-in-IP", ICMP: "ICMP", ICMP6: "ICMPv6"}
TCP_FLAGS = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10}
HOPS = 64
LAYERS_MAX = 3
_ETHERNET_IPV4, _ETHERNET_IPV6 = 0x0800, 0x86DD
_VLAN_TYPES = (0x8100, 0x88A8)
# Locally administered: nobody's real card.
SOURCE_MAC = bytes.fromhex("020000000001")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Layer:
    """One IP header of a frame; ports and flags are those of the transport header directly behind it, if any."""

    source: Address
    destination: Address
    protocol: int
    hops: int
    source_port: int | None = None
    destination_port: int | None = None
    flags: int | None = None

    def __str__(self) -> str:
        family = "IPv6" if self.source.version == 6 else "IPv4"
        name = PROTOCOL_NAMES.get(self.protocol, f"protocol {self.protocol}")
        ends = f"{_end(self.source, self.source_port)} → {_end(self.destination, self.destination_port)}"
        flags = f" [{flag_names(self.flags)}]" if self.flags is not None else ""
        return f"{family} {ends} {name}{flags} ttl {self.hops}"


def _end(address: Address, port: int | None) -> str:
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def flag_names(flags: int) -> str:
    return " ".join(name.upper() for name, bit in TCP_FLAGS.items() if flags & bit) or "none"


def checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def build(
    source: Address,
    source_port: int,
    destination: Address,
    destination_port: int,
    protocol: int,
    flags: Sequence[str],
    destination_mac: bytes,
) -> bytes:
    """A minimal frame with right checksums. Raises ValueError if the addresses are of different families."""
    if source.version != destination.version:
        raise ValueError("source and destination are of different families")
    ports = struct.pack("!HH", source_port, destination_port)
    if protocol == TCP:
        bits = sum(TCP_FLAGS[flag] for flag in set(flags))
        transport = ports + struct.pack("!IIBBHHH", 1, 0, 5 << 4, bits, 65535, 0, 0)
        at = 16
    else:
        transport = ports + struct.pack("!HH", 12, 0) + b"\0" * 4
        at = 6
    pseudo = source.packed + destination.packed + struct.pack("!II", len(transport), protocol)
    value = checksum(pseudo + transport) or (0xFFFF if protocol == UDP else 0)
    transport = transport[:at] + struct.pack("!H", value) + transport[at + 2 :]
    kind = _ETHERNET_IPV4 if source.version == 4 else _ETHERNET_IPV6
    head = destination_mac + SOURCE_MAC + struct.pack("!H", kind)
    return head + _ip_header(source, destination, protocol, len(transport)) + transport


def _ip_header(source: Address, destination: Address, protocol: int, payload: int) -> bytes:
    if source.version == 6:
        return struct.pack("!IHBB", 6 << 28, payload, protocol, HOPS) + source.packed + destination.packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + payload, 0, 0x4000, HOPS, protocol, 0)
    whole = head + source.packed + destination.packed
    return whole[:10] + struct.pack("!H", checksum(whole)) + whole[12:]


def layers(frame: bytes) -> Iterator[Layer]:
    """The IP headers of an Ethernet frame, outermost first, through VLAN tags and tunnels; ends where it can't read."""
    offset, kind = 12, int.from_bytes(frame[12:14], "big")
    while kind in _VLAN_TYPES and offset < 20:
        offset += 4
        kind = int.from_bytes(frame[offset : offset + 2], "big")
    packet = frame[offset + 2 :]
    for _ in range(LAYERS_MAX):
        read = _read_layer(packet)
        if read is None:
            return
        layer, packet = read
        yield layer
        if layer.protocol not in (IPIP, IPV6_IN_IP):
            return


def _read_layer(packet: bytes) -> tuple[Layer, bytes] | None:
    source: Address
    destination: Address
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        source, destination = ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20])
        protocol, hops, payload = packet[9], packet[8], packet[(packet[0] & 15) * 4 :]
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        source, destination = ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40])
        protocol, hops, payload = packet[6], packet[7], packet[40:]
    else:
        return None
    if protocol not in (TCP, UDP) or len(payload) < 4:
        return Layer(source, destination, protocol, hops), payload
    source_port, destination_port = struct.unpack("!HH", payload[:4])
    flags = payload[13] if protocol == TCP and len(payload) > 13 else None
    return Layer(source, destination, protocol, hops, source_port, destination_port, flags), payload


def mac_text(mac: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in mac)


def describe(frame: bytes) -> str:
    """A frame in words: MAC addresses, then each IP header on its way in."""
    inner = " | ".join(map(str, layers(frame)))
    return f"{mac_text(frame[6:12])} → {mac_text(frame[:6])} | {inner or 'not IP'}"
