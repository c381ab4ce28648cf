# SPDX-License-Identifier: Apache-2.0
"""Peers of the transport come, move, go and are reported on; nonsense about them is refused."""

import random

import pytest

from sync.transport import Path, PeerConfig, Reason, Transport, TransportConfig
from tests.unit.sync_transport_network import KEYS, Network, payloads, reasons


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
