# SPDX-License-Identifier: Apache-2.0
"""The transport's promises, one by one, over a virtual network."""

import random
from math import inf

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sync.transport import (
    Backlogged,
    Delivered,
    KeyRing,
    Path,
    PeerConfig,
    Reason,
    Transport,
    TransportConfig,
    wire,
)
from tests.unit.sync_transport_network import KEYS, Network, Weather

SIZES = [0, 1, 1394, 1395, 1396, 1397, 61_000, 61_336, 61_337, 65_536, 200_000, 3_000_000]


def payloads(network: Network, node: int) -> list[bytes]:
    return [bytes(arrived.payload) for arrived in network[node].arrived]


def reasons(network: Network, node: int) -> list[Reason]:
    return [undelivered.reason for _, undelivered in network[node].undelivered]


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


@pytest.mark.parametrize("place", [0, 5, 14])
def test_forged_segment_that_receive_offload_puts_among_others_takes_none_of_them_along(place: int) -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(0.1)
    payload = random.Random(1).randbytes(20_000)
    network[1].transport.send(network.now, 2, 7, payload)
    (transmit,) = network[1].transport.take()
    data, size = bytes(transmit.data), transmit.segment_size  # type: ignore[union-attr]
    forged = data[: wire.CHUNK_LENGTH] + bytes(size - wire.CHUNK_LENGTH)
    mixed = data[: place * size] + forged + data[place * size :]
    network[2].transport.receive(network.now, 0, ("node", 1, 0), mixed, size)
    network.collect(2)
    assert payloads(network, 2) == [b"hello", payload]
    assert network[2].transport.counters.bad_tag == 1


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


def test_restarted_sender_is_accepted_even_with_a_lower_incarnation() -> None:
    """Liveness is proved by the challenge, not by the order of clocks."""
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.start(1, incarnation=3)
    network.send(1, 2, b"again")
    network.run(1.0)
    assert [(a.incarnation, bytes(a.payload)) for a in network[2].arrived] == [(1001, b"hello"), (3, b"again")]


def test_nothing_replayed_or_reflected_is_given_out() -> None:
    recording: list[tuple[int, int, int, bytes]] = []
    network = Network(3)
    network.heard = lambda *heard: recording.append(heard)
    for size in (10, 5_000, 200_000):
        network.send(1, 2, bytes(size))
        network.send(2, 1, bytes(size))
    network[1].transport.send_unreliable(network.now, 2, 9, b"beacon")
    network.collect(1)
    network.run(1.0)
    before = {node: len(network[node].arrived) for node in (1, 2, 3)}
    assert before == {1: 3, 2: 4, 3: 0}

    def replay_everything() -> None:
        network.heard = None
        for _, _, _, data in recording:
            for victim in (1, 2, 3):
                for pretended in {1, 2, 3} - {victim}:
                    network.inject(victim, data, source=pretended)
        network.run(1.0)

    replay_everything()
    assert {node: len(network[node].arrived) for node in (1, 2, 3)} == before
    assert network[2].transport.counters.duplicate > 0
    assert network[1].transport.counters.reflected > 0
    # A restarted receiver has no memory of what it was sent, and still takes none of it.
    network.start(2, incarnation=7002)
    replay_everything()
    assert network[2].arrived == []
    assert network[2].transport.counters.stale + network[2].transport.counters.unconfirmed > 0
    # Nor after it has met the sender anew.
    network.send(1, 2, b"fresh")
    network.run(1.0)
    network.send(1, 2, b"fresh")
    network.run(1.0)
    replay_everything()
    assert payloads(network, 2)[-1:] == [b"fresh"]
    assert set(payloads(network, 2)) == {b"fresh"}
    assert len(network[2].arrived) <= 2


def test_datagram_held_back_from_a_former_life_of_the_sender_is_refused() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    network.cut = {(1, 2, 0)}
    held: list[bytes] = []
    network.heard = lambda source, _, __, data: held.append(data) if source == 1 else None
    network.send(1, 2, b"held back")
    network.heard = None
    network.cut = set()
    network.start(1, incarnation=6001)
    network.send(1, 2, b"new life")
    network.run(1.0)
    network.inject(2, held[0], source=1)
    network.run(1.0)
    assert payloads(network, 2) == [b"hello", b"new life"]
    assert network[2].transport.counters.unconfirmed >= 1


def test_other_key_cluster_and_open_network_do_not_mix() -> None:
    for foreign, reason in (
        (TransportConfig("test", KeyRing([b"k" * 32])), "unknown_key"),
        (TransportConfig("test"), "unknown_key"),
        (TransportConfig("other", KEYS), "other_cluster"),
        (TransportConfig("test", KEYS, encrypt=True), "bad_tag"),
    ):
        network = Network()
        network.start(1, incarnation=9, config=foreign)
        network.send(1, 2, b"hello")
        network.run(1.0)
        assert reasons(network, 1) == [Reason.UNREACHABLE]
        assert network[2].arrived == []
        assert network[2].transport.counters.as_dict()[reason] > 0


def test_cluster_without_key_works_and_detects_damage() -> None:
    network = Network(config=TransportConfig("test", failure_after_s=1.0), weather=Weather(damage=0.3), seed=5)
    for number in range(50):
        network.send(1, 2, b"%d" % number)
    network.run(3.0)
    assert sorted(payloads(network, 2)) == sorted(b"%d" % number for number in range(50))
    assert network[2].transport.counters.bad_tag > 0


def test_keys_change_without_losing_a_message() -> None:
    old, new = b"o" * 32, b"n" * 32
    network = Network(config=TransportConfig("test", KeyRing([old])))
    steps = [KeyRing([old, new]), KeyRing([new, old]), KeyRing([new])]
    sent = 0
    for ring in steps:
        for node in (1, 2):
            network[node].transport.set_keys(ring)
            network.send(1, 2, b"%d" % sent)
            network.send(2, 1, b"%d" % sent)
            network.run(0.1)
            sent += 1
    for node in (1, 2):
        assert payloads(network, node) == [b"%d" % number for number in range(sent)]
        assert network[node].transport.counters.unknown_key == 0
        assert network[node].transport.counters.retransmissions == 0


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


def test_spoofer_who_does_not_see_the_traffic_cannot_disturb_a_reassembly() -> None:
    network = Network(seed=9)
    network.send(1, 2, b"hello")
    network.run(1.0)
    payload = bytes(range(256)) * 200
    network.send(1, 2, payload)
    names = (1, wire.SEGMENT, 1, 2, wire.cluster_number("test"), KEYS.sealing.id, 1001, 1002)
    guess = wire.CHUNK.pack(*names, 2, 0, 0, 7, 0, 1472, 51200, 2, 51200, 0)
    for index in range(37):
        for _ in range(5):
            tag = network.random.randbytes(wire.TAG_LENGTH)
            network.inject(2, guess + tag + bytes((index, 0)) + bytes(1392), source=1)
    network.run(1.0)
    assert payloads(network, 2) == [b"hello", payload]
    assert network[2].transport.counters.bad_tag >= 100
    assert network[2].transport.counters.damaged_chunk == 0
    assert network[1].transport.counters.retransmissions == 0


def test_segment_damaged_on_the_way_is_repaired() -> None:
    network = Network()
    network.send(1, 2, b"hello")
    network.run(1.0)
    recording: list[bytes] = []
    network.heard = lambda source, _, __, data: recording.append(data) if source == 1 else None
    network.cut = {(1, 2, 0)}
    payload = bytes(range(256)) * 100
    network.send(1, 2, payload)
    network.heard, network.cut = None, set()
    damaged = recording[3][:-1] + bytes((recording[3][-1] ^ 1,))
    for data in (*recording[:3], damaged, *recording[4:]):
        network.inject(2, data, source=1)
    network.run(1.0)
    assert payloads(network, 2) == [b"hello", payload]
    assert network[2].transport.counters.damaged_chunk == 1


def test_unknown_source_is_refused_before_any_cryptography() -> None:
    network = Network()
    network[2].transport.receive(network.now, 0, ("node", 77, 0), bytes(100))
    network[2].transport.receive(network.now, 5, ("node", 1, 0), bytes(100))
    assert network[2].transport.counters.unknown_source == 2
    assert network[2].transport.take() == []


def test_node_that_claims_to_be_another_is_refused() -> None:
    network = Network(3)
    recording: list[bytes] = []
    network.heard = lambda *heard: recording.append(heard[3])
    network.send(1, 2, b"hello")
    network.inject(2, recording[0], source=3)
    network.inject(3, recording[0], source=1)
    network.run(0.0)
    assert network[2].transport.counters.impersonated == 1
    assert network[3].transport.counters.misdirected == 1


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


def test_payload_that_changes_after_sending_is_sent_as_it_was() -> None:
    """Also when the chunk is cut anew later: two texts under one nonce would betray the key."""
    network = Network(datagram_max=8972, weather=Weather(datagram_max=1500))
    network.send(1, 2, b"hello")
    network.run(1.0)
    for mutable in (bytearray(b"a" * 20_000), memoryview(bytearray(b"a" * 20_000))):
        network[1].transport.send(network.now, 2, 7, mutable)
        mutable[:5] = b"zzzzz"
        network.collect(1)
        network.run(0.001)
        mutable[-5:] = b"zzzzz"
        network.run(1.0)
    assert network[1].transport.counters.cuts > 0
    assert payloads(network, 2)[1:] == [b"a" * 20_000] * 2


def test_no_nonce_is_used_twice_for_different_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sealing of a stormy life: losses, cuts, restarts of the peer, its removal and return, changes of keys."""
    sealed: dict[tuple[int, bytes], tuple[bytes, bytes]] = {}

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._aead = AESGCM(key)
            self._key = hash(key)

        def encrypt(self, nonce: bytes, data: bytes, header: bytes) -> bytes:
            text = (bytes(data), bytes(header))
            assert sealed.setdefault((self._key, nonce), text) == text
            return self._aead.encrypt(nonce, data, header)

        def decrypt(self, nonce: bytes, data: bytes, header: bytes) -> bytes:
            return self._aead.decrypt(nonce, data, header)

    monkeypatch.setattr("sync.transport.keys.AESGCM", Watched)
    old, new = b"o" * 32, b"n" * 32
    network = Network(
        config=TransportConfig("test", KeyRing([old, new])),
        datagram_max=8972,
        weather=Weather(loss=0.2, datagram_max=1500),
        links=2,
        seed=11,
    )
    for round_ in range(30):
        for size in (0, 100, 3_000, 70_000):
            network.send(1, 2, bytes([round_]) * size)
            network.send(2, 1, bytes([round_]) * size)
        network[1].transport.send_unreliable(network.now, 2, 9, b"beacon")
        network.collect(1)
        network.run(0.05)
        if round_ % 5 == 0:
            network.start(2, incarnation=20_000 + round_)
        if round_ % 7 == 0:
            network[1].transport.remove_peer(2)
            network.collect(1)
            network[1].transport.set_peer(2, network.peer_config(2))
        if round_ % 3 == 0:
            network[1].transport.set_keys(KeyRing([old, new] if round_ % 2 else [new, old]))
    assert len(sealed) > 1_000
    assert network[1].transport.counters.cuts > 0
    assert network[1].transport.counters.sessions > 3
