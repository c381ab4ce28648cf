# SPDX-License-Identifier: Apache-2.0
"""The allocator keeps what is freed: burst after burst without page faults."""

import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from sync.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def turn():
    blocks = [np.empty(size, dtype=np.uint8) for size in [65_000] * 17 + [1_000_000] * 3]
    for block in blocks:
        block.fill(1)
for _ in range(10):
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_bursts_cost_no_page_faults() -> None:
    assert page_faults("kept") < 200
