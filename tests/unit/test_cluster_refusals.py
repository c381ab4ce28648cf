# SPDX-License-Identifier: Apache-2.0
"""What the ring refuses becomes an event that says what to do, once, and the reason why a gateway is not there."""

from dataclasses import fields

import pytest

from lb.cluster.refusals import EXPLANATIONS, PRESENT_S, QUIET_S, TROUBLES_MAX, WORTH_TELLING, Refusals
from sync.transport import Counters, TurnedAway

GW3 = ("10.0.1.3", 7400)


def name(node: int) -> str:
    return f"gw{node}" if node in (1, 2, 3) else f"node {node}"


def turned_away(reason: str, count: int, peer: int = 3, claimed: int = 2) -> dict[tuple[str, int], TurnedAway]:
    return {(reason, peer): TurnedAway(count, GW3, 1, claimed)}


def test_every_explained_reason_is_one_the_transport_counts() -> None:
    assert set(EXPLANATIONS) <= {field.name for field in fields(Counters)}


@pytest.mark.parametrize("reason", EXPLANATIONS)
def test_a_lasting_trouble_is_told_once_and_again_later(reason: str) -> None:
    refusals = Refusals(name)
    told = [refusals.take(float(second), turned_away(reason, 10 * second)) for second in range(1, 20)]
    (event,) = [event for events in told for event in events]
    assert (event.kind, event.subject, event.severity) == ("ring.refused", reason, "warning")
    assert EXPLANATIONS[reason][1] in event.message
    assert len(refusals.take(QUIET_S + 1, turned_away(reason, 10_000))) == 1


WHO = [
    ("impersonated", 3, TurnedAway(9, GW3, 1, 2), "(from 10.0.1.3, the address of gw3, with node id 2 (gw2))"),
    ("reflected", 3, TurnedAway(9, GW3, 1, 1), "(from 10.0.1.3, the address of gw3, with node id 1 (gw1))"),
    (
        "unknown_source",
        0,
        TurnedAway(9, ("fd00::9", 1, 0, 0), 1, 9),
        "(from fd00::9, nobody's address, with node id 9)",
    ),
    ("other_version", 3, TurnedAway(9, GW3, 9, 77), "(from 10.0.1.3, the address of gw3, with version 9)"),
]


@pytest.mark.parametrize(("reason", "peer", "datagrams", "expected"), WHO, ids=[row[0] for row in WHO])
def test_an_event_names_who_sends_and_whom_it_names(
    reason: str, peer: int, datagrams: TurnedAway, expected: str
) -> None:
    (event,) = Refusals(name).take(0.0, {(reason, peer): datagrams})
    assert expected in event.message


def test_strays_are_counted_and_not_told() -> None:
    refusals = Refusals(name)
    for second in range(100):
        assert refusals.take(float(second), turned_away("bad_tag", (WORTH_TELLING - 1) * second)) == []


def test_what_was_refused_before_the_first_look_counts() -> None:
    refused = turned_away("other_cluster", 500) | turned_away("too_short", 500)
    assert len(Refusals(name).take(0.0, refused)) == 1


def test_another_gateways_trouble_is_another_one_and_a_flood_of_them_is_bounded() -> None:
    refusals, count = Refusals(name), 0
    for claimed in range(1, 100):
        count += len(refusals.take(0.0, turned_away("impersonated", 10 * claimed, claimed=claimed)))
    assert count == TROUBLES_MAX
    assert len(refusals.take(QUIET_S, turned_away("impersonated", 10_000, claimed=200))) == 1


def test_a_peer_is_refused_for_as_long_as_it_is_heard() -> None:
    refusals = Refusals(name)
    both = turned_away("other_version", 1) | turned_away("other_version", 1, peer=2)
    refusals.take(0.0, both)
    refusals.take(5.0, both | turned_away("other_version", 2))
    assert "install the same version" in refusals.of(3, 5.0 + PRESENT_S)
    assert refusals.of(3, 5.1 + PRESENT_S) == ""
    assert "10.0.1.3" in refusals.of(2, 5.0)
    assert refusals.of(2, 5.1 + PRESENT_S) == ""
    assert refusals.of(1, 5.0) == ""
    assert refusals.others_there(5.0 + PRESENT_S)
    assert not refusals.others_there(5.1 + PRESENT_S)


def test_a_stranger_who_is_refused_is_no_other_gateway() -> None:
    refusals = Refusals(name)
    refusals.take(0.0, turned_away("unknown_source", 9, peer=0))
    assert not refusals.others_there(0.0)
