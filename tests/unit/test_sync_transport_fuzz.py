# SPDX-License-Identifier: Apache-2.0
"""A short, seeded slice of the datagram fuzzer; `make fuzz` runs a million."""

from tests.fuzz import datagrams


def test_mutated_replayed_and_forged_datagrams_do_no_harm() -> None:
    outcomes = datagrams.run(count=10_000, seed=2026)
    # Every line of defence was reached.
    for name in ("malformed", "bad_tag", "reflected", "stale", "unconfirmed", "duplicate", "damaged_chunk"):
        assert outcomes[name] > 0, name
    assert outcomes["genuine"] >= 400
