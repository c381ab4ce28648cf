# SPDX-License-Identifier: Apache-2.0
"""A packet of a client: its service, its connection if there is one, and what becomes of that."""

from ebpf.layout import SLOT_MOVED, Method, Scheduler, ServiceFlag, Setting
from tests.packet.oracle.choosing import Choosing
from tests.packet.oracle.hashing import slot_of
from tests.packet.oracle.headers import TCP
from tests.packet.oracle.memory import Entry, Key, Result, forget
from tests.packet.oracle.walk import FIN, RST, is_special
from tests.packet.oracle.world import SELF, Service

OVER = ("FIN_CLIENT", "FIN_SERVER", "CLOSING", "RESET")


class Connecting(Choosing):
    """Services are matched, connections found, opened and followed."""

    def match(self, address: bytes, port: int, protocol: int) -> Service | None:
        found = self.gateway.services.get((address, port, protocol))
        if found is None and self.has(Setting.ANY_PORT):
            found = self.gateway.services.get((address, 0, protocol))
        return found

    def match_routed(self) -> tuple[Service | None, str]:
        p = self.packet
        if is_special(p.destination) or is_special(p.source):
            return None, "PASS_NOT_OURS"
        for address in (p.destination, p.source):
            if address in self.world.own or address in self.world.vips:
                return None, "PASS_OWN_ADDRESS"
        return self.gateway.services.get((bytes(16), 0, 0)), "PASS_NOT_OURS"

    def set_connection_key(self) -> None:
        source, destination, source_port, destination_port, protocol = self.key
        self.connection, self.swapped = self.key, False
        greater = source > destination if source != destination else source_port > destination_port
        if self.routed and greater:
            self.swapped = True
            self.connection = (destination, source, destination_port, source_port, protocol)

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
