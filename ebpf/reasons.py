# SPDX-License-Identifier: Apache-2.0
"""The reasons of reasons.h for Python: numbers, names, classes and meanings, parsed from the C list itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r'REASON\((\w+), (\w+), "([^"]*)"\)')


@dataclass(frozen=True)
class Reason:
    """One line of reasons.h; ``number`` is the index into ``reason_counters``."""

    number: int
    name: str
    kind: str  # pass, sent, drop, alarm, note
    meaning: str


def _read() -> tuple[Reason, ...]:
    text = (Path(__file__).parent / "reasons.h").read_text()
    return tuple(Reason(number, *groups) for number, groups in enumerate(_ENTRY.findall(text)))


REASONS = _read()
BY_NAME = {reason.name: reason for reason in REASONS}


def markdown() -> str:
    """The table of docs/packet-path.md."""
    head = "| reason | class | meaning |\n|---|---|---|\n"
    return head + "".join(f"| `{r.name}` | {r.kind} | {r.meaning} |\n" for r in REASONS[1:])
