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

# What a run may leave behind: nothing.
leftovers() {
    ls /run/netns 2>/dev/null
    awk '$3 == "bpf" { print "bpffs on " $2 }' /proc/mounts
    pgrep -fa 'lb\.main|bin/lbd|lb\.api|lb\.health|netlab\.traffic' || true
}
leftovers_before=$(mktemp)
leftovers_after=$(mktemp)
trap 'rm -f "$leftovers_before" "$leftovers_after"' EXIT
leftovers > "$leftovers_before"

part lint $python -m ruff check .
part format $python -m ruff format --check .
part types $python -m mypy
part unit $python -m pytest -q -n 2 tests/unit
part packet $python -m pytest -q -n 2 tests/packet
part sim $python -m pytest -q -n 2 tests/sim
part seeds $python -m tests.sim --seeds 2000
part model $python -m pytest -q -n 2 tests/model
part page $python -m pytest -q tests/page
part lab $python -m pytest -q --durations=25 netns-lab/scenarios
part docs $python -m pytest -q tests/docs

leftovers > "$leftovers_after"
if ! diff "$leftovers_before" "$leftovers_after"; then
    echo "test: the run has left the above behind" >&2
    exit 1
fi
