#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The whole test run, cheapest first. Stops at the first part that fails.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python

part() {
    name=$1; shift
    echo "== $name"
    begin=$(date +%s)
    "$@"
    echo "== $name: $(( $(date +%s) - begin )) s"
}

part lint $python -m ruff check .
part format $python -m ruff format --check .
part types $python -m mypy
part unit $python -m pytest -q -n 2 tests/unit
part packet $python -m pytest -q tests/packet
part sim $python -m pytest -q -n 2 tests/sim
part seeds $python -m tests.sim --seeds 2000
part model $python -m pytest -q -n 2 tests/model
part page $python -m pytest -q tests/page
part lab $python -m pytest -q netns-lab/scenarios
