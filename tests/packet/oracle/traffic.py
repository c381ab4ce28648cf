# SPDX-License-Identifier: Apache-2.0
"""Random frames that reach every branch of the path, and mutations of them. Everything follows from the seed."""

import random
import struct
from collections import deque
from dataclasses import dataclass

from ebpf.layout import Method
from tests.packet.oracle.headers import ICMP, ICMPV6, IN6, IPIP, MAPPED, TCP, UDP, checksum, pseudo_header
from tests.packet.oracle.world import Service, World, packed

FRAME_BYTES_MAX = 1700
FRAME_BYTES_MIN = 14
CLIENTS4 = [packed(f"198.18.0.{n}") for n in range(1, 25)]
CLIENTS6 = [packed(f"fd00:c::{n:x}") for n in range(1, 25)]
PORTS = range(40000, 40012)
TCP_FLAGS = (0x02, 0x10, 0x10, 0x10, 0x18, 0x12, 0x11, 0x14, 0x04, 0x01, 0xC2, 0x00)
# Where tunnels of peers end: here, and at somebody whose router this gateway is.
OUTER_ENDS = ("172.16.0.1", "172.16.0.1", "172.16.0.7")
OUTSIDE_MAC, OWN_MAC, PEER_MAC = b"\x02\xaa\x00\x00\x00\x09", b"\x02\x00\x00\x00\x00\x01", b"\x02\xee\x00\x00\x00\x02"
ROUTED4 = [packed("198.51.100.7"), packed("203.0.113.9"), packed("192.0.2.4")]
ROUTED6 = [packed("2001:db8:7::1"), packed("2001:db8:9::1")]
SPECIAL = [packed("224.0.0.18"), packed("169.254.1.1"), packed("ff02::12"), packed("fe80::1"), packed("10.1.0.1")]


@dataclass(frozen=True, slots=True)
class Flow:
    """A client's way to an endpoint; 16-byte addresses."""

    client: bytes
    address: bytes
    client_port: int
    port: int
    protocol: int

    @property
    def v6(self) -> bool:
        return not self.client.startswith(MAPPED)


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame for the path; `intact`: nothing in it contradicts itself, so what leaves must be right, too."""

    frame: bytes
    ingress: str
    intact: bool
    kind: str


def tcp(rng: random.Random, source_port: int, port: int, flags: int, body: bytes) -> bytes:
    head = struct.pack(
        "!HHIIBBHHH", source_port, port, rng.getrandbits(32), rng.getrandbits(32), 0x50, flags, 512, 0, 0
    )
    return head + body


def udp(source_port: int, port: int, body: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(body), 0) + body


def fill_check(segment: bytes, source: bytes, destination: bytes, protocol: int) -> bytes:
    """`segment` with its checksum field, which is zero, filled in."""
    at = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}[protocol]
    covered = segment if protocol == ICMP else pseudo_header(source, destination, len(segment), protocol) + segment
    value = checksum(covered)
    if protocol == UDP:
        value = value or 0xFFFF
    return segment[:at] + value.to_bytes(2, "big") + segment[at + 2 :]


def ipv4(
    source: bytes, destination: bytes, protocol: int, body: bytes, *, hops: int = 64, frag: int = 0, id: int = 0,
    options: bytes = b"",
) -> bytes:  # fmt: skip
    head = struct.pack(
        "!BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(options) + len(body), id, frag, hops, protocol, 0
    )
    head += source[12:] + destination[12:] + options
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def ipv6(source: bytes, destination: bytes, protocol: int, body: bytes, *, hops: int = 64) -> bytes:
    return struct.pack("!IHBB", 0x60000000, len(body), protocol, hops) + source + destination + body


class Traffic:
    """An endless, seeded stream of frames. Flows repeat, so that connections live and end."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng, self.world = rng, world
        self.services = [service for service in world.services.values() if service.port or service.protocol]
        self.lately: deque[tuple[Service, Flow]] = deque(maxlen=400)
        self.fragment_id = 0
        self.kinds = [
            (self.to_service, 52), (self.from_backend, 14), (self.icmp_error, 8), (self.echo, 2), (self.neighbour, 3),
            (self.routed, 9), (self.tunnelled, 4), (self.other, 3), (self.fragments, 5),
        ]  # fmt: skip
        self.waiting: list[Sent] = []

    def next(self) -> Sent:
        if self.waiting:
            return self.waiting.pop(0)
        makers, weights = zip(*self.kinds, strict=True)
        sent: Sent = self.rng.choices(makers, weights)[0]()
        return self.mutated(sent) if self.rng.random() < 0.15 else sent

    # ---------------------------------------------------------------------------------------------------- pieces

    def flow(self) -> tuple[Service, Flow]:
        rng = self.rng
        if self.lately and rng.random() < 0.75:
            return rng.choice(self.lately)
        service = rng.choice(self.services)
        v6 = not service.address.startswith(MAPPED)
        port = service.port or rng.choice((80, 8000, 5001))
        flow = Flow(
            rng.choice(CLIENTS6 if v6 else CLIENTS4), service.address, rng.choice(PORTS), port, service.protocol
        )
        self.lately.append((service, flow))
        return service, flow

    def body(self) -> bytes:
        return self.rng.randbytes(self.rng.choice((0, 0, 1, 7, 32, 100, 560, 1200, 1380)))

    def segment(self, flow: Flow, *, back: bool = False) -> bytes:
        """A TCP or UDP segment of the flow with a right checksum; `back`: from the endpoint to the client."""
        rng = self.rng
        ports = (flow.port, flow.client_port) if back else (flow.client_port, flow.port)
        if flow.protocol == TCP:
            plain = tcp(rng, *ports, rng.choice(TCP_FLAGS), self.body())
        else:
            plain = udp(*ports, self.body())
            if not flow.v6 and rng.random() < 0.1:
                return plain  # IPv4 allows UDP without a checksum
        ends = (flow.address, flow.client) if back else (flow.client, flow.address)
        return fill_check(plain, *ends, flow.protocol)

    def ip(self, source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
        rng = self.rng
        hops = rng.choice((64, 64, 64, 64, 255, 2, 1)) if rng.random() < 0.3 else 64
        if source.startswith(MAPPED):
            options = bytes([1] * 4 * rng.randint(1, 10)) if rng.random() < 0.08 else b""
            dont_fragment = rng.choice((0, 0x4000))
            return ipv4(source, destination, protocol, body, hops=hops, frag=dont_fragment, options=options)
        while rng.random() < 0.08:
            kind, words = rng.choice((0, 43, 60)), rng.choice((0, 0, 1, 6))
            body = bytes([protocol, words]) + bytes(6 + 8 * words) + body
            protocol = kind
        return ipv6(source, destination, protocol, body, hops=hops)

    def frame(self, packet: bytes, kind: str, *, mac: bytes | None = None) -> Sent:
        rng = self.rng
        tags = b""
        if rng.random() < 0.1:
            tags = b"".join(
                rng.choice((b"\x81\x00", b"\x88\xa8")) + struct.pack("!H", rng.randrange(1, 4095))
                for _ in range(rng.choice((1, 1, 2)))
            )
        if mac is None:
            mac = PEER_MAC if rng.random() < 0.1 else OUTSIDE_MAC
        protocol = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
        padding = bytes(rng.choice((0, 0, 0, 6, 18)))
        ingress = "wan" if rng.random() < 0.85 else "lan"
        return Sent(OWN_MAC + mac + tags + protocol + packet + padding, ingress, True, kind)

    # ----------------------------------------------------------------------------------------------------- kinds

    def to_service(self) -> Sent:
        _, flow = self.flow()
        return self.frame(self.ip(flow.client, flow.address, flow.protocol, self.segment(flow)), "to service")

    def backend_flow(self) -> Flow | None:
        """A flow as the backend of a nat service sees it."""
        service, flow = self.flow()
        if service.method is not Method.NAT:
            return None
        target = self.rng.choice(service.targets)
        return Flow(flow.client, target.address, flow.client_port, target.port or flow.port, flow.protocol)

    def from_backend(self) -> Sent:
        flow = self.backend_flow()
        if flow is None:
            return self.to_service()
        packet = self.ip(flow.address, flow.client, flow.protocol, self.segment(flow, back=True))
        return self.frame(packet, "from backend")

    def icmp_error(self) -> Sent:
        """From the client's side about a packet to it; or from the backend's side about one to the backend."""
        rng = self.rng
        about_backend = self.backend_flow() if rng.random() < 0.4 else None
        _, flow = self.flow()
        if about_backend:
            flow = about_backend
            quoted_ends, to = (flow.client, flow.address), flow.client
            segment = self.segment(flow)
            sender = flow.address if rng.random() < 0.5 else rng.choice(ROUTED6 if flow.v6 else ROUTED4)
        else:
            quoted_ends, to = (flow.address, flow.client), flow.address
            segment = self.segment(flow, back=True)
            sender = flow.client if rng.random() < 0.5 else rng.choice(ROUTED6 if flow.v6 else ROUTED4)
        if flow.v6:
            quoted = ipv6(*quoted_ends, flow.protocol, segment)[: rng.choice((48, 60, 90, 400))]
            kind, code, protocol = rng.choice((1, 2, 3, 4)), 0, ICMPV6
        else:
            quoted = ipv4(*quoted_ends, flow.protocol, segment)[: rng.choice((28, 40, 60, 400))]
            kind, code, protocol = (*rng.choice(((3, 4), (3, 1), (11, 0), (12, 0))), ICMP)
        message = struct.pack("!BBHI", kind, code, 0, 1400) + quoted
        message = fill_check(message, sender, to, protocol)
        return self.frame(self.ip(sender, to, protocol, message), "ICMP error")

    def echo(self) -> Sent:
        rng = self.rng
        address = rng.choice([*self.world.vips, *self.world.own, packed("10.100.0.77")])
        v6 = not address.startswith(MAPPED)
        client = rng.choice(CLIENTS6 if v6 else CLIENTS4)
        protocol = ICMPV6 if v6 else ICMP
        message = struct.pack("!BBHHH", rng.choice((128, 129)) if v6 else rng.choice((8, 0)), 0, 0, 7, 1) + self.body()
        return self.frame(self.ip(client, address, protocol, fill_check(message, client, address, protocol)), "echo")

    def neighbour(self) -> Sent:
        rng = self.rng
        address = rng.choice([*self.world.vips, *self.world.own, packed("10.100.0.77"), packed("fd00:100::77")])
        if address.startswith(MAPPED):
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, rng.choice((1, 1, 2))) + OUTSIDE_MAC + CLIENTS4[0][12:]
            frame = b"\xff" * 6 + OUTSIDE_MAC + b"\x08\x06" + arp + bytes(6) + address[12:] + bytes(18)
            return Sent(frame, "wan", True, "ARP")
        message = struct.pack("!BBHI", rng.choice((135, 136)), 0, 0, 0) + address
        message = fill_check(message, CLIENTS6[0], address, ICMPV6)
        return self.frame(ipv6(CLIENTS6[0], address, ICMPV6, message, hops=255), "neighbour discovery")

    def routed(self) -> Sent:
        rng = self.rng
        one, other = rng.choice(((CLIENTS4, ROUTED4), (CLIENTS6, ROUTED6)))
        source, destination = rng.choice(one), rng.choice(other)
        if rng.random() < 0.05:
            destination = rng.choice([each for each in SPECIAL if each.startswith(MAPPED) == (one is CLIENTS4)])
        flow = Flow(source, destination, rng.choice(PORTS), rng.choice((22, 80)), rng.choice((TCP, UDP)))
        back = rng.random() < 0.5
        ends = (flow.address, flow.client) if back else (flow.client, flow.address)
        return self.frame(self.ip(*ends, flow.protocol, self.segment(flow, back=back)), "routed")

    def tunnelled(self) -> Sent:
        _, flow = self.flow()
        inner = self.ip(flow.client, flow.address, flow.protocol, self.segment(flow))
        source = self.rng.choice([*self.world.peer_address, packed("172.16.0.99")])
        protocol = IN6 if flow.v6 else IPIP
        if source.startswith(MAPPED):
            outer = ipv4(source, packed(self.rng.choice(OUTER_ENDS)), protocol, inner)
        else:
            outer = ipv6(source, packed("fd00:99::1"), protocol, inner)
        # Two gateways may share a segment other than the one the packet came from.
        return self.frame(outer, "from peer by tunnel", mac=self.rng.choice((OUTSIDE_MAC, PEER_MAC)))

    def other(self) -> Sent:
        rng = self.rng
        if rng.random() < 0.3:
            return Sent(
                OWN_MAC + OUTSIDE_MAC + rng.randbytes(2) + rng.randbytes(rng.randrange(0, 80)), "wan", False, "noise"
            )
        _, flow = self.flow()
        return self.frame(
            self.ip(flow.client, flow.address, rng.choice((2, 47, 50, 132)), self.body()), "other protocol"
        )

    def fragments(self) -> Sent:
        """A packet in two or three parts, now and then in the wrong order or without the first."""
        rng = self.rng
        _, flow = self.flow()
        segment = self.segment(flow)
        size = max(24, len(segment) // 2 // 8 * 8)
        parts = [(at, segment[at : at + size]) for at in range(0, len(segment), size)] or [(0, segment)]
        self.fragment_id = self.fragment_id % 0xFFFF + 1
        frames = []
        for at, data in parts:
            more = at + len(data) < len(segment) or len(parts) == 1
            frames.append(self.frame(self.fragment(flow, at, data, more), "fragment"))
        if rng.random() < 0.2:
            rng.shuffle(frames)
        if rng.random() < 0.1 and len(frames) > 1:
            frames.pop(0)
        self.waiting += frames[1:]
        return frames[0]

    def fragment(self, flow: Flow, at: int, data: bytes, more: bool) -> bytes:
        if flow.v6:
            head = struct.pack("!BBHI", flow.protocol, 0, at | more, self.fragment_id)
            return ipv6(flow.client, flow.address, 44, head + data)
        field = at // 8 | (0x2000 if more else 0)
        return ipv4(flow.client, flow.address, flow.protocol, data, frag=field, id=self.fragment_id)

    # -------------------------------------------------------------------------------------------------- mutations

    def mutated(self, sent: Sent) -> Sent:
        rng, data = self.rng, bytearray(sent.frame)
        for _ in range(rng.randint(1, 3)):
            how = rng.randrange(5)
            if how == 0:
                data[rng.randrange(len(data))] = rng.randrange(256)
            elif how == 1:
                at = rng.randrange(min(len(data), 80))
                data[at] ^= 1 << rng.randrange(8)
            elif how == 2:
                del data[rng.randrange(FRAME_BYTES_MIN, len(data) + 1) :]
            elif how == 3:
                data += rng.randbytes(rng.randrange(40))
            elif len(data) > 20:
                at = rng.randrange(14, min(len(data) - 1, 60))
                data[at : at + 2] = struct.pack("!H", rng.choice((0, 1, 20, 0xFFFF, rng.randrange(65536))))
        return Sent(bytes(data[:FRAME_BYTES_MAX]), sent.ingress, False, f"mutated {sent.kind}")
