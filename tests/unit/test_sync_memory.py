# SPDX-License-Identifier: Apache-2.0
"""The allocator keeps what is freed: burst after burst without page faults. Huge blocks cost nothing before use."""

import resource
import subprocess
import sys

import pytest

from sync.memory import MAPPED_ALONE_BYTES, buffer

PROGRAM = """
import resource, sys
from sync.memory import buffer, keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def turn():
    return [buffer(size) for size in [65_000] * 17 + [1_000_000] * 3]  # zeroed, hence touched
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


@pytest.mark.parametrize("length", [0, 1, MAPPED_ALONE_BYTES, MAPPED_ALONE_BYTES + 1])
def test_a_buffer_is_bytes_to_write_to(length: int) -> None:
    block = buffer(length)
    assert (len(block), block.format, block.readonly) == (length, "B", False)
    block[length // 2 :] = b"x" * (length - length // 2)
    assert bytes(block[-1:]) == b"x" * min(length, 1)


def test_a_huge_buffer_is_not_touched_before_it_is_used() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [buffer(64 << 20) for _ in range(4)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100, f"{len(buffers)} buffers"
