# SPDX-License-Identifier: Apache-2.0
"""What the transport promises about messages, over a virtual network: whole, once, in time, or given back."""

import random
from math import inf

import pytest

from sync.transport import Backlogged, Delivered, TransportConfig, wire
from tests.unit.sync_transport_network import KEYS, Network, Weather, payloads

SIZES = [0, 1, 1394, 1395, 1396, 1397, 61_000, 61_336, 61_337, 65_536, 200_000, 3_000_000]


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("datagram_max", [1232, 1472, 8972, 65507])
@pytest.mark.parametrize("size", SIZES)
def test_message_of_any_size_arrives_whole_once_and_is_reported(size: int, datagram_max: int, encrypt: bool) -> None:
    config = TransportConfig("test", KEYS, encrypt=encrypt)
    network = Network(config=config, datagram_max=datagram_max)
    payload = random.Random(size).randbytes(size)
    handle = network.send(1, 2, payload, channel=200)
    network.run(1.0)
    assert [(a.peer, a.incarnation, a.channel) for a in network[2].arrived] == [(1, 1001, 200)]
    assert payloads(network, 2) == [payload]
    assert network[1].delivered == [Delivered(handle, 2)]
    assert network[1].transport.deadline() == inf
    assert network[1].transport.counters.retransmissions == 0


def test_largest_message_arrives_and_a_larger_one_is_refused() -> None:
    network = Network(weather=Weather(delay_min=0.00001, delay_max=0.00001))
    payload = bytes(wire.MESSAGE_LENGTH_MAX)
    network.send(1, 2, payload)
    network.run(1.0)
    assert payloads(network, 2) == [payload]
    with pytest.raises(ValueError, match="67108865"):
        network.send(1, 2, bytes(wire.MESSAGE_LENGTH_MAX + 1))


def test_message_may_be_given_in_pieces() -> None:
    network = Network()
    network[1].transport.send(network.now, 2, 7, [b"ab", memoryview(b"cd"), b"", bytearray(b"e")])
    network.collect(1)
    network.run(0.1)
    assert payloads(network, 2) == [b"abcde"]


def test_whole_burst_is_taken_in_one_piece_and_survives_being_split() -> None:
    """With receive offload a burst comes as one buffer, or as several with other boundaries."""
    network = Network()
    network.send(1, 2, b"hello")
    network.run(0.1)
    for pieces in (1, 2, 3):
        payload = random.Random(pieces).randbytes(20_000)
        network[1].transport.send(network.now, 2, 7, payload)
        (transmit,) = network[1].transport.take()
        data, size = bytes(transmit.data), transmit.segment_size  # type: ignore[union-attr]
        count = -(-len(data) // size)
        step = -(-count // pieces) * size
        for at in range(0, len(data), step):
            network[2].transport.receive(network.now, 0, ("node", 1, 0), memoryview(data)[at : at + step], size)
        network.collect(2)
        network.run(0.1)
        assert payloads(network, 2)[-1] == payload
    assert len(network[1].delivered) == 4


def test_small_message_overtakes_bulk() -> None:
    network = Network()
    network.send(1, 2, bytes(20_000_000))
    network.run(0.0005)
    start = network.now
    network.send(1, 2, b"urgent")
    while not network[2].arrived:
        network.run(0.0001)
    assert payloads(network, 2) == [b"urgent"]
    assert network.now - start < 0.001


def test_parallel_paths_hide_the_loss_of_one() -> None:
    network = Network(links=2, parallel=True)
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0), (2, 1, 1)}
    network.send(1, 2, bytes(100_000))
    network.run(1.0)
    assert len(payloads(network, 2)) == 2
    assert network[1].transport.counters.retransmissions == 0


def test_large_datagrams_that_vanish_are_cut_smaller() -> None:
    """Jumbo frames configured here, but not on a switch in between."""
    network = Network(datagram_max=8972, weather=Weather(datagram_max=1500))
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.send(1, 2, bytes(100_000))
    network.run(1.0)
    assert [len(payload) for payload in payloads(network, 2)] == [5, 100_000]
    assert network[1].transport.counters.cuts > 0
    cuts, start = network[1].transport.counters.cuts, network.now
    network.send(1, 2, bytes(200_000))
    network.run(1.0)
    assert network[1].transport.counters.cuts == cuts, f"learned at {start}"
    assert len(network[2].arrived) == 3


def test_cancelled_message_brings_no_notice_and_leaves_no_trace() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0)}
    handles = [network.send(1, 2, b"x"), network.send(1, 2, bytes(20_000_000)), network.send(1, 2, bytes(100_000))]
    network.run(0.005)
    for handle in handles:
        assert network[1].transport.cancel(handle)
        assert not network[1].transport.cancel(handle)
    network.cut = set()
    network.send(1, 2, b"after")
    network.run(1.0)
    assert payloads(network, 2) == [b"hello", b"after"]
    assert not network[1].undelivered
    assert network[1].transport.deadline() == inf


def test_window_moves_past_what_was_given_up() -> None:
    """More lost and abandoned chunks than a window holds do not stop what follows."""
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    for _ in range(3):
        network.cut = {(1, 2, 0)}
        for _ in range(wire.WINDOW_CHUNKS):
            network.send(1, 2, b"lost")
        network.run(1.0)
        network.cut = set()
        network.send(1, 2, b"after")
        network.run(1.0)
    assert payloads(network, 2) == [b"hello"] + [b"after"] * 3
    assert len(network[1].undelivered) == 3 * wire.WINDOW_CHUNKS


def test_full_queue_pushes_back() -> None:
    network = Network(config=TransportConfig("test", KEYS, queue_message_max=10, queue_bytes_max=100_000))
    network.cut = {(1, 2, 0)}
    for _ in range(10):
        network.send(1, 2, b"x")
    with pytest.raises(Backlogged, match="10 messages"):
        network.send(1, 2, b"x")
    network.run(1.0)
    assert len(network[1].undelivered) == 10
    network.send(1, 2, bytes(90_000))
    with pytest.raises(Backlogged, match="90000 bytes"):
        network.send(1, 2, bytes(20_000))
    assert network[1].transport.counters.backlogged == 2


def test_unreliable_message_waits_for_the_first_contact_and_only_the_newest_does() -> None:
    network = Network()
    for number in range(3):
        network[1].transport.send_unreliable(network.now, 2, 9, b"%d" % number)
        network.collect(1)
    network.run(1.0)
    assert [(a.channel, bytes(a.payload)) for a in network[2].arrived] == [(9, b"2")]
    network[1].transport.send_unreliable(network.now, 2, 9, b"3")
    network.collect(1)
    network.run(1.0)
    assert payloads(network, 2) == [b"2", b"3"]
    assert network[1].transport.deadline() == inf
    assert network[1].transport.counters.unreliable_dropped == 2
    with pytest.raises(ValueError, match="cannot be sent unreliably"):
        network[1].transport.send_unreliable(network.now, 2, 9, bytes(1232))
