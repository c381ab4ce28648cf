# SPDX-License-Identifier: Apache-2.0
"""Choosing a target and remembering it: schedulers, states, records, dead and draining backends, limits."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from ebpf import layout
from ebpf.layout import Method, RecordKind, Replicate, Scheduler, ServiceFlag, Setting, State, TargetFlag
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import (
    CLIENT4,
    CLIENT_PORT,
    IP,
    PORT,
    TCP,
    UDP,
    VIP4,
    Ether,
    Raw,
    assert_valid,
    client,
    link,
    network,
)

KEY = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.TCP)
UDP_KEY = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.UDP)


def backends(count: int, **fields: object) -> list[g.Backend]:
    return [
        g.Backend(n, f"198.51.100.{n}", mac=g.backend_mac(n), **fields)  # type: ignore[arg-type]
        for n in range(1, count + 1)
    ]


def serve(gateway: g.Gateway, targets: Sequence[g.Backend], protocol: int = g.TCP, **fields: object) -> g.Service:
    service = g.Service(1, VIP4, PORT, protocol, Method.DSR, targets, **fields)  # type: ignore[arg-type]
    gateway.put_service(service)
    return service


def target_of(gateway: g.Gateway, frame: bytes) -> int:
    verdict, out = gateway.run(frame)
    assert verdict == Verdict.TX
    mac = bytes.fromhex(Ether(out).dst.replace(":", ""))
    return mac[4] << 8 | mac[5]


def segment(port: int, flags: str = "S", source: str = CLIENT4) -> bytes:
    return bytes(link() / network(4, source) / TCP(sport=port, dport=PORT, flags=flags))


def datagram() -> bytes:
    return bytes(link() / network(4) / UDP(sport=CLIENT_PORT, dport=PORT) / Raw(b"q"))


def state(gateway: g.Gateway, key: npt.NDArray[np.void] = KEY) -> State | None:
    entry = gateway.connection(key)
    return None if entry is None else State(int(entry["state"]))


def records(gateway: g.Gateway) -> list[tuple[RecordKind, State, int]]:
    return [
        (RecordKind(int(r["kind"])), State(int(r["value"]["state"])), int(r["value"]["target"]))
        for r in gateway.drain()
    ]


def test_first_packets_of_a_stateless_service_are_not_remembered(gateway: g.Gateway) -> None:
    serve(gateway, backends(3))
    chosen = [target_of(gateway, segment(CLIENT_PORT)) for _ in range(3)]
    assert len(set(chosen)) == 1
    assert len(gateway.maps.connections.dump()[0]) == len(gateway.maps.half_open.dump()[0]) == 0
    assert target_of(gateway, segment(CLIENT_PORT, "A")) == chosen[0]
    assert state(gateway) is State.ESTABLISHED


def test_an_opened_connection_is_recorded_once_and_its_end_once(gateway: g.Gateway) -> None:
    serve(gateway, backends(1))
    for flags in ("S", "A", "PA", "A", "FA", "FA", "A"):
        gateway.run(bytes(client(4, flags, b"x" if flags == "PA" else b"")))
    assert records(gateway) == [
        (RecordKind.OPENED, State.ESTABLISHED, 1),
        (RecordKind.CLOSED, State.FIN_CLIENT, 1),
    ]


@pytest.mark.parametrize(
    ("what", "flags", "expected"),
    [
        ("a FIN closes", ("S", "A", "FA"), State.FIN_CLIENT),
        ("acknowledgements after a FIN do not reopen", ("A", "FA", "A"), State.FIN_CLIENT),
        ("a reset closes", ("A", "RA"), State.RESET),
        ("a forged reset is forgotten when the client goes on", ("A", "R", "A"), State.ESTABLISHED),
        ("a reset of nothing opens nothing", ("R",), None),
    ],
)
def test_states(gateway: g.Gateway, what: str, flags: Sequence[str], expected: State | None) -> None:
    serve(gateway, backends(1))
    for each in flags:
        gateway.run(segment(CLIENT_PORT, each))
        gateway.settings()
    assert state(gateway) is expected, what


def test_data_after_a_fin_is_a_new_connection_on_the_same_port(gateway: g.Gateway) -> None:
    serve(gateway, backends(1))
    for flags, payload in (("A", b""), ("FA", b""), ("S", b""), ("A", b""), ("PA", b"hello")):
        gateway.run(bytes(client(4, flags, payload)))
    assert state(gateway) is State.ESTABLISHED


def test_a_connection_stays_when_the_table_changes(gateway: g.Gateway) -> None:
    """And the marked slot makes even a reused port find it."""
    serve(gateway, backends(2), slots=[1])
    gateway.run(segment(CLIENT_PORT, "A"))
    gateway.maps.replace_table(1, np.array([2 | layout.SLOT_MOVED], np.uint16))
    gateway.settings()
    assert [target_of(gateway, segment(CLIENT_PORT, flags)) for flags in ("A", "A", "PA", "S")] == [1, 1, 1, 1]
    assert target_of(gateway, segment(CLIENT_PORT + 1)) == 2


def test_a_reused_port_of_a_closed_connection_is_chosen_anew(gateway: g.Gateway) -> None:
    serve(gateway, backends(2), slots=[1])
    for flags in ("A", "FA"):
        assert target_of(gateway, segment(CLIENT_PORT, flags)) == 1
    gateway.maps.replace_table(1, np.array([2 | layout.SLOT_MOVED], np.uint16))
    gateway.settings()
    assert [target_of(gateway, segment(CLIENT_PORT, flags)) for flags in ("S", "A", "A")] == [2, 2, 2]


def test_draining_keeps_connections_and_takes_no_new_ones(gateway: g.Gateway) -> None:
    service = serve(gateway, backends(2), slots=[1, 2])
    ports = range(2000, 2100)
    before = {port: target_of(gateway, segment(port, "A")) for port in ports}
    gateway.put_target(
        service, g.Backend(1, "198.51.100.1", mac=g.backend_mac(1), flags=TargetFlag.ALIVE | TargetFlag.DRAINING)
    )
    gateway.settings()
    assert {port: target_of(gateway, segment(port, "A")) for port in ports} == before
    assert {target_of(gateway, segment(port)) for port in range(3000, 3100)} == {2}


def kill(gateway: g.Gateway, service: g.Service, number: int) -> None:
    dead = g.Backend(number, f"198.51.100.{number}", mac=g.backend_mac(number), flags=TargetFlag(0))
    gateway.put_target(service, dead)
    gateway.settings()


def test_tcp_of_a_dead_backend_is_reset(gateway: g.Gateway) -> None:
    service = serve(gateway, backends(2), slots=[1])
    gateway.run(bytes(client(4, "A")))
    kill(gateway, service, 1)
    verdict, out = gateway.run(bytes(client(4, "PA", b"some data")))
    assert verdict == Verdict.TX
    assert_valid(out)
    reset = Ether(out)
    assert (reset.src, reset.dst) == (g.GATEWAY_MAC, g.CLIENT_MAC)
    assert (reset[IP].src, reset[IP].dst, reset[TCP].flags) == (VIP4, CLIENT4, "R")
    assert (reset[TCP].sport, reset[TCP].dport, reset[TCP].seq) == (PORT, CLIENT_PORT, 2000)
    assert state(gateway) is None
    assert records(gateway)[-1][0] is RecordKind.CLOSED
    assert gateway.reason_count("SENT_RESET") == 1


def test_tcp_of_a_dead_backend_is_chosen_again_if_the_service_says_so(gateway: g.Gateway) -> None:
    service = serve(gateway, backends(2), slots=[1], flags=ServiceFlag.RECHOOSE_DEAD)
    gateway.run(bytes(client(4, "A")))
    kill(gateway, service, 1)
    gateway.maps.replace_table(1, np.array([2], np.uint16))
    assert target_of(gateway, bytes(client(4, "PA", b"data"))) == 2
    assert records(gateway)[-1] == (RecordKind.MOVED, State.ESTABLISHED, 2)
    assert gateway.reason_count("NOTE_RECHOSEN") == 1


def test_udp_of_a_dead_backend_is_chosen_again_at_once(gateway: g.Gateway) -> None:
    service = serve(gateway, backends(2), protocol=g.UDP, slots=[1, 1, 2])
    for _ in range(3):
        first = target_of(gateway, datagram())
    kill(gateway, service, first)
    other = {1: 2, 2: 1}[first]
    assert [target_of(gateway, datagram()) for _ in range(2)] == [other, other]


def test_udp_counts_as_a_connection_from_the_second_packet(gateway: g.Gateway) -> None:
    serve(gateway, backends(1), protocol=g.UDP)
    gateway.run(datagram())
    assert (state(gateway, UDP_KEY), records(gateway)) == (None, [])
    gateway.run(datagram())
    assert state(gateway, UDP_KEY) is State.UDP
    gateway.run(datagram())
    assert records(gateway) == [(RecordKind.OPENED, State.UDP, 1)]


@pytest.mark.parametrize(
    ("replicate", "kinds"),
    [(Replicate.NONE, []), (Replicate.ESTABLISHED, [State.ESTABLISHED]), (Replicate.ALL, [1, State.ESTABLISHED])],
)
def test_what_is_replicated(gateway: g.Gateway, replicate: Replicate, kinds: list[int]) -> None:
    serve(gateway, backends(1), replicate=replicate)
    for flags in ("S", "A", "A"):
        gateway.run(segment(CLIENT_PORT, flags))
    assert [int(found) for _, found, _ in records(gateway)] == [int(kind) for kind in kinds]


def test_a_gateway_alone_writes_no_records(gateway: g.Gateway) -> None:
    gateway.settings(flags=0)
    serve(gateway, backends(1))
    gateway.run(segment(CLIENT_PORT, "A"))
    assert records(gateway) == []


def test_a_full_record_buffer_sheds_counts_and_forwards(gateway: g.Gateway) -> None:
    serve(gateway, backends(1))
    room = g.TEST_SIZES["records"] // 72
    for port in range(room + 10):
        assert gateway.run(segment(1024 + port, "A"))[0] == Verdict.TX
    assert gateway.reason_count("NOTE_RECORD_SHED") in range(10, 12)
    assert len(gateway.drain()) == room + 10 - gateway.reason_count("NOTE_RECORD_SHED")
    gateway.run(segment(60000, "A"))
    assert len(gateway.drain()) == 1


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Whose turn it is each processor knows for itself."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_processor")
def test_round_robin_takes_turns_by_weight(gateway: g.Gateway) -> None:
    serve(gateway, backends(3), scheduler=Scheduler.ROUND_ROBIN, slots=[1, 2, 3, 1], flags=ServiceFlag.REMEMBER_NEW)
    chosen = Counter(target_of(gateway, segment(port)) for port in range(1024, 1424))
    assert chosen == {1: 200, 2: 100, 3: 100}
    again = {port: target_of(gateway, segment(port, "A")) for port in range(1024, 1034)}
    assert {port: target_of(gateway, segment(port, "PA")) for port in range(1024, 1034)} == again


def test_least_connections_evens_out_what_is_uneven(gateway: g.Gateway) -> None:
    counted = TargetFlag.ALIVE | TargetFlag.COUNTED
    serve(
        gateway,
        backends(2, flags=counted),
        scheduler=Scheduler.LEAST_CONNECTIONS,
        slots=[1, 2],
        flags=ServiceFlag.REMEMBER_NEW,
    )
    load = np.zeros((), layout.TARGET_LOAD)
    load["active"] = 1000
    gateway.maps.target_load.set(1, load)
    chosen: Counter[int] = Counter()
    for port in range(2000, 2400):
        chosen[target_of(gateway, segment(port))] += 1
        gateway.run(segment(port, "A"))
    # Both random choices fall on the loaded one a quarter of the time.
    assert 60 <= chosen[1] <= 140
    second = gateway.maps.target_load.get(2)
    assert second is not None
    assert int(second["active"]) == chosen[2]


def test_source_hash_sends_one_client_to_one_backend(gateway: g.Gateway) -> None:
    serve(gateway, backends(3), scheduler=Scheduler.SOURCE)
    for source in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"):
        assert len({target_of(gateway, segment(port, "A", source)) for port in range(1024, 1056)}) == 1


def test_persistence_brings_a_client_back_for_its_time(gateway: g.Gateway) -> None:
    serve(
        gateway,
        backends(3),
        persistence_s=60,
        scheduler=Scheduler.ROUND_ROBIN,
        slots=[1, 2, 3],
        flags=ServiceFlag.REMEMBER_NEW,
    )
    first = target_of(gateway, segment(1024))
    gateway.run(segment(1024, "A"))
    assert {target_of(gateway, segment(port)) for port in range(1025, 1040)} == {first}
    seen = gateway.maps.persistence.dump()
    values = seen[1]
    values["seen_s"] = int(time.monotonic()) - 61
    gateway.maps.persistence.update(seen[0], values)
    assert len({target_of(gateway, segment(port)) for port in range(1040, 1046)}) == 3


@pytest.mark.parametrize("by_user_space", [False, True])
def test_a_full_backend_overflows_to_the_next(gateway: g.Gateway, by_user_space: bool) -> None:
    flags = TargetFlag.ALIVE | (TargetFlag.FULL if by_user_space else TargetFlag.COUNTED)
    full = g.Backend(1, "198.51.100.1", mac=g.backend_mac(1), flags=flags, connections_max=0 if by_user_space else 5)
    serve(gateway, [full, backends(2)[1]], slots=[1] * 15 + [2] * 15, flags=ServiceFlag.REMEMBER_NEW)
    chosen: Counter[int] = Counter()
    for port in range(2000, 2100):
        chosen[target_of(gateway, segment(port))] += 1
        gateway.run(segment(port, "A"))
    assert chosen[1] == (0 if by_user_space else 5)
    assert gateway.reason_count("NOTE_OVERFLOW") > 20


def test_no_backend_at_all_is_a_counted_drop(gateway: g.Gateway) -> None:
    serve(gateway, [])
    assert gateway.run(segment(1))[0] == Verdict.DROP
    counter = gateway.maps.service_counters.get(1)
    assert counter is not None
    assert int(counter["refused"].sum()) == 1
    assert gateway.reasons() == {"DROP_NO_TARGET": 1}


def test_unproven_connections_enter_at_a_limited_rate_and_are_forwarded_all_the_same(gateway: g.Gateway) -> None:
    serve(gateway, backends(1))
    gateway.settings(admissions_per_s=100)
    begin = time.monotonic()
    for port in range(2000, 4000):
        assert gateway.run(segment(port, "A"))[0] == Verdict.TX
    windows = 2 + time.monotonic() - begin
    held = len(gateway.maps.connections.dump()[0])
    assert 100 <= held <= min(2000, 100 * windows * gateway.maps.reason_counters.cpus)
    assert gateway.reason_count("NOTE_NOT_ADMITTED") == 2000 - held


def test_a_flood_of_first_packets_leaves_the_large_table_alone(gateway: g.Gateway) -> None:
    serve(gateway, backends(2), flags=ServiceFlag.REMEMBER_NEW)
    gateway.run(segment(CLIENT_PORT, "A"))
    for port in range(1024, 1024 + 2 * g.TEST_SIZES["half_open"]):
        gateway.run(segment(port))
    assert len(gateway.maps.connections.dump()[0]) == 1


def test_change_of_configuration_forgets_the_short_ways(gateway: g.Gateway) -> None:
    service = serve(gateway, backends(1))
    for _ in range(3):
        assert target_of(gateway, segment(CLIENT_PORT, "A")) == 1
    gateway.maps.services.clear()
    kill(gateway, service, 1)
    assert gateway.run(segment(CLIENT_PORT, "A"))[0] == Verdict.PASS


def test_a_connection_of_another_node_is_taken_over_by_its_clients_packets(gateway: g.Gateway) -> None:
    serve(gateway, backends(1))
    gateway.put_connection(KEY, 1, 1, owner=9)
    assert target_of(gateway, segment(CLIENT_PORT, "A")) == 1
    entry = gateway.connection(KEY)
    assert entry is not None
    assert (int(entry["owner"]), int(entry["origin"])) == (g.NODE, 9)
    assert [kind for kind, _, _ in records(gateway)] == [RecordKind.MOVED]


def test_records_name_key_node_and_ids(gateway: g.Gateway) -> None:
    gateway.flags(Setting.RECORDS)
    serve(gateway, backends(1))
    gateway.run(segment(CLIENT_PORT, "A"))
    record = gateway.drain()[0]
    assert record["key"].tobytes() == KEY.tobytes()
    assert (int(record["node"]), int(record["value"]["owner"]), int(record["value"]["service"])) == (g.NODE, g.NODE, 1)
    assert int(record["value"]["origin"]) == g.NODE
    assert abs(int(record["value"]["opened_s"]) - time.monotonic()) <= 2
