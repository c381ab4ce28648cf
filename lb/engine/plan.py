# SPDX-License-Identifier: Apache-2.0
"""What the packet path's maps should hold, and the writes that lead there. Pure: values in, values out.

The order of writes is what keeps every single packet right while they happen: what is referred to is written before
what refers to it, and goes after it. A lookup table is swapped as a whole. The last write moves the epoch on, which
makes the path forget its short-cuts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebpf import layout
from ebpf.layout import SLOT_MOVED, SLOT_TARGET_MASK, Method, Replicate, Scheduler, ServiceFlag, Setting, TargetFlag
from lb.configuration.model import Backend, ClusterConfig, Service
from lb.engine.backend_table import Choice, maglev, round_robin

Slots = NDArray[np.uint16]

METHODS = {"dsr": Method.DSR, "tunnel": Method.TUNNEL, "nat": Method.NAT, "local": Method.LOCAL}
SCHEDULERS = {
    "maglev": Scheduler.MAGLEV,
    "rr": Scheduler.ROUND_ROBIN,
    "wlc": Scheduler.LEAST_CONNECTIONS,
    "source": Scheduler.SOURCE,
}
# Their targets are a function of the packet, as far as their slots are not marked.
HASHED = (Scheduler.MAGLEV, Scheduler.SOURCE)
REPLICATE = {"none": Replicate.NONE, "established": Replicate.ESTABLISHED, "all": Replicate.ALL}
# Bits of settings.flags that follow from the configuration; the others belong to the cluster and to captures.
CONFIGURED_FLAGS = int(Setting.ANY_PORT | Setting.NAT | Setting.ROUTED | Setting.RECORDS)
ROTATION_MAX = 4096
EMPTY_SERVICE = np.zeros((), layout.SERVICE).tobytes()
EMPTY_TARGET = np.zeros((), layout.TARGET).tobytes()


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to a target: out of interface `ifindex`, to `mac`. `mtu` 0: not known."""

    ifindex: int
    mac: bytes
    source_mac: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of a backend besides its configuration; `weight` replaces the configured one (slow start)."""

    alive: bool
    weight: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tables depend on besides the configuration."""

    health: Mapping[int, Health] = field(default_factory=dict)
    hops: Mapping[int, Hop] = field(default_factory=dict)
    full: frozenset[int] = frozenset()
    records: bool = False


Recipe = tuple[str, tuple[Choice, ...]]


@dataclass(slots=True)
class State:
    """Content of the maps that the engine owns. Rows and endpoints are the bytes of their layout types."""

    endpoints: dict[bytes, int] = field(default_factory=dict)
    services: dict[int, bytes] = field(default_factory=dict)
    targets: dict[int, bytes] = field(default_factory=dict)
    tables: dict[int, Slots] = field(default_factory=dict)
    nat_return: dict[bytes, int] = field(default_factory=dict)
    flags: int = 0
    # What each table was made from; unknown for tables found in the kernel.
    recipes: dict[int, Recipe] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetEntries:
    """Write `entries` (key bytes or index → value bytes or number) into the map `name`."""

    name: str
    entries: Mapping[Any, Any]


@dataclass(frozen=True, slots=True)
class DeleteEntries:
    name: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReplaceTables:
    """Swap the lookup tables of these services."""

    tables: Mapping[int, Slots]


@dataclass(frozen=True, slots=True)
class SetFlags:
    """Set the configured bits of settings.flags, and move the epoch on."""

    flags: int


Write = SetEntries | DeleteEntries | ReplaceTables | SetFlags


def desired_state(config: ClusterConfig, facts: Facts, known: State | None = None) -> State:
    """What the maps should hold. Tables carry no marks yet (`plan` sets them).

    Tables that are in `known` already, made from the same, are taken from there: making one takes some ten
    milliseconds.
    """
    state = State()
    for service in config.services:
        recipe = (service.scheduler, tuple(_choices(service, facts)))
        table = _table(service.id, recipe, known)
        state.recipes[service.id] = recipe
        state.services[service.id] = _service_row(service, len(table))
        state.tables[service.id] = table
        state.endpoints[endpoint_bytes(service.address, service.port, service.protocol)] = service.id
        for backend in service.backends:
            state.targets[backend.id] = _target_row(service, backend, facts, 0)
    if config.routed is not None:
        state.services[config.routed.id] = _routed_row(REPLICATE[config.routed.replicate])
        state.endpoints[layout.ROUTED_ENDPOINT.tobytes()] = config.routed.id
    _chain_nat(config, facts, state)
    state.flags = _flags(config, facts)
    return state


def endpoint_bytes(address: str, port: int, protocol: str) -> bytes:
    return layout.endpoint(address, port, layout.PROTOCOLS[protocol]).tobytes()


def _health(backend: Backend, facts: Facts) -> Health:
    return facts.health.get(backend.id) or Health(True, backend.weight)


def _choices(service: Service, facts: Facts) -> list[Choice]:
    """Backends that may receive new connections."""
    choices = []
    for backend in service.backends:
        health = _health(backend, facts)
        if health.alive and not backend.drain and backend.weight and health.weight:
            choices.append(Choice(backend.id, f"{backend.address} {service.port_of(backend)}", health.weight))
    return choices


def _table(service: int, recipe: Recipe, known: State | None) -> Slots:
    if known is not None and known.recipes.get(service) == recipe and service in known.tables:
        # A table found in the kernel is followed by slots that nobody uses.
        return known.tables[service][: _slots_of(known.services[service])] & np.uint16(SLOT_TARGET_MASK)
    scheduler, choices = recipe
    if not choices:
        return np.empty(0, np.uint16)
    if scheduler == "rr":
        return round_robin(choices, ROTATION_MAX).astype(np.uint16)
    if scheduler == "wlc":
        return np.array(sorted(choice.id for choice in choices), np.uint16)
    return maglev(choices).astype(np.uint16)


def _service_row(service: Service, table_slots: int) -> bytes:
    row = np.zeros((), layout.SERVICE)
    row["address"], row["port"] = layout.pack_address(service.address), service.port
    row["protocol"], row["method"] = layout.PROTOCOLS[service.protocol], METHODS[service.forward]
    row["scheduler"], row["replicate"] = SCHEDULERS[service.scheduler], REPLICATE[service.replicate]
    row["flags"], row["table_slots"], row["persistence_s"] = _service_flags(service), table_slots, service.persistence_s
    return row.tobytes()


def _service_flags(service: Service) -> int:
    flags = ServiceFlag(0)
    limited = any(backend.connections_max for backend in service.backends)
    if service.scheduler in ("rr", "wlc") or service.forward == "nat" or service.persistence_s or limited:
        flags |= ServiceFlag.REMEMBER_NEW
    if service.on_backend_death == "rechoose":
        flags |= ServiceFlag.RECHOOSE_DEAD
    # An answer of a nat backend comes back through whichever gateway holds the inside VIP: both directions belong to
    # the node that the hash says, until the record of the connection is everywhere.
    if service.forward in ("local", "nat"):
        flags |= ServiceFlag.STEERED
    return int(flags)


def _routed_row(replicate: Replicate) -> bytes:
    row = np.zeros((), layout.SERVICE)
    row["method"], row["scheduler"], row["replicate"] = Method.LOCAL, Scheduler.MAGLEV, replicate
    row["flags"] = ServiceFlag.STEERED
    return row.tobytes()


def _target_row(service: Service, backend: Backend, facts: Facts, nat_next: int) -> bytes:
    row = np.zeros((), layout.TARGET)
    health = _health(backend, facts)
    row["address"], row["port"] = layout.pack_address(backend.address), service.port_of(backend)
    row["service"], row["method"] = service.id, METHODS[service.forward]
    row["connections_max"], row["nat_next"] = backend.connections_max, nat_next
    row["weight"] = min(health.weight if health.alive else 0, 0xFFFF)
    row["flags"] = _target_flags(service, backend, health, facts)
    hop = facts.hops.get(backend.id)
    if hop is not None:
        row["ifindex"], row["mtu"] = hop.ifindex, min(hop.mtu, 0xFFFF)
        row["mac"], row["source_mac"] = np.frombuffer(hop.mac, np.uint8), np.frombuffer(hop.source_mac, np.uint8)
    return row.tobytes()


def _target_flags(service: Service, backend: Backend, health: Health, facts: Facts) -> int:
    flags = TargetFlag(0)
    if health.alive:
        flags |= TargetFlag.ALIVE
    if backend.drain or backend.weight == 0:
        flags |= TargetFlag.DRAINING
    if backend.id in facts.hops:
        flags |= TargetFlag.RESOLVED
    if backend.id in facts.full:
        flags |= TargetFlag.FULL
    if service.scheduler == "wlc" or backend.connections_max:
        flags |= TargetFlag.COUNTED
    return int(flags)


def _chain_nat(config: ClusterConfig, facts: Facts, state: State) -> None:
    """Several nat services may share a backend's endpoint: its answers try their targets in the order of a chain."""
    sharing: dict[bytes, list[tuple[Service, Backend]]] = {}
    for service in config.services:
        if service.forward == "nat":
            for backend in service.backends:
                key = endpoint_bytes(backend.address, service.port_of(backend), service.protocol)
                sharing.setdefault(key, []).append((service, backend))
    for key, members in sharing.items():
        members.sort(key=lambda member: member[1].id)
        state.nat_return[key] = members[0][1].id
        for (service, backend), (_, following) in pairwise(members):
            state.targets[backend.id] = _target_row(service, backend, facts, following.id)


def _flags(config: ClusterConfig, facts: Facts) -> int:
    flags = Setting(0)
    if any(service.port == 0 for service in config.services):
        flags |= Setting.ANY_PORT
    if any(service.forward == "nat" for service in config.services):
        flags |= Setting.NAT
    if config.routed is not None:
        flags |= Setting.ROUTED
    replicated = [service.replicate for service in config.services] + [
        config.routed.replicate if config.routed else "none"
    ]
    if facts.records and any(replicate != "none" for replicate in replicated):
        flags |= Setting.RECORDS
    return int(flags)


# --- from one state to another ---------------------------------------------------------------------------------------


def plan(current: State, desired: State) -> list[Write]:
    """The writes that lead from `current` to `desired`, in the order in which they must be made; empty if none is."""
    writes = [*_additions(current, desired), *_services(current, desired), *_removals(current, desired)]
    if writes or current.flags != desired.flags:
        # Paths for new features open before anything needs them and close after the last use.
        writes.insert(0, SetFlags(current.flags | desired.flags))
        writes.append(SetFlags(desired.flags))
    return writes


def _changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in after.items() if before.get(key) != value}


def _additions(current: State, desired: State) -> Iterator[Write]:
    fresh = [target for target in desired.targets if target not in current.targets]
    if fresh:
        yield SetEntries("target_load", dict.fromkeys(fresh, np.zeros((), layout.TARGET_LOAD).tobytes()))
    if targets := _changed(current.targets, desired.targets):
        yield SetEntries("targets", targets)
    if returns := _changed(current.nat_return, desired.nat_return):
        yield SetEntries("nat_return", returns)


def _services(current: State, desired: State) -> Iterator[Write]:
    rows = _changed(current.services, desired.services)
    # Never let a service see more slots than its table has.
    shrinking = {
        s: row for s, row in rows.items() if _slots_of(row) < _slots_of(current.services.get(s, EMPTY_SERVICE))
    }
    if shrinking:
        yield SetEntries("service_table", shrinking)
    if tables := dict(_changed_tables(current, desired)):
        yield ReplaceTables(tables)
    if others := {service: row for service, row in rows.items() if service not in shrinking}:
        yield SetEntries("service_table", others)
    if endpoints := _changed(current.endpoints, desired.endpoints):
        yield SetEntries("services", endpoints)


def _changed_tables(current: State, desired: State) -> Iterator[tuple[int, Slots]]:
    for service, table in desired.tables.items():
        before = current.tables.get(service)
        scheduler = np.frombuffer(desired.services[service], layout.SERVICE)[0]["scheduler"]
        wanted = marked(before, table) if scheduler in HASHED else table
        if len(wanted) and not (before is not None and np.array_equal(before[: len(wanted)], wanted)):
            yield service, wanted


def _slots_of(row: bytes) -> int:
    return int(np.frombuffer(row, layout.SERVICE)[0]["table_slots"])


def _removals(current: State, desired: State) -> Iterator[Write]:
    if endpoints := tuple(key for key in current.endpoints if key not in desired.endpoints):
        yield DeleteEntries("services", endpoints)
    if services := [service for service in current.services if service not in desired.services]:
        yield SetEntries("service_table", dict.fromkeys(services, EMPTY_SERVICE))
    if returns := tuple(key for key in current.nat_return if key not in desired.nat_return):
        yield DeleteEntries("nat_return", returns)
    if targets := [target for target in current.targets if target not in desired.targets]:
        yield SetEntries("targets", dict.fromkeys(targets, EMPTY_TARGET))


def marked(before: Slots | None, after: Slots) -> Slots:
    """`after` with the slots marked whose connections may live elsewhere than the table says.

    Without an earlier table of the same length nothing is known, so all are.
    """
    bare = after & np.uint16(SLOT_TARGET_MASK)
    if before is None or len(before) < len(after):
        return bare | np.uint16(SLOT_MOVED)
    earlier = before[: len(after)]
    moved = ((earlier & SLOT_TARGET_MASK) != bare) | ((earlier & SLOT_MOVED) != 0)
    return np.asarray(bare | (moved * np.uint16(SLOT_MOVED)), np.uint16)
