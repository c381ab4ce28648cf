# SPDX-License-Identifier: Apache-2.0
"""What processes use of the machine, and how measured values are summed up."""

import contextlib
import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# One line of a benchmark's output: figures by name.
Row = dict[str, Any]


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time the processes have used so far, all their threads, in seconds (nanosecond counters)."""
    total = 0
    for pid in pids:
        for schedstat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(schedstat.read_text().split()[0])
    return total / 1e9


def machine_seconds() -> float:
    """Busy time of the whole machine so far, interrupts included, in CPU seconds (10 ms steps)."""
    user, nice, system, _, _, irq, softirq, *_ = (
        int(v) for v in Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def private_mb(pid: int) -> float:
    """Proportional share (PSS) of a process in MiB: shared pages divided by their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def distribution(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Count, extremes, median, 99th percentile."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], digits)

    return {"n": len(ordered), "min": at(0), "p50": at(0.5), "p99": at(0.99), "max": round(ordered[-1], digits)}
