# SPDX-License-Identifier: Apache-2.0
"""The formal models of the ring, checked exhaustively with spin: one token per group, no deadlock.

By hand: `spin -a -DNODES=4 tests/model/merge.pml && cc -O2 -DSAFETY -o pan pan.c && ./pan`.
"""

import re
import subprocess
from pathlib import Path

import pytest

MODELS = Path(__file__).parent
SEARCH_SECONDS_MAX = 90


def search(model: str, options: str, folder: Path) -> tuple[int, int, str]:
    """Errors found, states visited and the checker's words for a model with `options`."""
    subprocess.run(["spin", "-a", *options.split(), MODELS / model], cwd=folder, check=True, capture_output=True)
    compiler = ["cc", "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=3000", "-o", "pan", "pan.c"]
    subprocess.run(compiler, cwd=folder, check=True)
    checker = ["./pan", "-m200000", "-w22"]
    result = subprocess.run(checker, cwd=folder, check=True, capture_output=True, text=True, timeout=SEARCH_SECONDS_MAX)
    assert "Search not completed" not in result.stdout or "errors: 1" in result.stdout, result.stdout
    errors, states = re.search(r"errors: (\d+)", result.stdout), re.search(r"(\d+) states, stored", result.stdout)
    assert errors is not None, result.stdout
    assert states is not None, result.stdout
    return int(errors[1]), int(states[1]), result.stdout


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("regeneration.pml", "-DNODES=3 -DLOST_ACKS=2 -DDEATHS=1 -DFALSE_ALARMS=0 -DHOP_LIMIT=9"),
        ("regeneration.pml", "-DNODES=3 -DLOST_ACKS=0 -DDEATHS=0 -DFALSE_ALARMS=1 -DHOP_LIMIT=7"),
        ("regeneration.pml", "-DNODES=4 -DLOST_ACKS=1 -DDEATHS=1 -DFALSE_ALARMS=0 -DHOP_LIMIT=8"),
        ("regeneration.pml", "-DNODES=4 -DLOST_ACKS=0 -DDEATHS=2 -DFALSE_ALARMS=0 -DHOP_LIMIT=9"),
        ("merge.pml", "-DNODES=3"),
        ("merge.pml", "-DNODES=4"),
    ],
)
def test_one_token_per_group_and_no_deadlock(model: str, options: str, tmp_path: Path) -> None:
    errors, states, words = search(model, options, tmp_path)
    assert errors == 0, words
    assert states > 500, f"the model hardly moves: {words}"


@pytest.mark.parametrize(
    ("model", "options", "finding"),
    [
        # A sequence number alone, as printed in the thesis, lets two tokens live in one group.
        ("regeneration.pml", "-DBROKEN_SEQUENCE_ONLY -DDEATHS=0 -DFALSE_ALARMS=0", "assertion violated"),
        # Rank alone does not prevent a circle of waiting groups: ranks change while tokens are under way.
        ("merge.pml", "-DNODES=4 -DIMPATIENCE=0 -DBROKEN_NO_GIVING_UP", "invalid end state"),
    ],
)
def test_the_models_catch_a_broken_protocol(model: str, options: str, finding: str, tmp_path: Path) -> None:
    errors, _, words = search(model, options, tmp_path)
    assert errors > 0
    assert finding in words
