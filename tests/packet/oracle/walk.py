# SPDX-License-Identifier: Apache-2.0
"""What every step of a packet's way works with: the packet, the world, what is remembered, and the ways to leave."""

from collections.abc import Callable

from ebpf.layout import Setting
from tests.packet.oracle.headers import MAPPED, parse_link
from tests.packet.oracle.memory import Entry, Key, Memory, Result
from tests.packet.oracle.world import Service, World, nat_endpoints

FIN, SYN, RST, ACK = 1, 2, 4, 16


def is_special(address: bytes) -> bool:
    """Multicast, broadcast, link-local."""
    if address.startswith(MAPPED):
        return address[12] >= 224 or address[12:14] == b"\xa9\xfe"
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


class Gateway:
    """One gateway over its whole life: its configuration, and what it remembers of packets."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.memory = Memory()
        self.nat = nat_endpoints(world)
        self.services = {(s.address, s.port, s.protocol): s for s in world.services.values()}


class Walk:
    """One packet's way. `commits` collects what it will leave in memory."""

    def __init__(self, gateway: Gateway, frame: bytes, ingress: str, forced: int | None) -> None:
        self.gateway, self.world, self.memory = gateway, gateway.world, gateway.memory
        self.ingress, self.forced = ingress, forced
        self.original = frame
        self.commits: list[Callable[[], None]] = []
        self.from_peer = self.unwrapped = self.by_turn = False
        self.unsure: Key | None = None
        self.doubtful: tuple[Key, Entry] | None = None
        self.target = 0
        self.begin(frame)

    def begin(self, frame: bytes) -> None:
        self.packet = parse_link(frame)
        self.service: Service | None = None
        self.routed = self.returning = self.swapped = self.error = False
        self.connection: Key = (b"", b"", 0, 0, 0)
        self.hash = 0

    def leave(self, verdict: str, reason: str, frame: bytes | None = None) -> Result:
        result = Result(verdict, reason, self.packet.frame if frame is None else frame, self.commits)
        result.service, result.target = (self.service.id if self.service else 0), self.target
        result.by_turn, result.unsure, result.doubtful = self.by_turn, self.unsure, self.doubtful
        return result

    def out(self, egress: str, reason: str, frame: bytes) -> Result:
        return self.leave("TX" if egress == self.ingress else "REDIRECT", reason, frame)

    def has(self, flag: Setting) -> bool:
        return bool(self.world.flags & flag)

    @property
    def key(self) -> Key:
        p = self.packet
        return p.source, p.destination, p.source_port, p.destination_port, p.protocol

    def is_vip(self, address: bytes) -> bool:
        return address in self.world.vips

    @property
    def is_first(self) -> bool:
        return self.packet.tcp_flags & (SYN | ACK | RST | FIN) == SYN

    def fragment_key(self) -> tuple[bytes, bytes, bytes, int]:
        p, fragment = self.packet, self.packet.fragment
        assert fragment is not None
        return p.source, p.destination, fragment.id, fragment.protocol

    def remember_fragment(self) -> None:
        p = self.packet
        if p.fragment and not p.fragment.later:
            key, ports = self.fragment_key(), (p.source_port, p.destination_port)
            self.commits.append(lambda: self.memory.fragments.__setitem__(key, ports))
