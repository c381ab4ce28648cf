# SPDX-License-Identifier: Apache-2.0
"""Fuzzers: seeded, replayable, each with a short slice in the test run and a long one under `make fuzz`."""
