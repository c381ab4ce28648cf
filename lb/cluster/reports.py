# SPDX-License-Identifier: Apache-2.0
"""What the gateways tell each other again and again: the last word of each counts, for as long as it is fresh."""

import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Report = TypeVar("Report")


class Reports(Generic[Report]):
    """The last report of each node, by node id; `fresh_s` seconds after it was told there is none."""

    def __init__(self, fresh_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fresh_s = fresh_s
        self._clock = clock
        self._told: dict[int, tuple[float, Report]] = {}

    def take(self, node: int, report: Report) -> None:
        """A node has told this just now; what has grown old is forgotten."""
        now = self._clock()
        self._told = {other: told for other, told in self._told.items() if now - told[0] < self._fresh_s}
        self._told[node] = (now, report)

    def of(self, node: int) -> Report | None:
        """A node's report, None without a fresh one."""
        at, report = self._told.get(node, (0.0, None))
        return report if report is not None and self._clock() - at < self._fresh_s else None

    def among(self, nodes: Iterable[int]) -> dict[int, Report]:
        """The fresh reports of these nodes."""
        found = {node: self.of(node) for node in nodes}
        return {node: report for node, report in found.items() if report is not None}
