# SPDX-License-Identifier: Apache-2.0
"""What the ring refuses becomes an event that says what to do, once, and the reason why a gateway is not there."""

from dataclasses import fields

import pytest

from lb.cluster.refusals import EXPLANATIONS, PRESENT_S, QUIET_S, WORTH_TELLING, Refusals
from sync.transport import Counters, TurnedAway

FROM_GW3 = ("10.0.1.3", 7400)


def name(node: int) -> str:
    return f"gw{node}" if node in (1, 2, 3) else f"node {node}"


def test_every_explained_reason_is_one_the_transport_counts() -> None:
    assert set(EXPLANATIONS) <= {field.name for field in fields(Counters)}


@pytest.mark.parametrize("reason", EXPLANATIONS)
def test_a_lasting_trouble_is_told_once_and_again_later(reason: str) -> None:
    refusals, counter = Refusals(name), f"transport_{reason}"
    last = {reason: TurnedAway(FROM_GW3, 3, 1, 2)}
    assert refusals.take(0.0, {counter: 0}, {}) == []
    told = [refusals.take(float(second), {counter: 10.0 * second}, last) for second in range(1, 20)]
    (event,) = [event for events in told for event in events]
    assert (event.kind, event.subject, event.severity) == ("ring.refused", reason, "warning")
    assert EXPLANATIONS[reason][1] in event.message
    assert "10.0.1.3" in event.message
    assert len(refusals.take(QUIET_S + 1, {counter: 10_000}, last)) == 1


WHO = [
    ("impersonated", TurnedAway(FROM_GW3, 3, 1, 2), "the last from 10.0.1.3, the address of gw3, with node id 2 (gw2)"),
    ("reflected", TurnedAway(FROM_GW3, 3, 1, 1), "the last from 10.0.1.3, the address of gw3, with node id 1 (gw1)"),
    (
        "unknown_source",
        TurnedAway(("fd00::9", 7400, 0, 0), 0, 1, 9),
        "the last from fd00::9, nobody's address, with node",
    ),
    ("other_version", TurnedAway(FROM_GW3, 3, 9, 77), "the last from 10.0.1.3, the address of gw3, with version 9"),
]


@pytest.mark.parametrize(("reason", "refusal", "expected"), WHO, ids=[row[0] for row in WHO])
def test_an_event_names_who_sends_and_whom_it_names(reason: str, refusal: TurnedAway, expected: str) -> None:
    (event,) = Refusals(name).take(0.0, {f"transport_{reason}": 100}, {reason: refusal})
    assert expected in event.message


def test_strays_are_counted_and_not_told() -> None:
    refusals = Refusals(name)
    for second in range(100):
        assert refusals.take(float(second), {"transport_bad_tag": (WORTH_TELLING - 1) * second}, {}) == []


def test_what_was_refused_before_the_first_look_counts() -> None:
    assert len(Refusals(name).take(0.0, {"transport_other_cluster": 500, "transport_acks": 7}, {})) == 1


def test_a_peer_is_refused_for_as_long_as_it_is_heard() -> None:
    refusals, last = Refusals(name), {"other_version": TurnedAway(FROM_GW3, 3, 9, 3)}
    refusals.take(0.0, {"transport_other_version": 1}, last)
    refusals.take(5.0, {"transport_other_version": 2}, last)
    assert "install the same version" in refusals.of(3, 5.0 + PRESENT_S)
    assert refusals.of(3, 5.1 + PRESENT_S) == ""
    assert refusals.of(2, 5.0) == ""
