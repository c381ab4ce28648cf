# SPDX-License-Identifier: Apache-2.0
"""Replication between two gateways' real maps: a kernel ring buffer on one side, an LRU map on the other."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from netlab.waiting import eventually

from ebpf.layout import Replicate, State
from ebpf.map_access import Map
from ebpf.ring_buffer import RingBuffer
from lb.connections import exchange as connection_sync
from lb.connections.exchange import RECORDS_PER_MESSAGE_MAX, RecordReceiver, RecordSender
from lb.connections.records import Digest, pack_records, unpack_records
from tests.unit.test_cluster_connection_records import some_records
from tools.bench.record_source import RecordSource, new_map, some_record


@pytest.fixture
def source() -> Iterator[RecordSource]:
    with RecordSource(1 << 20) as made:
        yield made


@pytest.fixture
def connections() -> Iterator[Map]:
    made = new_map("connections", 1 << 17)
    yield made
    made.close()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


class Ring:
    """Takes messages while `room` lasts, as `Ring.offer` does."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.messages: list[bytes] = []

    def offer(self, message: bytes) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.messages.append(message)
        return True


def sender(source: RecordSource, ring: Ring) -> RecordSender:
    made = RecordSender(1, RingBuffer(source.ring), ring.offer)
    made.alone = False
    return made


def test_records_reach_the_other_map(source: RecordSource, connections: Map, executor: ThreadPoolExecutor) -> None:
    ring = Ring()
    sending, receiving = sender(source, ring), RecordReceiver(connections, executor, lambda call: call())
    source.emit(3000)
    assert sending.poll() is False
    receiving.write(list(ring.messages))
    keys, values = connections.dump()
    assert len(np.unique(keys)) == 3000
    assert set(values["target"]) == {1}
    assert (sending.counts.sent, receiving.counts.written, sending.backlog) == (3000, 3000, 0)
    assert abs(int(values["last_seen_s"][0]) - time.monotonic()) < 5


def test_a_closing_overtakes_nothing_and_shortens_the_entry(
    source: RecordSource, connections: Map, executor: ThreadPoolExecutor
) -> None:
    ring = Ring()
    sending, receiving = sender(source, ring), RecordReceiver(connections, executor, lambda call: call())
    closing = some_record()
    closing["value"]["state"], closing["kind"] = State.CLOSING, 2
    source.emit(10)
    source.emit(5, template=closing)
    sending.poll()
    receiving.write(list(ring.messages))
    states = np.sort(connections.dump()[1]["state"])
    assert list(states) == [State.ESTABLISHED] * 5 + [State.CLOSING] * 5


def test_a_ring_that_takes_no_more_loses_nothing(source: RecordSource) -> None:
    ring = Ring(room=1)
    sending = sender(source, ring)
    count = 14_000  # what the kernel's buffer of this test holds
    source.emit(count)
    assert sending.poll() is False
    assert sending.counts.refused == 1
    assert sending.backlog == count - RECORDS_PER_MESSAGE_MAX
    ring.room = 10
    sending.poll()
    sent = np.concatenate([unpack_records(message) for message in ring.messages])
    assert list(sent["key"]["source"][:, 15]) == [number % 256 for number in range(1, count + 1)]
    assert (sending.counts.sent, sending.backlog) == (count, 0)


def test_what_peers_are_not_to_learn_stays_here(source: RecordSource) -> None:
    ring = Ring()
    sending = sender(source, ring)
    silent = some_record()
    silent["replicate"] = Replicate.NONE
    source.emit(100, template=silent)
    sending.poll()
    assert (ring.messages, sending.counts.not_for_peers, sending.backlog) == ([], 100, 0)


def test_alone_nothing_is_sent_and_the_buffer_does_not_fill(source: RecordSource) -> None:
    ring = Ring()
    sending = sender(source, ring)
    sending.alone = True
    source.emit(10_000)
    assert sending.poll() is False
    assert (ring.messages, sending.backlog) == ([], 0)


def message_of(count: int, first: int = 0) -> bytes:
    return bytes(pack_records(some_records(count, first=first)))


def test_order_is_kept_between_inline_and_threaded_writes(connections: Map, executor: ThreadPoolExecutor) -> None:
    receiving = RecordReceiver(connections, executor, lambda call: call())
    gate = threading.Event()
    executor.submit(gate.wait)
    old = some_records(5000)
    old["value"]["target"] = 9
    receiving.receive(bytes(pack_records(old)))
    # Small enough for the event loop's thread, but its entries must not be overwritten by the older ones.
    receiving.receive(message_of(10))
    gate.set()
    eventually(lambda: receiving.queued_bytes == 0)
    _, values = connections.dump()
    assert (values["target"] == 9).sum() == 4990
    assert (receiving.counts.written, receiving.counts.messages) == (5010, 2)


def test_what_comes_in_one_turn_of_the_loop_is_written_together(connections: Map, executor: ThreadPoolExecutor) -> None:
    later: list[Callable[[], None]] = []
    receiving = RecordReceiver(connections, executor, later.append)
    for first in range(0, 300, 100):
        receiving.receive(message_of(100, first))
    assert (receiving.counts.written, len(later)) == (0, 1)
    later.pop()()
    assert (receiving.counts.written, receiving.queued_bytes, later) == (300, 0, [])
    receiving.receive(message_of(100, 300))
    receiving.close()
    later.pop()()
    assert receiving.counts.written == 300


def test_a_slow_map_sheds_counted_and_says_so(
    connections: Map, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_sync, "APPLY_QUEUE_BYTES_MAX", 300_000)
    told: list[int] = []
    receiving = RecordReceiver(connections, executor, lambda call: call(), on_shed=lambda: told.append(1))
    gate = threading.Event()
    executor.submit(gate.wait)
    for first in range(0, 8000, 2000):
        receiving.receive(message_of(2000, first))
    gate.set()
    eventually(lambda: receiving.queued_bytes == 0)
    assert (receiving.counts.written, receiving.counts.shed, told) == (4000, 4000, [1, 1])


def test_damage_from_a_peer_is_counted_and_the_rest_written(connections: Map, executor: ThreadPoolExecutor) -> None:
    receiving = RecordReceiver(connections, executor, lambda call: call())
    records = some_records(10)
    records["value"]["owner"][:4] = 0
    receiving.write([b"nonsense", bytes(pack_records(records)), b""])
    assert (receiving.counts.refused_messages, receiving.counts.malformed, receiving.counts.written) == (2, 4, 6)


def test_both_tables_have_the_same_digest(source: RecordSource, connections: Map, executor: ThreadPoolExecutor) -> None:
    ring = Ring()
    sending, receiving = sender(source, ring), RecordReceiver(connections, executor, lambda call: call())
    source.emit(5000)
    sending.poll()
    receiving.write(list(ring.messages))
    here, there = Digest(), Digest()
    for message in ring.messages:
        records = unpack_records(message)
        here.add(records["key"].copy(), records["value"].copy())
    for keys, values in connections.chunks():
        there.add(keys, values)
    assert here == there
    assert here.count == 5000
