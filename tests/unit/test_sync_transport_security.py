# SPDX-License-Identifier: Apache-2.0
"""The transport against those who replay, forge, damage or pretend, and against mistakes with keys and nonces."""

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sync.transport import KeyRing, Reason, TransportConfig, wire
from tests.unit.sync_transport_network import KEYS, Network, Weather, payloads, reasons


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
    assert network[2].transport.turned_away == {("unknown_source", 0): (2, ("node", 1, 0), 0, 0)}
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
    assert network[2].transport.turned_away == {("impersonated", 3): (1, ("node", 3, 0), wire.VERSION, 1)}
    assert network[3].transport.counters.misdirected == 1


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
