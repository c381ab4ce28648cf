# SPDX-License-Identifier: Apache-2.0
"""Counters, gauges and histograms of lbd itself: a registry that costs the daemon no library.

lbd answers the control method `metrics` with `Registry.as_plain()`; the API process turns that, with what it reads
from the packet path's maps, into the text Prometheus scrapes. Names follow Prometheus' conventions: base units
(seconds, bytes), `_total` for counters, unit last.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

SERIES_MAX = 4096
PREFIX = "rainlb_"
# From a token's hold on one host to a takeover that went wrong.
TIMING_BUCKETS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip

Kind = Literal["counter", "gauge", "histogram"]
LabelValues = tuple[str, ...]
M = TypeVar("M", bound="Metric")


class Metric:
    """A family of series told apart by the values of its labels; above SERIES_MAX they are shed and counted."""

    kind: Kind = "gauge"

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self.labels = name, text, tuple(labels)
        self.shed = 0
        self._series: dict[LabelValues, Any] = {}

    def _room_for(self, values: LabelValues) -> bool:
        assert len(values) == len(self.labels), f"{self.name} has the labels {self.labels}"
        if values in self._series or len(self._series) < SERIES_MAX:
            return True
        self.shed += 1
        return False

    def forget(self, *values: str) -> None:
        """Drop a series whose subject is gone."""
        self._series.pop(values, None)

    def as_plain(self) -> dict[str, Any]:
        series = [[list(values), value] for values, value in self._series.items()]
        return {"name": self.name, "kind": self.kind, "text": self.text, "labels": list(self.labels), "series": series}


class Counter(Metric):
    kind = "counter"

    def add(self, amount: float = 1, *values: str) -> None:
        if self._room_for(values):
            self._series[values] = self._series.get(values, 0) + amount

    def value(self, *values: str) -> float:
        return float(self._series.get(values, 0))


class Gauge(Metric):
    def set(self, value: float, *values: str) -> None:
        if self._room_for(values):
            self._series[values] = value

    def value(self, *values: str) -> float:
        return float(self._series.get(values, 0))


class Histogram(Metric):
    """Observations in seconds by default; bounds are the buckets' upper limits, the last one open."""

    kind = "histogram"

    def __init__(
        self, name: str, text: str, labels: Sequence[str] = (), bounds: Sequence[float] = TIMING_BUCKETS_S
    ) -> None:
        super().__init__(name, text, labels)
        self.bounds = tuple(bounds)

    def observe(self, value: float, *values: str) -> None:
        if not self._room_for(values):
            return
        # counts per bucket, then the sum
        cells = self._series.setdefault(values, [0] * (len(self.bounds) + 1) + [0.0])
        cells[bisect_left(self.bounds, value)] += 1
        cells[-1] += value

    def as_plain(self) -> dict[str, Any]:
        return {**super().as_plain(), "bounds": list(self.bounds)}


class Registry:
    """All metrics of a process, by name. Values that are cheap to read when asked for come from collectors."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}
        self._collectors: list[Callable[[], None]] = []

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter; its name must end in _total."""
        assert name.endswith("_total"), f"a counter's name ends in _total: {name}"
        return self._add(Counter(PREFIX + name, text, labels))

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return self._add(Gauge(PREFIX + name, text, labels))

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), bounds: Sequence[float] = TIMING_BUCKETS_S
    ) -> Histogram:
        return self._add(Histogram(PREFIX + name, text, labels, bounds))

    def collect(self, update: Callable[[], None]) -> None:
        """update sets gauges just before they are read."""
        self._collectors.append(update)

    def import_counts(self, name: str, text: str, label: str, counts: Mapping[str, float]) -> None:
        """Counters kept elsewhere (the ring's, by reason) as one family; call it from a collector."""
        metric = self._metrics.get(PREFIX + name) or self.counter(name, text, [label])
        metric._series = {(key,): value for key, value in list(counts.items())[:SERIES_MAX]}

    def as_plain(self) -> list[dict[str, Any]]:
        """Everything, fit for msgpack: the answer of the control method `metrics`."""
        for update in self._collectors:
            update()
        return [metric.as_plain() for metric in self._metrics.values()]

    def _add(self, metric: M) -> M:
        assert metric.name not in self._metrics, f"two metrics are called {metric.name}"
        self._metrics[metric.name] = metric
        return metric
