# SPDX-License-Identifier: Apache-2.0
"""A short, seeded slice of each fuzzer that needs nothing but the code; `make fuzz` runs the long ones."""

from tests.fuzz import configuration


def test_mutated_configuration_files_are_accepted_or_refused_with_words() -> None:
    outcomes = configuration.run(count=1500, seed=2026)
    assert outcomes["accepted"] > 50
    assert outcomes["refused"] > 500
