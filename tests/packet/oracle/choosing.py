# SPDX-License-Identifier: Apache-2.0
"""Which target a new connection gets."""

from ebpf.layout import SLOT_TARGET_MASK, Scheduler, ServiceFlag
from tests.packet.oracle.hashing import U64, hash_client, mix, slot_of
from tests.packet.oracle.headers import TCP, UDP
from tests.packet.oracle.memory import Entry, forget
from tests.packet.oracle.sending import Sending
from tests.packet.oracle.world import SELF, Service

CHOICES_MAX = 32


class Chance(Exception):
    """The target is drawn by lot from `targets`."""

    def __init__(self, targets: list[int]) -> None:
        self.targets = targets


class Choosing(Sending):
    """A connection without a target."""

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
