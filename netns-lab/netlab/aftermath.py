# SPDX-License-Identifier: Apache-2.0
"""What the gateways of a lab tell of the last while, on one page: for a scenario that has failed."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from netlab.lab import Lab, tail

EVENTS_SHOWN = 25
LOG_LINES_SHOWN = 10
LINE_CHARACTERS_MAX = 160
# A daemon writes its journal every second.
JOURNAL_WRITTEN_S = 1.2


def page(lab: Lab) -> str:
    """The end of every daemon's log, then the events of all journals in one order, each told once."""
    time.sleep(JOURNAL_WRITTEN_S)
    return "\n".join(line[:LINE_CHARACTERS_MAX] for line in (*_log_lines(lab), *_event_lines(lab)))


def _log_lines(lab: Lab) -> Iterator[str]:
    for gateway in lab.gateways:
        for line in tail(lab.directory / "log" / f"{gateway.name}-lbd.log", LOG_LINES_SHOWN).splitlines():
            if " INFO " not in line:
                yield f"{gateway.name}-lbd.log: {line}"


def _event_lines(lab: Lab) -> list[str]:
    """What several gateways have noted of one thing is shown once."""
    first: dict[tuple[str, int], float] = {}
    for gateway in lab.gateways:
        journal = lab.directory / gateway.name / "state" / "events.jsonl"
        for row in map(json.loads, tail(journal, EVENTS_SHOWN).splitlines() if journal.exists() else ()):
            told = (f"{row['node']} {row['kind']}: {row['message']}", int(row["time"]))
            first[told] = min(row["time"], first.get(told, row["time"]))
    in_order = sorted((at, text) for (text, _), at in first.items())[-EVENTS_SHOWN:]
    return [f"{datetime.fromtimestamp(at, UTC):%H:%M:%S.%f} {text}" for at, text in in_order]
