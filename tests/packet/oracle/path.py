# SPDX-License-Identifier: Apache-2.0
"""What the packet path is to do with a frame: verdict, reason, bytes, and what it remembers of it.

Nothing is shared with the C program but the documented behaviour (docs/packet-path.md) and the names of the reasons.
A decision that hangs on chance (least connections) is left open: `handle` raises `Chance` with the possible targets,
and is called again with each of them `forced`.
"""

import ipaddress
from collections.abc import Callable

from ebpf.layout import SLOT_MOVED, SLOT_TARGET_MASK, AddressFlag, Method, Scheduler, ServiceFlag, Setting, TargetFlag
from tests.packet.oracle import answers, rewriting
from tests.packet.oracle.hashing import U64, hash_client, hash_client_port, hash_flow, mix, slot_of
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
    Packet,
    Refused,
    parse_ipv4,
    parse_ipv6,
    parse_link,
    parse_transport,
    u16,
)
from tests.packet.oracle.memory import Entry, Key, Memory, Result, forget
from tests.packet.oracle.world import SELF, STEERING_SLOTS, Service, Target, World, nat_endpoints

FIN, SYN, RST, ACK = 1, 2, 4, 16
CHOICES_MAX = 32
NAT_CHAIN_MAX = 4

OVER = ("FIN_CLIENT", "FIN_SERVER", "CLOSING", "RESET")


class Chance(Exception):
    """The target is drawn by lot from `targets`."""

    def __init__(self, targets: list[int]) -> None:
        self.targets = targets


def is_special(address: bytes) -> bool:
    """Multicast, broadcast, link-local."""
    if address.startswith(MAPPED):
        return address[12] >= 224 or address[12:14] == b"\xa9\xfe"
    return address[0] == 0xFF or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)


class Path:
    """The path of one gateway over its whole life."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.memory = Memory()
        self.nat = nat_endpoints(world)
        self.services = {(s.address, s.port, s.protocol): s for s in world.services.values()}

    # ------------------------------------------------------------------------------------------------- the way

    def handle(self, frame: bytes, ingress: str = "wan", forced: int | None = None) -> Result:
        """The result; its `commits` are to be called if this is what happened. Raises Chance."""
        return Walk(self, frame, ingress, forced).run()


class Walk:
    """One packet's way. `commits` collects what it will leave in memory."""

    def __init__(self, path: Path, frame: bytes, ingress: str, forced: int | None) -> None:
        self.path, self.world, self.memory = path, path.world, path.memory
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

    def run(self) -> Result:
        try:
            return self.step_parse()
        except Refused as refusal:
            return self.leave("DROP", str(refusal))

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

    # ------------------------------------------------------------------------------------------------- parsing

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

    def fragment_key(self) -> tuple[bytes, bytes, bytes, int]:
        p, fragment = self.packet, self.packet.fragment
        assert fragment is not None
        return p.source, p.destination, fragment.id, fragment.protocol

    def remember_fragment(self) -> None:
        p = self.packet
        if p.fragment and not p.fragment.later:
            key, ports = self.fragment_key(), (p.source_port, p.destination_port)
            self.commits.append(lambda: self.memory.fragments.__setitem__(key, ports))

    # ------------------------------------------------------------------------------------- neighbours and echo

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

    # --------------------------------------------------------------------------------------------- whose is it

    def match(self, address: bytes, port: int, protocol: int) -> Service | None:
        found = self.path.services.get((address, port, protocol))
        if found is None and self.has(Setting.ANY_PORT):
            found = self.path.services.get((address, 0, protocol))
        return found

    def match_routed(self) -> tuple[Service | None, str]:
        p = self.packet
        if is_special(p.destination) or is_special(p.source):
            return None, "PASS_NOT_OURS"
        for address in (p.destination, p.source):
            if address in self.world.own or address in self.world.vips:
                return None, "PASS_OWN_ADDRESS"
        return self.path.services.get((bytes(16), 0, 0)), "PASS_NOT_OURS"

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

    # --------------------------------------------------------------------------------------------- connections

    def set_connection_key(self) -> None:
        source, destination, source_port, destination_port, protocol = self.key
        self.connection, self.swapped = self.key, False
        greater = source > destination if source != destination else source_port > destination_port
        if self.routed and greater:
            self.swapped = True
            self.connection = (destination, source, destination_port, source_port, protocol)

    @property
    def is_first(self) -> bool:
        return self.packet.tcp_flags & (SYN | ACK | RST | FIN) == SYN

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

    def short_way_settles(self, service: Service) -> bool:
        """A first packet whose target is a function of the packet, now as before: no table is asked."""
        if self.packet.protocol != TCP or not self.is_first or service.flags & ServiceFlag.REMEMBER_NEW:
            return False
        if service.method is Method.LOCAL or service.scheduler is not Scheduler.MAGLEV or not service.slots:
            return False
        return not service.slots[slot_of(self.hash, len(service.slots))] & SLOT_MOVED

    def connect(self, service: Service) -> Result:
        self.set_connection_key()
        entry = None if self.short_way_settles(service) else self.memory.connections.get(self.connection)
        if entry is not None and self.is_first and entry.state in OVER and self.packet.protocol == TCP:
            self.drop_entry(self.connection)
            entry = None
        if entry is not None:
            return self.use(service, entry)
        half = None
        if service.flags & ServiceFlag.REMEMBER_NEW and service.method is not Method.LOCAL:
            half = self.memory.half_open.get(self.connection)
        return self.open(service, half)

    def drop_entry(self, key: Key) -> None:
        self.commits.append(lambda: forget(self.memory.connections, key))

    def use(self, service: Service, entry: Entry) -> Result:
        target = entry.target
        if service.method is Method.LOCAL:
            node = entry.owner
            if node != SELF and node not in self.world.members:
                node = self.steering_node(self.packet.source, self.packet.source_port)
            if self.belongs_elsewhere(node):
                return self.steer(node)
            self.own(entry)
        elif not self.is_alive(target):
            if self.packet.protocol == TCP and not service.flags & ServiceFlag.RECHOOSE_DEAD:
                self.drop_entry(self.connection)
                return self.reset()
            target = self.choose(service, first=False)
            if not target:
                return self.refuse()
            self.commits.append(lambda: self.move(entry, target))
        else:
            self.own(entry)
        self.follow(entry, self.swapped)
        return self.take(service, target)

    def own(self, entry: Entry) -> None:
        self.commits.append(lambda: setattr(entry, "owner", SELF))

    @staticmethod
    def move(entry: Entry, target: int) -> None:
        entry.target, entry.owner = target, SELF

    def next_state(self, state: str, from_server: bool) -> str:
        p = self.packet
        own, other = ("FIN_SERVER", "FIN_CLIENT") if from_server else ("FIN_CLIENT", "FIN_SERVER")
        if p.protocol != TCP or p.later_fragment or self.error:
            return state
        if p.tcp_flags & RST:
            return "RESET"
        if p.tcp_flags & FIN:
            return "CLOSING" if state in (other, "CLOSING") else own
        if state == "RESET" or (state == own and p.payload):
            return "ESTABLISHED"
        return state

    def follow(self, entry: Entry, from_server: bool) -> None:
        state = self.next_state(entry.state, from_server)
        if state == "ESTABLISHED" and entry.state != state:
            self.unsure = self.connection
        self.commits.append(lambda: setattr(entry, "state", state))

    def open(self, service: Service, half: Entry | None) -> Result:
        p, local = self.packet, service.method is Method.LOCAL
        first = self.is_first if p.protocol == TCP else half is None
        if service.flags & ServiceFlag.STEERED and (half is None or self.is_first):
            node = self.steering_node(p.source, p.source_port)
            if self.belongs_elsewhere(node):
                return self.steer(node)
        target = 0
        if not local:
            if half is not None and self.is_alive(half.target):
                target = half.target
            target = target or self.persistent(service) or self.choose(service, first)
            if not target:
                return self.refuse()
        if first:
            self.remember_first(service, target)
        elif not p.tcp_flags & RST:
            self.establish(service, target)
        return self.take(service, target)

    def persistent(self, service: Service) -> int:
        target = self.memory.persistence.get((self.packet.source, service.id), 0)
        return target if service.persistence_s and target and self.is_choosable(target) else 0

    def remember_first(self, service: Service, target: int) -> None:
        state = "SYN" if self.packet.protocol == TCP else "UDP_ONCE"
        entry, key = Entry(target, SELF, state, service.id), self.connection
        p = self.packet
        direct = self.routed and p.protocol == TCP and self.backend(p.destination, p.destination_port)
        if service.flags & ServiceFlag.REMEMBER_NEW or direct:
            self.commits.append(lambda: self.memory.half_open.__setitem__(key, entry))
        elif self.packet.protocol == UDP:
            if key in self.memory.seen:
                self.doubtful = key, Entry(target, SELF, "UDP", service.id)
            self.commits.append(lambda: self.memory.seen.add(key))

    def establish(self, service: Service, target: int) -> None:
        state = "ESTABLISHED" if self.packet.protocol == TCP else "UDP"
        entry, key, memory = Entry(target, SELF, state, service.id), self.connection, self.memory
        self.commits.append(lambda: memory.connections.__setitem__(key, entry))
        if service.flags & ServiceFlag.REMEMBER_NEW:
            self.commits.append(lambda: forget(memory.half_open, key))
            if service.persistence_s:
                self.commits.append(lambda: memory.persistence.__setitem__((key[0], service.id), target))

    # ------------------------------------------------------------------------------------------------ choosing

    def choose(self, service: Service, first: bool) -> int:
        slots = service.slots
        if not slots:
            return 0
        seed = self.hash
        if service.scheduler is Scheduler.SOURCE:
            seed = hash_client(self.world.seeds, self.packet.source)
        elif service.scheduler is Scheduler.LEAST_CONNECTIONS and first:
            return self.choose_by_lot(slots)
        slot = slot_of(seed, len(slots))
        if service.scheduler is Scheduler.ROUND_ROBIN and first:
            self.by_turn = True
            turn = self.memory.rotation.get(service.id, 0)
            self.commits.append(lambda: self.memory.rotation.__setitem__(service.id, turn + 1))
            slot = turn % len(slots)
        for _ in range(CHOICES_MAX):
            target = slots[slot] & SLOT_TARGET_MASK
            if self.is_choosable(target):
                return target
            seed = mix((seed + 0x9E3779B97F4A7C15) & U64)
            slot = slot_of(seed, len(slots))
        return 0

    def choose_by_lot(self, slots: list[int]) -> int:
        self.by_turn = True
        if self.forced is not None:
            return self.forced
        candidates = sorted({slot & SLOT_TARGET_MASK for slot in slots})
        # Eight draws may all meet targets that take nothing.
        none = [] if all(self.is_choosable(target) for target in candidates) else [0]
        raise Chance([target for target in candidates if self.is_choosable(target)] + none)

    # ------------------------------------------------------------------------------------------------ steering

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

    # ----------------------------------------------------------------------------------------------- forwarding

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

    # -------------------------------------------------------------------------------------------------- translation

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

    # ------------------------------------------------------------------------------------------- answers of backends

    def backend(self, address: bytes, port: int) -> int:
        """The first target of `nat` services with this endpoint, 0 for none."""
        if not self.has(Setting.NAT):
            return 0
        found = self.path.nat.get((address, port, self.packet.protocol), 0)
        if not found and self.has(Setting.ANY_PORT):
            found = self.path.nat.get((address, 0, self.packet.protocol), 0)
        return found

    def is_early(self) -> bool:
        """An answer from a port that `nat` serves on (from any port: to a SYN), of no connection known here."""
        p, memory = self.packet, self.memory
        if not self.has(Setting.STEERING) or not self.has(Setting.ROUTED):
            return False
        handshake = p.tcp_flags & (SYN | ACK)
        if p.protocol != TCP or handshake == SYN or p.later_fragment or self.error:
            return False
        if handshake != SYN | ACK and (p.source, p.source_port, p.protocol) not in self.path.nat:
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
        target = self.world.targets.get(self.path.nat.get((p.source, p.source_port, p.protocol), 0))
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

    # --------------------------------------------------------------------------------------------------- ICMP errors

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


def parse_again(frame: bytes, like: Packet) -> Packet:
    """The same packet with other bytes: offsets do not change by translation."""
    again = parse_link(frame)
    again.l3, again.l4, again.end, again.v6 = like.l3, like.l4, like.end, like.v6
    return again
