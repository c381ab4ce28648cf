# SPDX-License-Identifier: Apache-2.0
"""When the transport gives a peer up, and when it does not: dead paths, pauses, restarts, patience and questions."""

from math import inf

import pytest

from sync.transport import Reason
from tests.unit.sync_transport_network import Network, Weather, payloads, reasons


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
