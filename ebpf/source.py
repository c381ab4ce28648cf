# SPDX-License-Identifier: Apache-2.0
"""The source text of a program as the compiler gets it, and what tells whether compiled code still fits it."""

from __future__ import annotations

import hashlib
import platform
import re
import time
from pathlib import Path

from ebpf import layout, libbpf

SOURCE_DIRECTORY = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "(\w+\.h)"$')
# The cache of recent flows: lines of 64 bytes for each CPU, halved until those of all possible CPUs fit.
FLOW_LINES_MAX = 65536
FLOW_CACHE_BYTES_MAX = 128 << 20
_LINE_BYTES = 64
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; the time module does not name it


def assemble(name: str, seen: set[str] | None = None) -> str:
    """One source text: BCC rewrites map calls in the main file only, so our own headers are put in their place."""
    seen = set() if seen is None else seen
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((SOURCE_DIRECTORY / name).read_text().splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            lines.append(line)
        elif include[1] not in seen:
            lines.append(assemble(include[1], seen))
            lines.append(f'#line {number + 1} "{name}"')
    return "\n".join(lines)


def source(name: str, maps_directory: Path) -> str:
    """The whole text of a program: pin path, source, layout assertions."""
    text = assemble(name)
    assertions = layout.static_assertions() if '#line 1 "layout.h"' in text else ""
    return f'#define PIN_DIRECTORY "{maps_directory}/"\n{text}\n{assertions}'


def flags() -> list[str]:
    """Compiler flags: what the running kernel alone knows."""
    cpus = libbpf.cpu_count_possible()
    definitions = {"CONFIG_HZ": jiffies_per_second(), "CPU_COUNT": cpus, "FLOW_LINES": flow_lines(cpus)}
    return [f"-D{name}={value}" for name, value in definitions.items()]


def flow_lines(cpus: int) -> int:
    """Lines of the cache of recent flows per CPU, a power of two: hosts with hundreds of possible CPUs are common."""
    lines = FLOW_LINES_MAX
    while lines * _LINE_BYTES * cpus > FLOW_CACHE_BYTES_MAX and lines > 1:
        lines //= 2
    return lines


def jiffies_per_second() -> int:
    """CONFIG_HZ of the running kernel: the coarse clock advances once a tick."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def program_names(text: str) -> list[str]:
    """The XDP programs of a source, entry first: every function marked STEP(name)."""
    return re.findall(r"^STEP\((\w+)\)", text, re.MULTILINE)


def fingerprint(name: str) -> str:
    """Equal for equal source, flags and machine: compiled code may be used again. Pin paths do not matter."""
    parts = [source(name, Path("/")), *flags(), platform.machine()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
