# SPDX-License-Identifier: Apache-2.0
"""What the ring refuses becomes an event that says what to do, once."""

from dataclasses import fields

import pytest

from lb.cluster.refusals import EXPLANATIONS, QUIET_S, WORTH_TELLING, Refusals
from sync.transport.effects import Counters


def test_every_explained_reason_is_one_the_transport_counts() -> None:
    assert set(EXPLANATIONS) <= {field.name for field in fields(Counters)}


@pytest.mark.parametrize("reason", EXPLANATIONS)
def test_a_lasting_trouble_is_told_once_and_again_later(reason: str) -> None:
    refusals, name = Refusals(), f"transport_{reason}"
    assert refusals.take(0.0, {name: 0}) == []
    told = [refusals.take(float(second), {name: 10.0 * second}) for second in range(1, 20)]
    (event,) = [event for events in told for event in events]
    assert (event.kind, event.subject, event.severity) == ("ring.refused", reason, "warning")
    assert EXPLANATIONS[reason][1] in event.message
    assert len(refusals.take(QUIET_S + 1, {name: 10_000})) == 1


def test_strays_are_counted_and_not_told() -> None:
    refusals = Refusals()
    for second in range(100):
        assert refusals.take(float(second), {"transport_bad_tag": (WORTH_TELLING - 1) * second}) == []


def test_what_was_refused_before_the_first_look_counts() -> None:
    assert len(Refusals().take(0.0, {"transport_other_cluster": 500, "transport_acks": 7})) == 1
