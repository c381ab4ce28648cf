# SPDX-License-Identifier: Apache-2.0
"""The engine against real maps in the kernel."""

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebpf import layout
from ebpf.layout import SLOT_MOVED, SLOT_TARGET_MASK, AddressFlag, Setting, TargetFlag
from ebpf.maps import Maps
from lb.configuration.change import succeed
from lb.configuration.model import EMPTY, Backend, ClusterConfig, Service, Vip
from lb.configuration.node import NodeConfig
from lb.engine import packet_engine
from lb.engine.packet_engine import MARK_SECONDS_MIN, EngineError, PacketEngine, read_state, tunnel_source_settings
from lb.engine.plan import Health, Hop
from tests.unit.lb_paths import node_config, opened_maps

B1, B2, B3 = (Backend(f"b{n}", f"10.0.2.{n}") for n in (1, 2, 3))
VIPS = (Vip("10.0.1.100/24", "outside"), Vip("2001:db8::100/64", "outside"))


def config(*backends: Backend, **changes: Any) -> ClusterConfig:
    service = Service("web", "10.0.1.100", "tcp", "dsr", 80, backends=backends)
    return ClusterConfig(vips=VIPS, services=(replace(service, **changes),))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def node(tmp_path: Path) -> NodeConfig:
    return node_config(tmp_path)


@pytest.fixture
def maps(node: NodeConfig) -> Iterator[Maps]:
    with opened_maps(node) as maps:
        yield maps


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(maps: Maps, node: NodeConfig, clock: Clock) -> PacketEngine:
    return PacketEngine(maps, node, clock)


def table(maps: Maps, service: int = 1) -> Any:
    slots = maps.read_table(service)
    assert slots is not None
    return slots[: layout.TABLE_SLOTS_DEFAULT]


def target_flags(maps: Maps, target: int) -> int:
    entry = maps.targets.get(target)
    assert entry is not None
    return int(entry["flags"])


def epoch(maps: Maps) -> int:
    settings = maps.settings.get(0)
    assert settings is not None
    return int(settings["epoch"])


def test_configuration_reaches_the_maps(engine: PacketEngine, maps: Maps) -> None:
    engine.update(succeed(EMPTY, config(B1, B2)))
    assert maps.services.get(layout.endpoint("10.0.1.100", 80, 6)) == 1
    assert set((table(maps) & SLOT_TARGET_MASK).tolist()) == {1, 2}
    settings = maps.settings.get(0)
    assert settings is not None
    assert int(settings["node"]) == 1
    assert settings["hash_seed"].any()
    keys, entries = maps.addresses.dump()
    assert {str(layout.unpack_address(key)) for key in keys["address"]} == {"10.0.1.100", "2001:db8::100"}
    assert set(entries["flags"].tolist()) == {int(AddressFlag.VIP)}


def test_same_configuration_writes_nothing(engine: PacketEngine, maps: Maps) -> None:
    value = succeed(EMPTY, config(B1, B2))
    assert engine.update(value) > 0
    before = epoch(maps)
    assert engine.update(value) == 0
    assert epoch(maps) == before


def test_restarted_daemon_adopts_what_it_finds(engine: PacketEngine, maps: Maps, node: NodeConfig) -> None:
    value = succeed(EMPTY, config(B1, B2, forward="nat"))
    engine.update(value)
    engine.hold(["10.0.1.100"])
    before, held = table(maps).copy(), maps.addresses.get(layout.pack_address("10.0.1.100").view(layout.ADDRESS_KEY))
    again = PacketEngine(maps, node)
    assert again.update(value) == 0
    assert np.array_equal(table(maps), before)
    after = maps.addresses.get(layout.pack_address("10.0.1.100").view(layout.ADDRESS_KEY))
    assert held is not None
    assert after is not None
    assert int(after["flags"]) == int(held["flags"]) == AddressFlag.VIP | AddressFlag.HELD


def test_adopted_tables_serve_further_changes(engine: PacketEngine, maps: Maps, node: NodeConfig) -> None:
    value = succeed(EMPTY, config(B1, B2))
    engine.update(value)
    again = PacketEngine(maps, node)
    again.update(value)
    before, writes = table(maps).copy(), again.writes
    again.update(hops={1: Hop(3, b"\x02\0\0\0\0\x09", b"\x02\0\0\0\0\x08", 1500)})
    assert again.writes - writes == 3, "the target between two changes of the settings, no table"
    service = maps.service_table.get(1)
    assert service is not None
    assert int(service["table_slots"]) == layout.TABLE_SLOTS_DEFAULT
    assert np.array_equal(table(maps), before)
    again.update(health={1: Health(False, 0)})
    assert set((table(maps) & SLOT_TARGET_MASK).tolist()) == {2}


def test_takeover_does_not_wait_for_tables(engine: PacketEngine, maps: Maps) -> None:
    engine.update(succeed(EMPTY, config(B1, B2)))
    with engine._tables_lock:
        held = threading.Thread(target=engine.hold, args=(["10.0.1.100"],))
        held.start()
        held.join(5)
        assert not held.is_alive()
    entry = maps.addresses.get(layout.pack_address("10.0.1.100").view(layout.ADDRESS_KEY))
    assert entry is not None
    assert int(entry["flags"]) & AddressFlag.HELD


def test_change_touches_only_what_differs(engine: PacketEngine, maps: Maps) -> None:
    first = succeed(EMPTY, config(B1, B2))
    engine.update(first)
    connection = np.zeros(1, layout.CONNECTION)
    connection["target"], connection["service"] = 1, 1
    key = layout.flow_key("192.0.2.1", 1234, "10.0.1.100", 80, 6)
    maps.connections.update(key, connection)
    old = table(maps).copy()
    engine.update(succeed(first, config(B1, B2, B3)))
    new = table(maps)
    moved = (old & SLOT_TARGET_MASK) != (new & SLOT_TARGET_MASK)
    assert set((new[moved] & SLOT_TARGET_MASK).tolist()) >= {3}
    assert moved.mean() < 0.35, "a third goes to the new backend and hardly more"
    kept = maps.connections.get(key)
    assert kept is not None
    assert int(kept["target"]) == 1


def test_removed_service_is_gone_with_all_that_belonged_to_it(engine: PacketEngine, maps: Maps) -> None:
    first = succeed(EMPTY, config(B1, forward="nat"))
    engine.update(first)
    assert len(maps.nat_return.dump()[0]) == 1
    engine.update(succeed(first, ClusterConfig()))
    state = read_state(maps)
    assert (state.endpoints, state.services, state.targets, state.nat_return, state.flags) == ({}, {}, {}, {}, 0)
    assert len(maps.addresses.dump()[0]) == 0


def test_dead_backend_leaves_the_table_and_comes_back(engine: PacketEngine, maps: Maps) -> None:
    engine.update(succeed(EMPTY, config(B1, B2)))
    engine.update(health={1: Health(False, 0)})
    assert set((table(maps) & SLOT_TARGET_MASK).tolist()) == {2}
    assert not target_flags(maps, 1) & TargetFlag.ALIVE
    engine.update(health={})
    assert set((table(maps) & SLOT_TARGET_MASK).tolist()) == {1, 2}
    assert target_flags(maps, 1) & TargetFlag.ALIVE


def test_next_hop_is_written_and_taken_back(engine: PacketEngine, maps: Maps) -> None:
    engine.update(succeed(EMPTY, config(B1)))
    engine.update(hops={1: Hop(3, b"\x02\0\0\0\0\x09", b"\x02\0\0\0\0\x08", 1500)})
    target = maps.targets.get(1)
    assert target is not None
    assert (int(target["ifindex"]), target["mac"].tobytes()) == (3, b"\x02\0\0\0\0\x09")
    assert int(target["flags"]) & TargetFlag.RESOLVED
    engine.update(hops={})
    assert not target_flags(maps, 1) & TargetFlag.RESOLVED


def test_marks_go_when_no_older_connection_is_left(engine: PacketEngine, maps: Maps, clock: Clock) -> None:
    engine.update(succeed(EMPTY, config(B1, B2)))
    assert (table(maps) & SLOT_MOVED).all(), "of a first table nothing is known"
    clock.now += MARK_SECONDS_MIN + 1
    assert engine.clear_marks({1: 900}) == 0, "a connection is older than the table"
    assert engine.clear_marks({1: 1100}) == 1
    assert not (table(maps) & SLOT_MOVED).any()
    engine.update(health={1: Health(False, 0)})
    marked = (table(maps) & SLOT_MOVED) != 0
    assert 0.4 < marked.mean() < 0.6, "the half that moved is marked"
    assert engine.clear_marks({}) == 0, "records of older connections may still be on their way"


def test_marks_survive_a_restart(engine: PacketEngine, maps: Maps, clock: Clock, node: NodeConfig) -> None:
    value = succeed(EMPTY, config(B1, B2))
    engine.update(value)
    again = PacketEngine(maps, node, clock)
    again.update(value)
    assert again.clear_marks({}) == 0
    clock.now += MARK_SECONDS_MIN + 1
    assert again.clear_marks({}) == 1


def test_settings_of_others_stay(engine: PacketEngine, maps: Maps) -> None:
    engine.set_setting(Setting.STEERING, on=True)
    engine.update(succeed(EMPTY, config(B1, forward="nat")))
    settings = maps.settings.get(0)
    assert settings is not None
    assert int(settings["flags"]) == Setting.STEERING | Setting.NAT
    engine.set_setting(Setting.STEERING, on=False)
    settings = maps.settings.get(0)
    assert settings is not None
    assert int(settings["flags"]) == Setting.NAT


def test_own_addresses_and_held_vips(engine: PacketEngine, maps: Maps) -> None:
    engine.update(succeed(EMPTY, config(B1)))
    engine.set_own_addresses([ip_address("10.0.1.1")])
    engine.hold(["10.0.1.100"])
    keys, entries = maps.addresses.dump()
    found = {str(layout.unpack_address(k)): int(f) for k, f in zip(keys["address"], entries["flags"], strict=True)}
    assert found == {
        "10.0.1.1": AddressFlag.OWN,
        "10.0.1.100": AddressFlag.VIP | AddressFlag.HELD,
        "2001:db8::100": AddressFlag.VIP,
    }
    engine.set_own_addresses([ip_address("10.0.1.100")])
    keys, entries = maps.addresses.dump()
    found = {str(layout.unpack_address(k)): int(f) for k, f in zip(keys["address"], entries["flags"], strict=True)}
    assert found["10.0.1.100"] == AddressFlag.OWN, "it goes on answering for what is its own, whatever VIPs there are"
    engine.hold([])
    engine.set_own_addresses([])
    assert {int(flags) for flags in maps.addresses.dump()[1]["flags"]} == {int(AddressFlag.VIP)}


def test_failed_write_leaves_the_previous_state(
    engine: PacketEngine, maps: Maps, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = succeed(EMPTY, config(B1, B2))
    engine.update(first)
    before = read_state(maps)
    # A kernel that runs out of memory at the tables, after the new target was written.
    real, calls = packet_engine.replace_tables, []

    def failing(maps: Maps, tables: Any) -> None:
        calls.append(tables)
        if len(calls) == 1:
            raise OSError(errno.ENOMEM, "no memory")
        real(maps, tables)

    monkeypatch.setattr(packet_engine, "replace_tables", failing)
    with pytest.raises(EngineError, match="the previous state is back"):
        engine.update(succeed(first, config(B1, B2, B3)))
    after = read_state(maps)
    assert (after.targets, after.services, after.endpoints) == (before.targets, before.services, before.endpoints)
    assert set((table(maps) & SLOT_TARGET_MASK).tolist()) == {1, 2}
    assert engine.config is first
    monkeypatch.undo()
    assert engine.update(succeed(first, config(B1, B2, B3))) > 0


def test_more_services_than_one_batch_of_tables_takes(engine: PacketEngine, maps: Maps) -> None:
    services = tuple(
        Service(f"s{n}", "10.0.1.100", "udp", "dsr", n + 1, scheduler="wlc", backends=(B1,)) for n in range(300)
    )
    engine.update(succeed(EMPTY, ClusterConfig(vips=VIPS, services=services)))
    assert len(maps.services.dump()[0]) == 300
    assert all(maps.read_table(n + 1) is not None for n in range(300))


def test_outer_sources() -> None:
    fields = tunnel_source_settings(["172.16.0.0/16", "fd00::/112"])
    assert bytes(fields["tunnel_source4"]) == bytes([172, 16, 0, 0])
    assert (fields["tunnel_vary4"], fields["tunnel_vary6"]) == (0xFFFF, 0xFFFF)
