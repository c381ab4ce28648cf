# SPDX-License-Identifier: Apache-2.0
"""Typed access to the maps and the bulk drain of ring buffers, on real maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf import layout
from ebpf.layout import Method
from ebpf.map_access import Array
from ebpf.ring_buffer import RingBuffer
from tests.packet import gateway as g
from tests.packet.frames import PORT, TCP, VIP4, link, network

ENTRIES = 20_000


def some_connections(count: int) -> tuple[Array, Array]:
    keys = np.zeros(count, layout.FLOW_KEY)
    keys["source"][:, 12:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(count, 4)
    keys["protocol"] = 6
    values = np.zeros(count, layout.CONNECTION)
    values["opened_s"] = np.arange(count)
    return keys, values


def test_bulk_round_trip(gateway: g.Gateway) -> None:
    keys, values = some_connections(ENTRIES)
    table = gateway.maps.connections
    assert table.update(keys, values) == ENTRIES
    found_keys, found_values = table.dump()
    order = np.argsort(found_values["opened_s"])
    assert (found_keys[order] == keys).all()
    assert (found_values[order] == values).all()
    assert sum(len(chunk) for chunk, _ in table.chunks(512)) == ENTRIES
    assert table.delete(np.concatenate([keys[:10], keys[:10], keys[-5:]])) == 15
    assert table.clear() == ENTRIES - 15
    assert len(table.dump()[0]) == 0


def test_single_entries(gateway: g.Gateway) -> None:
    keys, values = some_connections(1)
    assert gateway.maps.connections.get(keys[0]) is None
    gateway.maps.connections.set(keys[0], values[0])
    assert gateway.maps.connections.get(keys[0]) == values[0]
    assert gateway.maps.connections.update(keys[:0], values[:0]) == 0


def test_values_that_do_not_fit_the_keys_are_refused(gateway: g.Gateway) -> None:
    keys, values = some_connections(3)
    with pytest.raises(ValueError, match="map connections: 3 keys need 3 values, 2 given"):
        gateway.maps.connections.update(keys, values[:2])


def test_per_cpu_values_have_a_dimension_more(gateway: g.Gateway) -> None:
    counters = gateway.maps.reason_counters
    values = np.zeros((2, counters.cpus), layout.REASON_COUNTER)
    values["packets"] = [[5] * counters.cpus, [7] * counters.cpus]
    counters.update(np.array([3, 4]), values)
    found = counters.get(4)
    assert found is not None
    assert found.shape == (counters.cpus,)
    assert int(found["packets"].sum()) == 7 * counters.cpus
    assert counters.dump()[1].shape == (counters.capacity, counters.cpus)


def test_a_table_is_swapped_as_a_whole(gateway: g.Gateway) -> None:
    for value in (1, 2):
        gateway.maps.replace_table(7, np.full(layout.TABLE_SLOTS_DEFAULT, value, np.uint16))
        slots = gateway.maps.read_table(7)
        assert slots is not None
        assert (slots[: layout.TABLE_SLOTS_DEFAULT] == value).all()


def opened(gateway: g.Gateway, ports: range) -> None:
    for port in ports:
        gateway.run(bytes(link() / network(4) / TCP(sport=port, dport=PORT, flags="A")))


@pytest.fixture
def serving(gateway: g.Gateway) -> g.Gateway:
    backend = g.Backend(1, "198.51.100.1", mac=g.backend_mac(1))
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.DSR, [backend]))
    return gateway


def test_records_are_drained_in_order_and_in_bulk_across_the_wrap(serving: g.Gateway) -> None:
    buffer = RingBuffer(serving.maps.records)
    room = buffer.capacity
    seen: list[int] = []
    for first in range(1024, 1024 + 3 * room, room // 2):
        ports = range(first, first + room // 2)
        opened(serving, ports)
        assert buffer.backlog == len(ports)
        got = buffer.drain(1 << 20)
        assert got["key"]["source_port"].tolist() == list(ports)
        seen += got["key"]["source_port"].tolist()
    assert len(seen) >= 3 * room - room // 2
    assert buffer.backlog == 0
    buffer.close()


def test_a_borrowed_view_is_released_only_if_all_went_well(serving: g.Gateway) -> None:
    buffer = RingBuffer(serving.maps.records)
    opened(serving, range(2000, 2010))

    def fail() -> None:
        with buffer.borrow(4) as view:
            assert len(view) == 4
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert buffer.backlog == 10
    with buffer.borrow(4) as view:
        assert view["key"]["source_port"].tolist() == [2000, 2001, 2002, 2003]
        del view
    assert buffer.backlog == 6
    assert len(buffer.drain(100)) == 6
    buffer.close()


@given(st.ip_addresses())
@settings(max_examples=200)
def test_addresses_round_trip(address: object) -> None:
    text = str(address).split("%")[0]
    unpacked = layout.unpack_address(layout.pack_address(text))
    mapped = getattr(unpacked, "ipv4_mapped", None)
    assert str(mapped or unpacked) in (text, str(getattr(address, "ipv4_mapped", None)))
