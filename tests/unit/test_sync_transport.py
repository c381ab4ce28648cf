# SPDX-License-Identifier: Apache-2.0
"""The transport's promises, one by one, over a virtual network."""

import random
from math import inf

import pytest

from sync.transport import (
    Backlogged,
    Delivered,
    Path,
    PeerConfig,
    Reason,
    Transport,
    TransportConfig,
    wire,
)
from tests.unit.sync_transport_network import KEYS, Network, Weather, payloads, reasons

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


@pytest.mark.parametrize("links", [1, 2])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("greeted", [False, True])
def test_dead_peer_is_reported_after_the_failure_time_and_every_path(links: int, parallel: bool, greeted: bool) -> None:
    network = Network(links=links, parallel=parallel)
    if greeted:
        network.send(1, 2, b"hello")
        network.run(1.0)
    network.cut = {(1, 2, link) for link in range(links)}
    used: list[int] = []
    network.heard = lambda source, _, link, __: used.append(link) if source == 1 else None
    start = network.now
    handles = [network.send(1, 2, b"x"), network.send(1, 2, bytes(100_000))]
    network.run(1.0)
    failed = network[1].undelivered
    assert [undelivered.handle for _, undelivered in failed] == handles
    assert reasons(network, 1) == [Reason.UNREACHABLE] * 2
    for at, _ in failed:
        assert 0.040 <= at - start <= 0.044
    for link in range(links):
        assert used.count(link) >= 4
    assert network[1].transport.deadline() == inf


def test_one_dead_path_of_two_costs_one_timeout_once() -> None:
    network = Network(links=2)
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0), (2, 1, 0)}
    for expected in (0.0025, 0.0002):
        start, before = network.now, len(network[1].delivered)
        network.send(1, 2, b"x")
        while len(network[1].delivered) == before:
            network.run(0.0001)
        assert network.now - start < expected + 0.006
        network.run(0.1)
    retransmissions = network[1].transport.counters.retransmissions
    network.send(1, 2, b"y")
    network.run(0.1)
    assert network[1].transport.counters.retransmissions == retransmissions
    assert not network[1].undelivered


def test_parallel_paths_hide_the_loss_of_one() -> None:
    network = Network(links=2, parallel=True)
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0), (2, 1, 1)}
    network.send(1, 2, bytes(100_000))
    network.run(1.0)
    assert len(payloads(network, 2)) == 2
    assert network[1].transport.counters.retransmissions == 0


def test_progress_keeps_a_long_message_alive_beyond_the_failure_time() -> None:
    network = Network(weather=Weather(delay_min=0.004, delay_max=0.004, loss=0.05), seed=3)
    network.send(1, 2, bytes(4_000_000))
    network.run(3.0)
    assert len(network[1].delivered) == 1
    assert not network[1].undelivered


def test_stalled_process_does_not_condemn_its_peer() -> None:
    """After a pause the first tick sends again; only silence after that counts."""
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0)}
    network.send(1, 2, b"x")
    network.cut = set()
    network.now += 5.0
    network.run(0.1)
    assert payloads(network, 2) == [b"hello", b"x"]
    assert not network[1].undelivered


def test_restarted_peer_gives_back_what_was_sent_to_its_former_life() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.start(2, incarnation=5002)
    start = network.now
    handle = network.send(1, 2, b"for the former life")
    network.run(0.003)
    assert [(u.handle, u.reason) for _, u in network[1].undelivered] == [(handle, Reason.RESTARTED)]
    assert network[1].undelivered[0][0] - start < 0.001
    network.send(1, 2, b"for the new life")
    network.run(1.0)
    assert payloads(network, 2) == [b"for the new life"]


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


def test_patient_message_is_one_datagram_and_confirmed_only_when_asked_about() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    acks = network[2].transport.counters.acks
    handle = network.send(1, 2, b"quiet", patience=0.020)
    network.run(0.019)
    assert payloads(network, 2) == [b"hello", b"quiet"]
    assert network[1].transport.cancel(handle)
    network.run(1.0)
    assert network[2].transport.counters.acks == acks, "who expects no acknowledgement gets none"
    asked = network.send(1, 2, b"asked", patience=0.020)
    network.run(0.019)
    assert len(network[1].delivered) == 1
    network.run(0.002)
    assert network[1].delivered[-1].handle == asked, "the repetition is acknowledged at once"
    assert payloads(network, 2) == [b"hello", b"quiet", b"asked"]
    assert network[1].transport.deadline() == inf


def test_patience_does_not_delay_the_failure_and_ends_where_datagrams_get_lost() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0)}
    begin = network.now
    network.send(1, 2, b"lost", patience=0.020)
    network.run(1.0)
    failed_at, _ = network[1].undelivered[0]
    assert failed_at - begin == pytest.approx(network.config.failure_after_s, abs=0.001)
    network.cut = set()
    network.send(1, 2, b"again", patience=0.020)
    network.run(0.005)
    assert len(network[1].delivered) == 2, "after a loss every message is acknowledged"


def test_a_late_question_leaves_half_a_budget_to_answer_in() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0)}
    begin, budget = network.now, network.config.failure_after_s
    network.send(1, 2, b"lost", patience=0.9 * budget)
    network.run(1.0)
    failed_at, _ = network[1].undelivered[0]
    assert failed_at - begin == pytest.approx(1.4 * budget, abs=0.001)


def test_a_question_can_be_asked_early_and_the_peer_is_told_that_it_was_one() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    handle = network.send(1, 2, b"quiet", patience=0.030)
    network.run(0.005)
    assert not network[2].asked
    network.ask(1, 2, handle)
    network.run(0.005)
    assert network[1].delivered[-1].handle == handle
    assert network[2].asked == [1]
    assert payloads(network, 2) == [b"hello", b"quiet"]
    network.ask(1, 2, handle)
    assert network[1].transport.deadline() == inf, "what is settled is not asked about"


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


def test_removed_peer_gives_everything_back_and_may_return() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0)}
    network.send(1, 2, b"x")
    network[1].transport.remove_peer(2)
    network[1].transport.remove_peer(2)
    network.collect(1)
    assert reasons(network, 1) == [Reason.REMOVED]
    with pytest.raises(KeyError):
        network.send(1, 2, b"x")
    network.cut = set()
    network[1].transport.set_peer(2, network.peer_config(2))
    network.send(1, 2, b"back")
    network.send(2, 1, b"welcome")
    network.run(1.0)
    assert payloads(network, 2) == [b"hello", b"back"]
    assert payloads(network, 1) == [b"welcome"]


def test_peer_may_move_to_another_address_while_running() -> None:
    network = Network(links=2)
    for node in (1, 2):
        only = PeerConfig((Path(0, ("node", 3 - node, 0)),))
        network[node].transport.set_peer(3 - node, only)
    network.send(1, 2, b"hello")
    network.run(1.0)
    for node in (1, 2):
        moved = PeerConfig((Path(1, ("node", 3 - node, 1)),))
        network[node].transport.set_peer(3 - node, moved)
    network.cut = {(1, 2, 0), (2, 1, 0)}
    network.send(1, 2, b"moved")
    network.run(1.0)
    assert payloads(network, 2) == [b"hello", b"moved"]
    assert network[1].transport.counters.sessions == 1


def test_address_of_another_peer_is_refused() -> None:
    network = Network(3)
    with pytest.raises(ValueError, match="already that of peer 2"):
        network[1].transport.set_peer(3, network.peer_config(2))


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


def test_icmp_error_hastens_but_does_not_prove() -> None:
    times = []
    for hint in (False, True):
        network = Network()
        network.send(1, 2, b"hello")
        network.run(1.0)
        start = network.now
        sent: list[float] = []
        network.heard = lambda *_, sent=sent, network=network: sent.append(network.now)
        network.cut = {(1, 2, 0)}
        network.send(1, 2, b"x")
        if hint:
            network[1].transport.path_refused(0, ("node", 2, 0))
            network[1].transport.path_refused(0, ("node", 99, 0))
        network.run(1.0)
        times.append(sent[1] - start)
        assert 0.040 <= network[1].undelivered[0][0] - start <= 0.044
    assert times[1] == pytest.approx(times[0] / 2, rel=0.1)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"attempts": 1}, "attempts"),
        ({"rto_floor_s": 0.0}, "rto_floor_s"),
        ({"failure_after_s": 0.002}, "failure_after_s"),
        ({"encrypt": True, "keys": None}, "no key"),
        ({"window_bytes": 1000}, "window_bytes"),
    ],
)
def test_nonsense_settings_are_refused(fields: dict[str, object], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        TransportConfig(**{"cluster": "test", **fields})  # type: ignore[arg-type]


def test_nonsense_identities_and_paths_are_refused() -> None:
    config, rng = TransportConfig("test", KEYS), random.Random(1)
    for local, incarnation in ((0, 1), (256, 1), (1, 0), (1, 1 << 64)):
        with pytest.raises(ValueError, match="not in 1"):
            Transport(config, local=local, incarnation=incarnation, rng=rng)
    transport = Transport(config, local=1, incarnation=1, rng=rng)
    with pytest.raises(ValueError, match="own"):
        transport.set_peer(1, PeerConfig((Path(0, "a"),)))
    with pytest.raises(ValueError, match="at least one path"):
        PeerConfig(())
    with pytest.raises(ValueError, match="raise the MTU"):
        PeerConfig((Path(0, "a", 1000),))


def test_no_message_is_condemned_for_the_age_of_another() -> None:
    """Neither while the peer is silent, nor while it has never answered a greeting."""
    for greeted in (True, False):
        network = Network()
        if greeted:
            network.send(1, 2, b"hello")
            network.run(1.0)
        network.cut = {(1, 2, 0)}
        sent: dict[int, float] = {}
        for _ in range(10):
            sent[network.send(1, 2, b"x" * 2000)] = network.now
            sent[network.send(1, 2, b"x")] = network.now
            network.run(0.013)
        network.run(1.0)
        assert len(network[1].undelivered) == 20
        for at, undelivered in network[1].undelivered:
            assert 0.040 <= at - sent[undelivered.handle] + 1e-9 <= 0.044
        assert network[1].transport.deadline() == inf


def test_greeting_goes_on_for_those_who_came_later() -> None:
    network = Network()
    network.cut = {(1, 2, 0)}
    network.send(1, 2, b"too early")
    network.run(0.030)
    network.send(1, 2, b"in time")
    network.run(0.020)
    network.cut = set()
    network.run(0.020)
    assert [undelivered.handle for _, undelivered in network[1].undelivered] == [1]
    assert payloads(network, 2) == [b"in time"]


def test_report_tells_how_a_peer_is_doing() -> None:
    network = Network(links=2)
    assert network[1].transport.report()[2].incarnation == 0
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.send(1, 2, bytes(1000))
    report = network[1].transport.report()[2]
    assert report.incarnation == 1002
    assert report.round_trip_s == pytest.approx(0.0002)
    assert report.in_flight_bytes == 1000
    assert report.path.link == 0
