# SPDX-License-Identifier: Apache-2.0
"""Whose state goes on when copies are compared: a pure choice that every member makes alike.

A view says which members start over with it, so after a join or a merge nothing has to be chosen. Copies are compared
now and then against silent damage, and when the only complete copies died while others were still fetching one. Every
member multicasts a report of its state at the comparison's place in the stream; when all are delivered, all choose:

1. Complete copies come before those still fetching one.
2. Among lineages (each founding of a cluster starts one) the one with the longest history wins, that is the highest
   Lamport clock: nodes that have just booted alone do not overwrite a cluster that has been running.
3. Within the lineage, the state held by most members wins, then the higher clock, then the one with the lowest node id.

The others fetch the winners' state. Members with equal digests are all winners: if all are equal, nothing moves.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple


class Report(NamedTuple):
    """One member's state at the comparison."""

    node: int
    session: int
    synchronised: bool
    lineage: int
    clock: int
    digest: bytes


def choose(reports: Mapping[int, Report]) -> tuple[int, ...]:
    """Nodes whose state goes on, in ascending order. `reports` must not be empty."""
    complete = [report for report in reports.values() if report.synchronised]
    candidates = complete or list(reports.values())
    by_lineage = _grouped((report.lineage, report) for report in candidates)
    lineage = max(by_lineage.values(), key=_history)
    by_state = _grouped((report.digest, report) for report in lineage)
    winners = max(by_state.values(), key=_weight)
    return tuple(sorted(report.node for report in winners))


def _grouped(pairs: Iterable[tuple[Hashable, Report]]) -> dict[Hashable, list[Report]]:
    groups: defaultdict[Hashable, list[Report]] = defaultdict(list)
    for key, report in pairs:
        groups[key].append(report)
    return groups


def _history(reports: list[Report]) -> tuple[bool, int, int, int]:
    return (
        reports[0].lineage != 0,
        max(report.clock for report in reports),
        len(reports),
        -min(report.node for report in reports),
    )


def _weight(reports: list[Report]) -> tuple[int, int, int]:
    return len(reports), max(report.clock for report in reports), -min(report.node for report in reports)
