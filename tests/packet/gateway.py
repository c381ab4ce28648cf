# SPDX-License-Identifier: Apache-2.0
"""A packet path of its own for tests and benchmarks: its pins go away with it; configured in a few words."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf import layout, libbpf, loader, test_run
from ebpf.layout import Method, Replicate, Scheduler, Setting, State, TargetFlag
from ebpf.maps import Maps
from ebpf.reasons import BY_NAME, REASONS

NODE = 1
SEEDS = (0x0123456789ABCDEF, 0x1122334455667788)
TCP, UDP = 6, 17
GATEWAY_MAC = "02:00:00:00:00:01"
CLIENT_MAC = "02:00:00:00:00:99"
# Test runs without an interface come in on the loopback device: what goes out there is sent back (TX).
LOOPBACK = 1
OTHER_INTERFACE = 77
TEST_SIZES = {"connections": 1 << 16, "half_open": 1 << 9, "tables": 64, "records": 1 << 16, "captures": 1 << 16}


@dataclass(frozen=True)
class Backend:
    """A target as tests describe it; ``mac`` empty leaves it unresolved."""

    id: int
    address: str
    port: int = 0
    mac: str = ""
    weight: int = 1
    flags: TargetFlag = TargetFlag.ALIVE
    mtu: int = 1500
    connections_max: int = 0
    nat_next: int = 0
    ifindex: int = LOOPBACK
    vlan: int = 0


@dataclass(frozen=True)
class Service:
    """A service as tests describe it."""

    id: int
    address: str
    port: int
    protocol: int
    method: Method
    backends: Sequence[Backend] = ()
    scheduler: Scheduler = Scheduler.MAGLEV
    replicate: Replicate = Replicate.ESTABLISHED
    flags: int = 0
    persistence_s: int = 0
    slots: Sequence[int] = field(default=())


def mac_bytes(mac: str) -> npt.NDArray[np.uint8]:
    """Six bytes of aa:bb:cc:dd:ee:ff."""
    return np.frombuffer(bytes.fromhex(mac.replace(":", "")), np.uint8)


def backend_mac(target: int) -> str:
    """The MAC tests give to a target."""
    return f"02:00:00:01:{target >> 8:02x}:{target & 255:02x}"


class Gateway:
    """The loaded path and its maps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.maps: Maps = loader.create_maps(directory / "maps", TEST_SIZES)
        loader.load_programs(directory)
        self.entry = loader.open_program(directory)
        self.where = loader.open_program(directory, "lb_where")
        self.reset()

    def reopen(self) -> None:
        """Follows a replacement of the programs."""
        os.close(self.entry)
        os.close(self.where)
        self.entry = loader.open_program(self.directory)
        self.where = loader.open_program(self.directory, "lb_where")

    def reset(self) -> None:
        """Back to an empty configuration and empty tables; counters at zero."""
        maps = self.maps
        for each in maps:
            if each.spec.kind in (libbpf.MAP_HASH, libbpf.MAP_LRU_HASH):
                each.clear()
            elif each.is_array and each.name != "settings":
                self._zero(each.name)
        for ring in (maps.records, maps.captures):
            self.drain(ring.name)
        maps.change_settings(
            hash_seed=SEEDS,
            flags=int(Setting.RECORDS),
            node=NODE,
            tunnel_source4=np.frombuffer(bytes([172, 16, 0, 0]), np.uint8),
            tunnel_vary4=0x0000FFFF,
            tunnel_source6=layout.pack_address("fd00:ffff::"),
            tunnel_vary6=0x0000FFFF,
            admissions_per_s=0,
        )

    def _zero(self, name: str) -> None:
        each = getattr(self.maps, name)
        keys, values = each.dump()
        used = values.reshape(len(keys), -1).view(np.uint8).reshape(len(keys), -1).any(axis=1)
        if used.any():
            each.update(keys[used], np.zeros_like(values[used]))

    def drain(self, ring: str = "records") -> npt.NDArray[Any]:
        """Everything in a ring buffer."""
        from ebpf.ring_buffer import RingBuffer

        buffer = RingBuffer(getattr(self.maps, ring))
        try:
            return buffer.drain(1 << 20)
        finally:
            buffer.close()

    def settings(self, **fields: Any) -> None:
        """Changes settings."""
        self.maps.change_settings(**fields)

    def flags(self, *flags: Setting) -> None:
        """Adds settings flags."""
        current = self.maps.settings.get(0)
        assert current is not None
        value = int(current["flags"])
        for flag in flags:
            value |= int(flag)
        self.maps.change_settings(flags=value)

    def put_target(self, service: Service, backend: Backend) -> None:
        """Writes one target (and its way back, for nat)."""
        value = np.zeros((), layout.TARGET)
        value["address"] = layout.pack_address(backend.address)
        value["port"], value["service"], value["method"] = backend.port, service.id, int(service.method)
        value["flags"] = int(backend.flags)
        value["mtu"], value["weight"], value["connections_max"] = backend.mtu, backend.weight, backend.connections_max
        value["nat_next"], value["vlan"], value["ifindex"] = backend.nat_next, backend.vlan, backend.ifindex
        if backend.mac:
            value["mac"], value["source_mac"] = mac_bytes(backend.mac), mac_bytes(GATEWAY_MAC)
            value["flags"] |= int(TargetFlag.RESOLVED)
        self.maps.targets.set(backend.id, value)
        if service.method is Method.NAT:
            key = layout.endpoint(backend.address, backend.port or service.port, service.protocol)
            if self.maps.nat_return.get(key) is None:
                self.maps.nat_return.set(key, backend.id)

    def put_service(self, service: Service) -> None:
        """Writes a service, its targets and its table; slots default to the targets in turn."""
        slots = list(service.slots) or [backend.id for backend in service.backends for _ in range(backend.weight)]
        value = np.zeros((), layout.SERVICE)
        value["address"] = layout.pack_address(service.address)
        value["port"], value["protocol"], value["method"] = service.port, service.protocol, int(service.method)
        value["scheduler"], value["replicate"] = int(service.scheduler), int(service.replicate)
        value["flags"], value["table_slots"] = int(service.flags), len(slots)
        value["persistence_s"] = service.persistence_s
        for backend in service.backends:
            self.put_target(service, backend)
        self.maps.service_table.set(service.id, value)
        if slots:
            self.maps.replace_table(service.id, np.array(slots, np.uint16))
        self.maps.services.set(layout.endpoint(service.address, service.port, service.protocol), service.id)
        self.put_address(service.address, layout.AddressFlag.VIP | layout.AddressFlag.HELD)
        if service.method is Method.NAT:
            self.flags(Setting.NAT)
        if service.port == 0:
            self.flags(Setting.ANY_PORT)
        self.settings()

    def put_address(self, address: str, flags: layout.AddressFlag, lease_s: float = 3600) -> None:
        """Writes a VIP or own address with a lease from now."""
        entry = np.zeros((), layout.ADDRESS_ENTRY)
        entry["lease_until_ns"], entry["flags"] = time.monotonic_ns() + int(lease_s * 1e9), int(flags)
        self.maps.addresses.set(layout.pack_address(address).view(layout.ADDRESS_KEY), entry)

    def put_connection(
        self, key: npt.NDArray[np.void], service: int, target: int, state: State = State.ESTABLISHED, owner: int = NODE
    ) -> None:
        """Writes one established connection."""
        value = np.zeros((), layout.CONNECTION)
        value["last_seen_s"], value["target"] = int(time.monotonic()), target
        value["owner"] = value["origin"] = owner
        value["state"], value["service"] = int(state), service
        self.maps.connections.set(key, value)

    def connection(self, key: npt.NDArray[np.void]) -> npt.NDArray[np.void] | None:
        """The entry of a connection."""
        return self.maps.connections.get(key)

    def run(self, packet: bytes, ifindex: int = 0) -> tuple[int, bytes]:
        """One packet through the path: verdict and packet as it left."""
        result = test_run.run(self.entry, packet, ifindex=ifindex)
        return result.verdict, result.packet

    def reasons(self) -> dict[str, int]:
        """Packets per reason, summed over CPUs, without zeros."""
        _, values = self.maps.reason_counters.dump()
        sums = values["packets"].sum(axis=1)
        return {reason.name: int(sums[reason.number]) for reason in REASONS if sums[reason.number]}

    def reason_count(self, name: str) -> int:
        """Packets of one reason."""
        value = self.maps.reason_counters.get(BY_NAME[name].number)
        assert value is not None
        return int(value["packets"].sum())

    def close(self) -> None:
        """Unpins and closes everything."""
        self.maps.close()
        os.close(self.entry)
        os.close(self.where)
        loader.remove(self.directory)


@contextmanager
def loaded_gateway() -> Iterator[Gateway]:
    """A gateway for the block."""
    with (
        tempfile.TemporaryDirectory(prefix="rainlb-bpf-") as name,
        loader.mounted_bpffs(Path(name)) as path,
        closing(Gateway(path / "gateway")) as gateway,
    ):
        yield gateway
