# SPDX-License-Identifier: Apache-2.0
"""Packets the other way: answers of `nat` backends, and ICMP errors about packets of either way."""

from ebpf.layout import Method, ServiceFlag, Setting
from tests.packet.oracle import rewriting
from tests.packet.oracle.connecting import Connecting
from tests.packet.oracle.hashing import hash_flow
from tests.packet.oracle.headers import MAPPED, TCP, UDP
from tests.packet.oracle.memory import Key, Result
from tests.packet.oracle.sending import parse_again
from tests.packet.oracle.walk import ACK, FIN, RST, SYN
from tests.packet.oracle.world import Service, Target

NAT_CHAIN_MAX = 4


class Returning(Connecting):
    """A backend's packets, and words of the network about connections."""

    def is_early(self) -> bool:
        """An answer from a port that `nat` serves on (from any port: to a SYN), of no connection known here."""
        p, memory = self.packet, self.memory
        if not self.has(Setting.STEERING) or not self.has(Setting.ROUTED):
            return False
        handshake = p.tcp_flags & (SYN | ACK)
        if p.protocol != TCP or handshake == SYN or p.later_fragment or self.error:
            return False
        if handshake != SYN | ACK and (p.source, p.source_port, p.protocol) not in self.gateway.nat:
            return False
        ends = sorted([(p.source, p.source_port), (p.destination, p.destination_port)])
        key = (ends[0][0], ends[1][0], ends[0][1], ends[1][1], p.protocol)
        return key not in memory.connections and key not in memory.half_open

    def find_return(self) -> tuple[Service, Target] | Result | None:
        """The service and target whose answer this is; where to steer it; or None."""
        p = self.packet
        candidate = self.backend(p.source, p.source_port)
        service: Service | None = None
        for _ in range(NAT_CHAIN_MAX):
            if not candidate:
                break
            target = self.world.targets[candidate]
            service = self.world.services[self.world.service_of_target[candidate]]
            key = (p.destination, service.address, p.destination_port, service.port or p.source_port, p.protocol)
            self.connection = key
            if self.known_answer(service, candidate, key):
                return service, target
            candidate = target.nat_next
        if p.destination in self.world.own:
            return None
        if service is not None and service.flags & ServiceFlag.STEERED:
            node = self.steering_node(p.destination, p.destination_port)
            if self.belongs_elsewhere(node):
                return self.steer(node)
        return self.adopt_answer() if service is not None and self.is_early() else None

    def adopt_answer(self) -> tuple[Service, Target] | Result:
        """An answer of a connection nobody has told of: it says itself which it is, if one service alone has it."""
        p = self.packet
        target = self.world.targets.get(self.gateway.nat.get((p.source, p.source_port, p.protocol), 0))
        if target is None or target.nat_next:
            return self.leave("DROP", "DROP_ANSWER_EARLY")
        service = self.world.services[self.world.service_of_target[target.id]]
        ends = p.destination, service.address
        self.connection = (*ends, p.destination_port, service.port or p.source_port, p.protocol)
        if self.connection in self.memory.connections or self.connection in self.memory.half_open:
            return self.leave("DROP", "DROP_ANSWER_EARLY")  # the client's port has gone on to another backend
        if not p.tcp_flags & (SYN | FIN | RST):
            self.establish(service, target.id)
        return service, target

    def known_answer(self, service: Service, candidate: int, key: Key) -> bool:
        entry = self.memory.connections.get(key)
        if entry is not None and entry.target == candidate:
            self.follow(entry, True)
            return True
        half = self.memory.half_open.get(key)
        if half is None or half.target != candidate:
            return False
        if self.packet.protocol == UDP and not self.error:
            self.establish(service, candidate)
        return True

    def step_return(self) -> Result | None:
        found = self.find_return()
        if found is None:
            return None
        self.returning = True
        self.remember_fragment()
        if isinstance(found, Result):
            return found
        self.service = found[0]
        return self.translate(*found)

    def step_error(self) -> Result:
        outer = self.packet
        quote = rewriting.parse_quote(outer)
        if quote is None:
            return self.leave("PASS", "PASS_ICMP")
        # The quoted packet went the other way: its reverse is the flow it belongs to.
        self.error = True
        outer.source, outer.destination = quote.destination, quote.source
        outer.source_port, outer.destination_port = quote.destination_port, quote.source_port
        outer.protocol, outer.tcp_flags, outer.payload = quote.protocol, 0, 0
        self.hash = hash_flow(self.world.seeds, self.key)
        service = self.match(outer.destination, outer.destination_port, outer.protocol)
        if service is None and self.has(Setting.NAT):
            found = self.find_return()
            if isinstance(found, tuple):
                self.returning = True
                return self.translate_error(quote, *found)
        if service is None and self.has(Setting.ROUTED):
            service, _ = self.match_routed()
            self.routed = True
        if service is None:
            return self.leave("PASS", "PASS_ICMP")
        self.service = service
        return self.deliver_error(quote, service)

    def deliver_error(self, quote: rewriting.Quote, service: Service) -> Result:
        self.set_connection_key()
        memory, p = self.memory, self.packet
        entry = memory.connections.get(self.connection) or memory.half_open.get(self.connection)
        if service.method is Method.LOCAL:
            node = entry.owner if entry else 0
            if not node or node not in self.world.members:
                node = self.steering_node(p.source, p.source_port)
            return self.steer(node) if self.belongs_elsewhere(node) else self.leave("PASS", "PASS_LOCAL")
        target = entry.target if entry else 0
        if entry is None and not service.flags & ServiceFlag.REMEMBER_NEW:
            target = self.choose(service, first=False)
        if not target:
            return self.leave("DROP", "DROP_ICMP_UNMATCHED")
        if service.method is Method.NAT:
            return self.translate_error(quote, service, self.world.targets[target])
        return self.forward(service, self.world.targets[target])

    def translate_error(self, quote: rewriting.Quote, service: Service, target: Target) -> Result:
        p = self.packet
        change = self.change_for(service, target)
        if p.v6 == change.new.startswith(MAPPED):
            return self.leave("DROP", "DROP_FAMILY")
        if rewriting.hops(p) <= 1:
            return self.leave("DROP", "DROP_TTL")
        refusal, egress, mac, source_mac, vlan, _ = self.next_hop(target, change)
        to_kernel = refusal == "PASS_NEIGHBOUR_UNKNOWN"
        if refusal and not to_kernel:
            return self.leave("DROP", refusal)
        frame = rewriting.translate_error(p, quote, change, decrement=not to_kernel)
        if to_kernel:
            return self.leave("PASS", refusal, frame)
        return self.out(egress, "SENT_ICMP_ERROR", rewriting.relink(parse_again(frame, p), mac, source_mac, vlan))
