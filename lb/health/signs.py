# SPDX-License-Identifier: Apache-2.0
"""What clients' own traffic says about backends: refused connections and ICMP errors, as the packet path counts them.

A sign is no verdict: it counts as one failed try and brings the next, real one at once, so a server that dies under
load is judged within a second or two instead of after `fall` intervals. A gateway heeds what it forwards itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ebpf.map_access import Map
from ebpf.map_specs import SPECS
from ebpf.maps import LayoutMismatchError, open_map

SIGNS_INTERVAL_S = 1.0
COUNTERS = "target_counters"


@dataclass(frozen=True, slots=True)
class Signs:
    """Since the data path was loaded: resets that answered a first packet, and ICMP errors "unreachable"."""

    refused: int
    unreachable: int


class SignReader:
    """Reads the counters from the pinned map; what cannot be read is no sign. Blocks."""

    def __init__(self, maps: Path) -> None:
        self._path = maps / COUNTERS
        self._open: tuple[int, Map] | None = None

    def read(self, backend_ids: Sequence[int]) -> dict[int, Signs]:
        """The counts of these backends; empty while the packet path is away."""
        try:
            values = self._opened().head(max(backend_ids, default=0) + 1)
        except (OSError, LayoutMismatchError):
            return {}
        chosen = values[list(backend_ids)]
        refused, unreachable = (chosen[name].sum(axis=1) for name in ("refused", "unreachable"))
        return {n: Signs(int(r), int(u)) for n, r, u in zip(backend_ids, refused, unreachable, strict=True)}

    def _opened(self) -> Map:
        """The map behind the pin as it is now: a packet path loaded anew has another."""
        inode = self._path.stat().st_ino
        if self._open is None or self._open[0] != inode:
            if self._open is not None:
                self._open[1].close()
            self._open = inode, open_map(self._path, COUNTERS, SPECS[COUNTERS])
        return self._open[1]


class SignMeter:
    """Turns counts into rates. The first counts of a backend, and smaller ones than before, are a beginning."""

    def __init__(self) -> None:
        self._before: Mapping[int, Signs] = {}
        self._at = 0.0

    def above(self, counts: Mapping[int, Signs], bounds: Mapping[int, int], now: float) -> Iterator[tuple[int, str]]:
        """The backends with more signs per second than their bound since the last call, with words for people."""
        before, passed = self._before, now - self._at
        self._before, self._at = dict(counts), now
        for backend_id, found in counts.items():
            earlier = before.get(backend_id)
            if earlier is None or passed <= 0:
                continue
            refused = max(0, found.refused - earlier.refused) / passed
            unreachable = max(0, found.unreachable - earlier.unreachable) / passed
            if refused + unreachable > bounds[backend_id]:
                yield backend_id, _in_words(refused, unreachable)


def _in_words(refused: float, unreachable: float) -> str:
    parts = [f"{refused:.0f} clients' connections a second refused"] if refused else []
    parts += [f"{unreachable:.0f} ICMP errors a second"] if unreachable else []
    return "; ".join(parts)
