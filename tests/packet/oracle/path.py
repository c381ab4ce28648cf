# SPDX-License-Identifier: Apache-2.0
"""What the packet path is to do with a frame: verdict, reason, bytes, and what it remembers of it.

Nothing is shared with the C program but the documented behaviour (docs/packet-path.md) and the names of the reasons.
A decision that hangs on chance (least connections) is left open: `handle` raises `Chance` with the possible targets,
and is called again with each of them `forced`.
"""

from ebpf.layout import AddressFlag, Setting
from tests.packet.oracle import answers
from tests.packet.oracle.hashing import hash_flow
from tests.packet.oracle.headers import (
    ARP,
    ICMP,
    ICMPV6,
    IN6,
    IPIP,
    IPV4,
    IPV6,
    MAPPED,
    TCP,
    UDP,
    Refused,
    parse_ipv4,
    parse_ipv6,
    parse_transport,
    u16,
)
from tests.packet.oracle.memory import Result
from tests.packet.oracle.returning import Returning
from tests.packet.oracle.walk import Gateway
from tests.packet.oracle.world import SELF


class Path(Gateway):
    """The path of one gateway."""

    def handle(self, frame: bytes, ingress: str = "wan", forced: int | None = None) -> Result:
        """The result; its `commits` are to be called if this is what happened. Raises Chance."""
        return Arriving(self, frame, ingress, forced).run()


class Arriving(Returning):
    """The first steps: what the frame is, and which way it goes."""

    def run(self) -> Result:
        try:
            return self.step_parse()
        except Refused as refusal:
            return self.leave("DROP", str(refusal))

    def step_parse(self) -> Result:
        packet = self.packet
        if packet.ethertype == ARP:
            return self.step_arp()
        if packet.ethertype == IPV4:
            parse_ipv4(packet)
        elif packet.ethertype == IPV6:
            parse_ipv6(packet)
        else:
            return self.leave("PASS", "PASS_NOT_IP")
        if packet.v6 and (packet.source.startswith(MAPPED) or packet.destination.startswith(MAPPED)):
            return self.leave("PASS", "PASS_NOT_OURS")  # IPv4 in IPv6's clothes: forged or lost
        if self.has(Setting.STEERING) and packet.frame[6:12] in self.world.peer_mac:
            self.from_peer = True
        if packet.protocol == (ICMPV6 if packet.v6 else ICMP):
            return self.step_icmp()
        if self.has(Setting.STEERING) and self.unwrap():
            return self.step_parse()
        if packet.protocol not in (TCP, UDP):
            return self.leave("PASS", "PASS_PROTOCOL")
        problem = self.transport()
        if problem:
            vip = self.is_vip(packet.destination)
            return self.leave("DROP", problem) if vip else self.leave("PASS", "PASS_NOT_OURS")
        self.hash = hash_flow(self.world.seeds, self.key)
        return self.step_connect()

    def unwrap(self) -> bool:
        packet = self.packet
        if packet.protocol not in (IPIP, IN6) or self.unwrapped or packet.fragment:
            return False
        if packet.source not in self.world.peer_address or packet.destination != self.world.node_address[SELF]:
            return False
        if packet.l4 > len(packet.frame) or len(packet.frame) - packet.l4 < 1:
            return False
        kind = b"\x86\xdd" if packet.protocol == IN6 else b"\x08\x00"
        self.begin(packet.frame[:12] + kind + packet.frame[packet.l4 :])
        self.from_peer = self.unwrapped = True
        return True

    def transport(self) -> str:
        packet = self.packet
        if packet.later_fragment:
            ports = self.memory.fragments.get(self.fragment_key())
            if ports is None:
                return "DROP_FRAGMENT_UNKNOWN"
            packet.source_port, packet.destination_port = ports
            return ""
        return "" if parse_transport(packet) else "DROP_MALFORMED_TRANSPORT"

    def step_arp(self) -> Result:
        frame, at = self.packet.frame, self.packet.l3
        if len(frame) < at + 28 or u16(frame, at + 6) != 1 or u16(frame, at + 2) != IPV4:
            return self.leave("PASS", "PASS_NEIGHBOUR")
        return self.answer_neighbour(MAPPED + frame[at + 24 : at + 28])

    def holds(self, address: bytes) -> bool:
        """The node's lease never ends here: the lease itself is the matter of the packet tables."""
        flags = self.world.vips.get(address)
        return flags is None or bool(flags & AddressFlag.HELD)

    def answer_neighbour(self, address: bytes) -> Result:
        if not self.holds(address):
            return self.leave("DROP", "DROP_LEASE_EXPIRED")
        return self.leave("PASS", "PASS_NEIGHBOUR")

    def step_icmp(self) -> Result:
        p = self.packet
        if p.fragment or p.payload < 8 or len(p.frame) < p.l4 + 8:
            return self.leave("PASS", "PASS_ICMP")
        kind = p.frame[p.l4]
        if kind == (128 if p.v6 else 8):
            return self.step_echo()
        if p.v6 and kind == 135:
            if len(p.frame) < p.l4 + 24:
                return self.leave("PASS", "PASS_NEIGHBOUR")
            return self.answer_neighbour(p.frame[p.l4 + 8 : p.l4 + 24])
        if kind in ((1, 2, 3, 4) if p.v6 else (3, 11, 12)):
            return self.step_error()
        return self.leave("PASS", "PASS_ICMP")

    def step_echo(self) -> Result:
        if not self.is_vip(self.packet.destination):
            return self.leave("PASS", "PASS_ICMP")
        if not self.holds(self.packet.destination):
            return self.leave("DROP", "DROP_LEASE_EXPIRED")
        return self.leave("TX", "SENT_ECHO", answers.echo(self.packet))

    def step_connect(self) -> Result:
        p, reason = self.packet, "PASS_NOT_OURS"
        service = self.match(p.destination, p.destination_port, p.protocol)
        if service is None and self.has(Setting.NAT):
            answered = self.step_return()
            if answered is not None:
                return answered
        if service is None and self.has(Setting.ROUTED):
            service, reason = self.match_routed()
            self.routed = True
        if service is None:
            return self.leave("PASS", reason)
        self.service = service
        self.remember_fragment()
        return self.connect(service)
