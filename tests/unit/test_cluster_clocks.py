# SPDX-License-Identifier: Apache-2.0
"""Times that other gateways tell, while their clocks are years off."""

import pytest

from lb.cluster.clocks import TOLERANCE_S, here

YEARS = 7 * 365.25 * 86400


@pytest.mark.parametrize(
    ("told", "expected"),
    [(1000.0, 1000.0), (1000.0 - TOLERANCE_S, 1000.0 - TOLERANCE_S), (1000.0 + YEARS, 1000.0), (-YEARS, 1000.0)],
)
def test_a_time_from_a_clock_that_is_off_becomes_the_time_it_was_told(told: float, expected: float) -> None:
    assert here(told, 1000.0) == expected
