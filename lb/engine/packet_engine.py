# SPDX-License-Identifier: Apache-2.0
"""Keeps the packet path's maps as the configuration, health and neighbours want them.

The engine reads what the pinned maps hold when it opens them, so a restarted daemon changes only what differs and
packets never notice. All calls are synchronous system calls of some microseconds, and tables of some ten
milliseconds: call from a worker thread, one at a time (`lock`); `lb.daemon` does so.
"""

import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ebpf import layout, libbpf
from ebpf.layout import SLOT_TARGET_MASK, AddressFlag, Setting
from ebpf.map_access import Map
from ebpf.map_specs import create_table
from ebpf.maps import Maps
from lb.configuration.fields import IpAddress
from lb.configuration.model import EMPTY, ClusterConfig
from lb.configuration.node import NodeConfig
from lb.engine.plan import (
    CONFIGURED_FLAGS,
    HASHED,
    DeleteEntries,
    Facts,
    ReplaceTables,
    SetEntries,
    SetFlags,
    Slots,
    State,
    Write,
    desired_state,
    plan,
)

# Marks of moved slots stay at least this long after the last change: records about older connections may be on their
# way.
MARK_SECONDS_MIN = 120
FOREVER_NS = 2**64 - 1
TABLES_PER_BATCH = 256
PROGRAM_STAMP = "program.digest"


class EngineError(Exception):
    """The packet path could not be changed; the text names the map and the remedy."""


class PacketEngine:
    """The only writer of services, targets, tables, nat_return, addresses' flags and settings."""

    def __init__(self, maps: Maps, node: NodeConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.maps = maps
        self._tables_lock = threading.Lock()
        self._settings_lock = threading.Lock()
        self._addresses_lock = threading.Lock()
        self.writes = 0
        self._clock = clock
        self._named_sources = node.engine.tunnel_sources
        self._config = EMPTY
        self._facts = Facts(records=node.ring is not None)
        self._state = read_state(maps)
        self._held = read_held(maps)
        self._own: frozenset[str] = frozenset()
        self._table_changed_at = dict.fromkeys(self._state.tables, clock())
        self._prepare_settings(node)

    def _prepare_settings(self, node: NodeConfig) -> None:
        self.change_settings(
            node=node.node.id,
            admissions_per_s=node.engine.admissions_per_s,
            **tunnel_source_settings(node.engine.tunnel_sources),
        )

    def set_tunnel_sources(self, sources: Mapping[int, IpAddress]) -> None:
        """Own addresses for outer headers, by IP version, where the node file names no network for them."""
        named = {ipaddress.ip_network(text).version for text in self._named_sources}
        networks = [f"{address}" for version, address in sources.items() if version not in named]
        fields = tunnel_source_settings(networks)
        settings = self.maps.settings.get(0)
        assert settings is not None
        if any(not np.array_equal(settings[name], value) for name, value in fields.items()):
            self.change_settings(**fields)

    @property
    def config(self) -> ClusterConfig:
        """The configuration last applied."""
        return self._config

    @property
    def facts(self) -> Facts:
        return self._facts

    def update(self, config: ClusterConfig | None = None, **facts: Any) -> int:
        """Makes the maps hold `config` (None: the one it has) under changed `facts` (fields of Facts).

        Returns the number of writes. Raises EngineError, the previous state put back.
        """
        with self._tables_lock:
            wanted, wanted_facts = config or self._config, replace(self._facts, **facts)
            if wanted.hash_seed and wanted.hash_seed != self._config.hash_seed:
                self.change_settings(hash_seed=np.frombuffer(bytes.fromhex(wanted.hash_seed), np.uint64))
            count = self._lead_to(wanted, wanted_facts)
            is_new = wanted is not self._config
            self._config, self._facts = wanted, wanted_facts
            if is_new:
                with self._addresses_lock:
                    self._write_addresses()
            return count

    def _lead_to(self, config: ClusterConfig, facts: Facts) -> int:
        desired = desired_state(config, facts, self._state)
        self._check_capacity(desired)
        writes = plan(self._state, desired)
        try:
            for write in writes:
                self._write(write)
        except OSError as error:
            self._put_back()
            raise EngineError(f"the packet path refuses a change: {error}; the previous state is back") from error
        self._state.recipes = desired.recipes
        return len(writes)

    def _check_capacity(self, desired: State) -> None:
        for name, entries in (("services", desired.endpoints), ("nat_return", desired.nat_return)):
            capacity = getattr(self.maps, name).capacity
            if len(entries) > capacity:
                raise EngineError(
                    f"map {name} holds {capacity} entries, {len(entries)} are needed: use fewer services or backends"
                )

    def _put_back(self) -> None:
        """After a failed write: read what the maps hold and lead back to the last good configuration."""
        self._state = read_state(self.maps)
        for write in plan(self._state, desired_state(self._config, self._facts)):
            self._write(write)

    def _write(self, write: Write) -> None:
        self.writes += 1
        state = self._state
        match write:
            case SetEntries(name, entries):
                _set(getattr(self.maps, name), entries)
                _remember(state, name, entries)
            case DeleteEntries(name, keys):
                self._delete(name, keys)
            case ReplaceTables(tables):
                replace_tables(self.maps, tables)
                state.tables.update(tables)
                self._table_changed_at.update(dict.fromkeys(tables, self._clock()))
            case SetFlags(flags):
                self._change_flags(CONFIGURED_FLAGS, flags)
                state.flags = flags

    def _delete(self, name: str, keys: tuple[bytes, ...]) -> None:
        target = getattr(self.maps, name)
        target.delete(np.frombuffer(b"".join(keys), target.spec.key))
        kept = self._state.endpoints if name == "services" else self._state.nat_return
        for key in keys:
            kept.pop(key, None)

    # --- marks -------------------------------------------------------------------------------------------------------

    def clear_marks(self, oldest_opened_s: Mapping[int, int]) -> int:
        """Removes marks that no connection can need any more; returns the number of services it did so for.

        `oldest_opened_s`: for each service with connections, when its oldest one was opened (seconds, CLOCK_MONOTONIC).
        """
        with self._tables_lock:
            now, cleared = self._clock(), 0
            for service, changed_at in list(self._table_changed_at.items()):
                oldest = oldest_opened_s.get(service)
                if now - changed_at > MARK_SECONDS_MIN and (oldest is None or oldest > changed_at + 1):
                    cleared += self._clear_marks_of(service)
            return cleared

    def _clear_marks_of(self, service: int) -> bool:
        slots, row = self._state.tables.get(service), self._state.services.get(service)
        del self._table_changed_at[service]
        if slots is None or row is None or np.frombuffer(row, layout.SERVICE)[0]["scheduler"] not in HASHED:
            return False
        bare = slots & np.uint16(SLOT_TARGET_MASK)
        if np.array_equal(bare, slots):
            return False
        self.maps.replace_table(service, bare)
        self._state.tables[service] = bare
        return True

    # --- addresses and settings --------------------------------------------------------------------------------------

    def change_settings(self, **fields: Any) -> None:
        """Sets fields of the path's settings. `set_setting` is for single bits of `flags`."""
        with self._settings_lock:
            self.maps.change_settings(**fields)

    def set_setting(self, flag: Setting, on: bool) -> None:
        """Turns one feature on or off that does not follow from the configuration (steering, capture)."""
        assert not int(flag) & CONFIGURED_FLAGS
        self._change_flags(int(flag), int(flag) if on else 0)

    def _change_flags(self, bits: int, values: int) -> None:
        with self._settings_lock:
            settings = self.maps.settings.get(0)
            assert settings is not None
            self.maps.change_settings(flags=(int(settings["flags"]) & ~bits) | values)

    def hold(self, hosts: Iterable[str]) -> None:
        """From now on this gateway answers for exactly these VIPs, as long as the node's lease lasts."""
        with self._addresses_lock:
            self._held = frozenset(hosts)
            self._write_addresses()

    def set_lease(self, until_ns: int) -> None:
        """Until when this gateway may answer for the VIPs it holds (CLOCK_MONOTONIC). One system call: any thread."""
        self.maps.lease.set(0, until_ns)

    def set_own_addresses(self, own: Iterable[IpAddress]) -> None:
        """The gateway's own addresses, which are never balanced, and for which it always answers: a VIP that is one of
        them by mistake must not take the gateway off its segment."""
        with self._addresses_lock:
            self._own = frozenset(str(address) for address in own)
            self._write_addresses()

    def _write_addresses(self) -> None:
        wanted = {
            vip.host: int(AddressFlag.VIP | (AddressFlag.HELD if vip.host in self._held else 0))
            for vip in self._config.vips
        }
        wanted |= {host: int(AddressFlag.OWN) for host in self._own}
        entries = np.zeros(len(wanted), layout.ADDRESS_ENTRY)
        entries["flags"] = list(wanted.values())
        keys = _address_keys(wanted)
        present, _ = self.maps.addresses.dump()
        self.maps.addresses.update(keys, entries)
        self.maps.addresses.delete(present[~np.isin(_as_bytes(present), _as_bytes(keys))])

    def close(self) -> None:
        """Lets go of the maps; the pins keep them and packets go on."""
        self.maps.close()


def replace_tables(maps: Maps, tables: Mapping[int, Slots]) -> None:
    """Swaps the lookup tables of services, each at once.

    The kernel waits for all processors after each swap, some ten milliseconds; in a batch it waits once for all.
    """
    waiting = list(tables.items())
    for begin in range(0, len(waiting), TABLES_PER_BATCH):
        _replace_batch(maps, dict(waiting[begin : begin + TABLES_PER_BATCH]))


def _replace_batch(maps: Maps, tables: Mapping[int, Slots]) -> None:
    descriptors = []
    line_numbers = np.arange(layout.TABLE_LINES, dtype=np.uint32)
    try:
        for slots in tables.values():
            descriptor = create_table()
            descriptors.append(descriptor)
            lines = layout.table_lines(slots)
            libbpf.update_batch(descriptor, line_numbers.ctypes.data, lines.ctypes.data, len(lines))
        maps.tables.update(list(tables), descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _set(target: Map, entries: Mapping[Any, Any]) -> None:
    keys, values = list(entries), list(entries.values())
    packed_keys = np.frombuffer(b"".join(keys), target.spec.key) if isinstance(keys[0], bytes) else keys
    packed_values = np.frombuffer(b"".join(values), target.spec.value) if isinstance(values[0], bytes) else values
    target.update(packed_keys, packed_values)


def _remember(state: State, name: str, entries: Mapping[Any, Any]) -> None:
    match name:
        case "services":
            state.endpoints.update(entries)
        case "nat_return":
            state.nat_return.update(entries)
        case "service_table":
            _remember_rows(state.services, entries)
        case "targets":
            _remember_rows(state.targets, entries)


def _remember_rows(rows: dict[int, bytes], entries: Mapping[int, bytes]) -> None:
    for key, row in entries.items():
        if row.strip(b"\0"):
            rows[key] = row
        else:
            rows.pop(key, None)


def _address_keys(hosts: Iterable[str]) -> np.ndarray[Any, Any]:
    packed = b"".join(layout.pack_address(host).tobytes() for host in hosts)
    return np.frombuffer(packed, layout.ADDRESS_KEY)


def _as_bytes(keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(keys).view("V16").reshape(-1)


def tunnel_source_settings(sources: Sequence[str]) -> dict[str, Any]:
    """Fields of the settings for outer source addresses: what is fixed, and the host bits that vary by flow."""
    fields: dict[str, Any] = {}
    for text in sources:
        network = ipaddress.ip_network(text)
        base = np.frombuffer(network.network_address.packed, np.uint8)
        hostmask = int(network.hostmask) & 0xFFFF_FFFF
        if network.version == 4:
            fields |= {"tunnel_source4": base, "tunnel_vary4": hostmask}
        else:
            fields |= {"tunnel_source6": base, "tunnel_vary6": hostmask}
    return fields


# --- what the maps hold ----------------------------------------------------------------------------------------------


def read_state(maps: Maps) -> State:
    """The content of the maps as they are in the kernel now."""
    settings = maps.settings.get(0)
    assert settings is not None
    state = State(
        endpoints=_read_hash(maps.services),
        services=_read_rows(maps.service_table),
        targets=_read_rows(maps.targets),
        nat_return=_read_hash(maps.nat_return),
        flags=int(settings["flags"]) & CONFIGURED_FLAGS,
    )
    for service in state.services:
        slots = maps.read_table(service)
        if slots is not None:
            state.tables[service] = slots
    return state


def read_held(maps: Maps) -> frozenset[str]:
    """The VIPs this gateway answers for as the maps are now."""
    return read_addresses(maps, AddressFlag.HELD)


def read_addresses(maps: Maps, flag: AddressFlag) -> frozenset[str]:
    """The addresses that carry `flag` in the maps."""
    keys, entries = maps.addresses.dump()
    marked = (entries["flags"] & int(flag)) != 0
    return frozenset(str(layout.unpack_address(address)) for address in keys["address"][marked])


def _read_hash(source: Map) -> dict[bytes, int]:
    keys, values = source.dump()
    keys = keys.astype(source.spec.key)
    return {key.tobytes(): int(value) for key, value in zip(keys, values, strict=True)}


def _read_rows(source: Map) -> dict[int, bytes]:
    _, values = source.dump()
    values = values.astype(source.spec.value)
    used = np.flatnonzero(values.view(np.uint8).reshape(len(values), -1).any(axis=1))
    return {int(index): values[index].tobytes() for index in used}
