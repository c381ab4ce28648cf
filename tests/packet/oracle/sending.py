# SPDX-License-Identifier: Apache-2.0
"""The last steps: on to a backend or another gateway, rewritten, or refused with an answer."""

import ipaddress

from ebpf.layout import Method, Setting, TargetFlag
from tests.packet.oracle import answers, rewriting
from tests.packet.oracle.hashing import hash_client_port, hash_flow, slot_of
from tests.packet.oracle.headers import MAPPED, Packet, parse_link
from tests.packet.oracle.memory import Result
from tests.packet.oracle.walk import Walk
from tests.packet.oracle.world import SELF, STEERING_SLOTS, Service, Target


class Sending(Walk):
    """A target or a gateway is chosen: how the packet goes there, or why it does not."""

    def target_of(self, target_id: int) -> Target | None:
        return self.world.targets.get(target_id)

    def is_alive(self, target_id: int) -> bool:
        target, service = self.target_of(target_id), self.service
        if target is None or service is None or self.world.service_of_target[target_id] != service.id:
            return False
        return bool(target.flags & TargetFlag.ALIVE)

    def is_choosable(self, target_id: int) -> bool:
        target = self.target_of(target_id)
        if target is None or not self.is_alive(target_id):
            return False
        return not target.flags & (TargetFlag.DRAINING | TargetFlag.FULL)

    def backend(self, address: bytes, port: int) -> int:
        """The first target of `nat` services with this endpoint, 0 for none."""
        if not self.has(Setting.NAT):
            return 0
        found = self.gateway.nat.get((address, port, self.packet.protocol), 0)
        if not found and self.has(Setting.ANY_PORT):
            found = self.gateway.nat.get((address, 0, self.packet.protocol), 0)
        return found

    def steering_node(self, client: bytes, port: int) -> int:
        seeds = self.world.seeds
        value = hash_client_port(seeds, client, port)
        if self.routed:
            p = self.packet
            if self.backend(p.destination, p.destination_port):
                value = hash_client_port(seeds, p.source, p.source_port)
            elif self.backend(p.source, p.source_port):
                value = hash_client_port(seeds, p.destination, p.destination_port)
            else:
                value = hash_flow(seeds, self.connection)
        return self.world.steering[slot_of(value, STEERING_SLOTS)] & 0xFF

    def belongs_elsewhere(self, node: int) -> bool:
        if not self.has(Setting.STEERING) or node in (0, SELF) or node not in self.world.members:
            return False
        return not self.from_peer

    def steer(self, node: int) -> Result:
        packet, world = self.packet, self.world
        if node in world.peer_mac.values() and self.ingress == "wan":
            return self.leave("TX", "SENT_STEERED", b"".join(world.node_path) + packet.frame[12:])
        own, address = world.node_address[SELF], world.node_address[node]
        egress, mac = self.route(address)
        if mac is None or own.startswith(MAPPED) != address.startswith(MAPPED):
            return self.leave("DROP", "DROP_NODE_UNREACHABLE")
        overhead = 20 if address.startswith(MAPPED) else 40
        if packet.ip_length + overhead > world.route_mtu[egress]:
            return self.answer_size(world.route_mtu[egress] - overhead)
        source = own[12:] if own.startswith(MAPPED) else own
        frame = rewriting.tunnel(packet, source, address, self.hash, mac, world.route_source_mac[egress], 0)
        return self.out(egress, "SENT_STEERED_TUNNEL", frame)

    def route(self, destination: bytes) -> tuple[str, bytes | None]:
        """Interface and MAC of the next hop; an empty interface where the kernel keeps the packet for itself."""
        mapped = destination.startswith(MAPPED)
        address = ipaddress.ip_address(destination[12:] if mapped else destination)
        if address.is_multicast or (mapped and destination[12] >= 0xF0):
            return "", None
        for network, egress, mac in self.world.routes:
            if address.version == network.version and address in network:
                return egress, mac
        return "", None

    def take(self, service: Service, target_id: int) -> Result:
        if service.method is Method.LOCAL:
            return self.leave("PASS", "PASS_LOCAL")
        self.target = target_id
        target = self.world.targets[target_id]
        return self.translate(service, target) if service.method is Method.NAT else self.forward(service, target)

    def refuse(self) -> Result:
        return self.leave("DROP", "DROP_NO_TARGET")

    def reset(self) -> Result:
        frame = answers.reset(self.packet)
        return self.leave("DROP", "DROP_TARGET_DEAD") if frame is None else self.leave("TX", "SENT_RESET", frame)

    def may_answer_size(self) -> bool:
        p = self.packet
        return not self.error and not p.later_fragment and (p.v6 or bool(p.frame[p.l3 + 6] & 0x40))

    def answer_size(self, mtu: int) -> Result:
        return self.too_big(mtu) if self.may_answer_size() else self.leave("DROP", "DROP_TOO_BIG")

    def too_big(self, mtu: int) -> Result:
        frame = answers.error(self.packet, "too big", mtu)
        return self.leave("DROP", "DROP_TOO_BIG") if frame is None else self.leave("TX", "SENT_TOO_BIG", frame)

    def forward(self, service: Service, target: Target) -> Result:
        p, world = self.packet, self.world
        tunnel, target4 = service.method is Method.TUNNEL, target.address.startswith(MAPPED)
        if not tunnel and p.v6 == target4:
            return self.leave("DROP", "DROP_FAMILY")
        egress, mac, source_mac, vlan = target.egress, target.mac, target.source_mac, target.vlan
        if not target.flags & TargetFlag.RESOLVED:
            egress, resolved = self.route(target.address)
            if resolved is None:
                return self.leave("DROP", "DROP_NEIGHBOUR_UNKNOWN" if egress else "DROP_NO_ROUTE")
            mac, source_mac, vlan = resolved, world.route_source_mac[egress], 0
        overhead = (20 if target4 else 40) if tunnel else 0
        if target.mtu and p.ip_length + overhead > target.mtu:
            return self.answer_size(target.mtu - overhead)
        if tunnel:
            source = rewriting.outer_source(world, target.address, self.hash)
            frame = rewriting.tunnel(p, source, target.address, self.hash, mac, source_mac, vlan)
        else:
            frame = rewriting.relink(p, mac, source_mac, vlan)
        return self.out(egress, "SENT_ICMP_ERROR" if self.error else "SENT_FORWARDED", frame)

    def change_for(self, service: Service, target: Target) -> rewriting.Change:
        p = self.packet
        if self.returning:
            _, destination, _, destination_port, _ = self.connection
            return rewriting.Change(True, p.source, destination, p.source_port, destination_port)
        port = target.port or p.destination_port
        return rewriting.Change(False, p.destination, target.address, p.destination_port, port)

    def next_hop(self, target: Target, change: rewriting.Change) -> tuple[str, str, bytes, bytes, int, int]:
        """(refusal, egress, mac, source mac, vlan, mtu told)."""
        p, world = self.packet, self.world
        if not self.returning and target.flags & TargetFlag.RESOLVED:
            refusal = "DROP_TOO_BIG" if target.mtu and p.ip_length > target.mtu else ""
            return refusal, target.egress, target.mac, target.source_mac, target.vlan, target.mtu
        egress, mac = self.route(p.destination if self.returning else change.new)
        if not egress:
            return "PASS_NEIGHBOUR_UNKNOWN", "", b"", b"", 0, 0
        if p.ip_length > world.route_mtu[egress]:
            return "DROP_TOO_BIG", egress, b"", b"", 0, world.route_mtu[egress]
        if mac is None:
            return "PASS_NEIGHBOUR_UNKNOWN", egress, b"", b"", 0, 0
        return "", egress, mac, world.route_source_mac[egress], 0, 0

    def translate(self, service: Service, target: Target) -> Result:
        p = self.packet
        change = self.change_for(service, target)
        if p.v6 == change.new.startswith(MAPPED):
            return self.leave("DROP", "DROP_FAMILY")
        if rewriting.hops(p) <= 1:
            return self.hops_over()
        refusal, egress, mac, source_mac, vlan, mtu = self.next_hop(target, change)
        if refusal == "DROP_TOO_BIG":
            if self.may_answer_size():
                return self.too_big(mtu)
            if p.v6:
                return self.leave("DROP", refusal)
            refusal = "PASS_NEIGHBOUR_UNKNOWN"
        to_kernel = refusal == "PASS_NEIGHBOUR_UNKNOWN"
        frame = rewriting.translate(p, change, decrement=not to_kernel)
        if to_kernel:
            return self.leave("PASS", refusal, frame)
        frame = rewriting.relink(parse_again(frame, p), mac, source_mac, vlan)
        return self.out(egress, "SENT_RETURNED" if self.returning else "SENT_FORWARDED", frame)

    def hops_over(self) -> Result:
        if self.returning or self.packet.later_fragment:
            return self.leave("DROP", "DROP_TTL")
        frame = answers.error(self.packet, "time exceeded", 0)
        return self.leave("DROP", "DROP_TTL") if frame is None else self.leave("TX", "SENT_TIME_EXCEEDED", frame)


def parse_again(frame: bytes, like: Packet) -> Packet:
    """The same packet with other bytes: offsets do not change by translation."""
    again = parse_link(frame)
    again.l3, again.l4, again.end, again.v6 = like.l3, like.l4, like.end, like.v6
    return again
