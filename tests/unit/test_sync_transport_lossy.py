# SPDX-License-Identifier: Apache-2.0
"""The transport's contract over any network: whole, once, reported truthfully, and over in time."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sync.transport import TransportConfig
from tests.unit.sync_transport_network import KEYS, Network, Weather

weathers = st.builds(
    Weather,
    loss=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.6]),
    duplication=st.sampled_from([0.0, 0.1, 0.5]),
    damage=st.sampled_from([0.0, 0.01, 0.1]),
    delay_min=st.just(0.0001),
    delay_max=st.sampled_from([0.0001, 0.001, 0.01]),
    datagram_max=st.sampled_from([1300, 1500, 9000]),
)
# A message: seconds before it, direction, size, whether the receiver restarts / the wire is cut right afterwards.
steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.03, 0.2]),
        st.booleans(),
        st.sampled_from([0, 1, 100, 1400, 5000, 70_000, 150_000]),
        st.sampled_from(["", "", "", "", "restart", "cut", "mend"]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    weather=weathers,
    steps=steps,
    links=st.integers(1, 2),
    parallel=st.booleans(),
    datagram_max=st.sampled_from([1472, 8972]),
    encrypt=st.booleans(),
    failure_after_s=st.sampled_from([0.04, 0.3]),
)
def test_atomic_no_duplicate_and_truthful_notices(
    seed: int,
    weather: Weather,
    steps: list[tuple[float, bool, int, str]],
    links: int,
    parallel: bool,
    datagram_max: int,
    encrypt: bool,
    failure_after_s: float,
) -> None:
    config = TransportConfig("test", KEYS, encrypt=encrypt, failure_after_s=failure_after_s)
    network = Network(
        seed=seed, weather=weather, config=config, links=links, parallel=parallel, datagram_max=datagram_max
    )
    sent: dict[tuple[int, int, int], bytes] = {}  # (sender, its incarnation, handle) -> payload
    arrived: list[tuple[int, int, bytes]] = []  # (sender, its incarnation, payload)
    settled: list[tuple[tuple[int, int, int], bool]] = []
    incarnations = {1: 1001, 2: 1002}

    def collect() -> None:
        for node, station in network.stations.items():
            life = incarnations[node]
            arrived.extend((a.peer, a.incarnation, bytes(a.payload)) for a in station.arrived)
            settled.extend(((node, life, d.handle), True) for d in station.delivered)
            settled.extend(((node, life, u.handle), False) for _, u in station.undelivered)
            for notices in (station.arrived, station.delivered, station.undelivered):
                notices.clear()

    forgotten: set[tuple[int, int]] = set()
    for number, (pause, forward, size, fault) in enumerate(steps):
        network.run(pause)
        source, destination = (1, 2) if forward else (2, 1)
        payload = b"%d:" % number + network.random.randbytes(size)
        sent[source, incarnations[source], network.send(source, destination, payload)] = payload
        if fault == "restart":
            collect()
            forgotten.add((destination, incarnations[destination]))
            incarnations[destination] += 10
            network.start(destination, incarnation=incarnations[destination])
        elif fault:
            network.cut = {(1, 2, 0), (2, 1, links - 1)} if fault == "cut" else set()
    network.run(30.0)
    collect()

    # Whole and only what was sent; once over all lives of the receiver.
    assert len(set(arrived)) == len(arrived)
    origins = {(source, life, payload): handle for (source, life, handle), payload in sent.items()}
    assert all(message in origins for message in arrived)
    # One notice a message (but for senders that died), Delivered only for what has arrived.
    assert len({name for name, _ in settled}) == len(settled)
    assert {name for name, _ in settled} >= {name for name in sent if name[:2] not in forgotten}
    for name, delivered in settled:
        if delivered:
            assert (name[0], name[1], sent[name]) in arrived
    # Nothing is left over.
    for station in network.stations.values():
        assert station.transport.deadline() == float("inf")
        assert station.transport.take() == []


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.1, 0.25]), sizes=st.lists(st.integers(0, 200_000)))
def test_everything_arrives_while_the_network_lets_enough_through(seed: int, loss: float, sizes: list[int]) -> None:
    config = TransportConfig("test", KEYS, failure_after_s=10.0, attempts=16)
    weather = Weather(loss=loss, duplication=0.05, delay_max=0.002)
    network = Network(seed=seed, weather=weather, config=config)
    payloads = [network.random.randbytes(size) for size in sizes]
    for payload in payloads:
        network.send(1, 2, payload)
    network.run(60.0)
    assert sorted(bytes(a.payload) for a in network[2].arrived) == sorted(payloads)
    assert len(network[1].delivered) == len(payloads)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    failure_after_s=st.floats(0.01, 2.0),
    attempts=st.integers(2, 8),
    links=st.integers(1, 3),
    parallel=st.booleans(),
    traffic=st.integers(0, 5),
)
def test_silence_is_reported_within_the_stated_time(
    seed: int, failure_after_s: float, attempts: int, links: int, parallel: bool, traffic: int
) -> None:
    config = TransportConfig("test", KEYS, failure_after_s=failure_after_s, attempts=attempts)
    network = Network(seed=seed, config=config, links=links, parallel=parallel)
    for _ in range(traffic):
        network.send(1, 2, b"x" * 3000)
        network.run(0.001)
    network.run(1.0)
    network.cut = {(1, 2, link) for link in range(links)}
    start = network.now
    used: dict[int, int] = {}

    def count(source: int, _: int, link: int, __: bytes) -> None:
        if source == 1:
            used[link] = used.get(link, 0) + 1

    network.heard = count
    network.send(1, 2, b"x")
    network.run(30.0)
    ((at, _),) = network[1].undelivered
    # Where the paths are too many for the time, two attempts on each still come first.
    least = 2 * (1 if parallel else links) * 0.001
    assert failure_after_s <= at - start + 1e-9 <= max(failure_after_s, least) * 1.1
    assert all(used[link] >= 2 for link in range(links))
