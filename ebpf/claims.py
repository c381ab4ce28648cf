# SPDX-License-Identifier: Apache-2.0
"""Endpoints as bits, so that the packet path sees at once that a packet is nobody's (ebpf/match_service.h reads them).

A bit may stand for several endpoints and says no more than "perhaps"; an endpoint in a map without its bit would be
overlooked, so bits come before entries and go after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ebpf import layout
from ebpf.map_access import Array, Map, packed_array

# The maps whose keys are endpoints that packets are matched with.
CLAIMANTS = ("services", "nat_return")


@dataclass
class ClaimingMap(Map):
    """A map whose keys are endpoints that packets are matched with: each has its bit in ``claims`` while it is there.

    The bit comes before the entry and goes after it, so that the path never overlooks one. One writer at a time.
    """

    claims: Claims | None = None

    def set(self, key: npt.ArrayLike, value: npt.ArrayLike) -> None:
        """Claims and writes one entry."""
        assert self.claims is not None
        self.claims.add(packed_array(key, self.spec.key))
        super().set(key, value)

    def update(self, keys: npt.ArrayLike, values: npt.ArrayLike) -> int:
        """Claims and writes many entries."""
        assert self.claims is not None
        self.claims.add(packed_array(keys, self.spec.key))
        return super().update(keys, values)

    def delete(self, keys: npt.ArrayLike) -> int:
        """Deletes entries and takes back the bits that no other needs."""
        assert self.claims is not None
        deleted = super().delete(keys)
        self.claims.rebuild()
        return deleted


class Claims:
    """The bits of ``claims``, as many words of 64."""

    def __init__(self, words: Map, claimants: Sequence[Map]) -> None:
        self._words, self._claimants = words, claimants

    def add(self, endpoints: Array) -> None:
        """Sets the bits of packed endpoints."""
        self._write(self._words.dump()[1] | _words_of(endpoints))

    def rebuild(self) -> None:
        """Exactly the bits of what the claimants hold."""
        held = [_words_of(claimant.dump()[0]) for claimant in self._claimants]
        self._write(np.bitwise_or.reduce(held))

    def _write(self, words: Array) -> None:
        self._words.update(np.arange(layout.CLAIM_WORDS, dtype=np.uint32), words)


def _words_of(endpoints: Array) -> Array:
    bits = np.zeros(1 << layout.CLAIM_BITS_LOG2, np.uint8)
    bits[layout.claim_bits(endpoints)] = 1
    return np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)
