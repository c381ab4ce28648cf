# SPDX-License-Identifier: Apache-2.0
"""A link of this node loses its carrier: it knows at once, and so do its peers."""

import pytest

from sync.transport import wire
from tests.unit.sync_transport_network import Network, payloads

BOTH_WAYS_OVER_0 = {(1, 2, 0), (2, 1, 0)}
# Much less than the least retransmission timeout.
AT_ONCE_S = 0.001


def connected(**options: bool) -> Network:
    """Two nodes that know each other over two links."""
    network = Network(links=2, **options)  # type: ignore[arg-type]
    network.send(1, 2, b"hello")
    network.send(2, 1, b"welcome")
    network.run(1.0)
    return network


def lose(network: Network, node: int, link: int = 0) -> None:
    network[node].transport.link_lost(network.now, link)
    network.collect(node)


def test_what_is_under_way_goes_over_another_link_at_once_in_both_directions() -> None:
    network = connected()
    network.cut = BOTH_WAYS_OVER_0
    network.send(1, 2, b"mine")
    network.send(2, 1, b"theirs")
    lose(network, 1)
    network.run(AT_ONCE_S)
    assert (payloads(network, 2), payloads(network, 1)) == ([b"hello", b"mine"], [b"welcome", b"theirs"])
    assert [len(network[node].delivered) for node in (1, 2)] == [2, 2]


def test_what_comes_later_begins_with_the_link_that_is_left() -> None:
    network = connected()
    network.cut = BOTH_WAYS_OVER_0
    lose(network, 1)
    network.run(AT_ONCE_S)
    for node in (1, 2):
        network.send(node, 3 - node, b"later")
    network.run(AT_ONCE_S)
    assert payloads(network, 1)[1:] == payloads(network, 2)[1:] == [b"later"]
    assert network[1].transport.counters.retransmissions == network[2].transport.counters.retransmissions == 0


def test_large_messages_lose_nothing_and_arrive_once() -> None:
    network = connected()
    large = bytes(range(256)) * 1024
    network.send(1, 2, large)
    network.run(0.0002)
    network.cut = BOTH_WAYS_OVER_0
    lose(network, 1)
    network.run(0.5)
    assert payloads(network, 2) == [b"hello", large]


def test_a_link_that_is_not_the_first_way_changes_nothing() -> None:
    network = connected()
    lose(network, 1, link=1)
    network.run(AT_ONCE_S)
    assert network[2].transport.report()[1].path.link == 0
    assert network[1].transport.counters.hellos == connected()[1].transport.counters.hellos


@pytest.mark.parametrize("options", [{"parallel": True}, {}])
def test_without_a_choice_nothing_happens(options: dict[str, bool]) -> None:
    """All links are used at once, or there is only one."""
    network = connected(**options) if options else Network()
    network.send(1, 2, b"x")
    lose(network, 1)
    network.run(1.0)
    assert payloads(network, 2)[-1] == b"x"
    assert network[1].transport.counters.retransmissions == 0


def test_a_recorded_wish_moves_nobody() -> None:
    """It is obeyed once, and only by the session that it was meant for."""
    network = connected()
    heard: list[bytes] = []
    network.heard = lambda source, destination, link, data: heard.append(data) if data[1] == wire.HELLO else None
    lose(network, 1)
    network.run(AT_ONCE_S)
    (wish,) = heard
    assert network[2].transport.report()[1].path.link == 1
    lose(network, 1, link=1)
    network.run(AT_ONCE_S)
    assert network[2].transport.report()[1].path.link == 0, "the later wish counts"
    network.inject(2, wish, source=1, link=1)
    network.run(AT_ONCE_S)
    assert network[2].transport.report()[1].path.link == 0
    network.start(2, incarnation=2002)
    network.send(2, 1, b"anew")
    network.run(1.0)
    network.inject(2, wish, source=1, link=1)
    network.run(AT_ONCE_S)
    assert (network[2].transport.report()[1].path.link, network[2].transport.counters.stale) == (0, 1)
