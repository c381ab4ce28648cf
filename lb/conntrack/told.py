# SPDX-License-Identifier: Apache-2.0
"""What the gateways have told each other of the kernel's entries, so that a survey tells only what is missing.

An entry's timeout starts anew with each packet, and no event says so. Where packets pass, the entry lives; peers only
know how long it would have lived when they were last told. Likewise an event that was lost leaves peers with an old
state. So a survey compares the kernel's table with this one. It also answers which entries live here without a word
about who owns what: after a take-over the survivor's are those whose time has moved on.
"""

import threading

import numpy as np
import numpy.typing as npt

from lb.connections.taker import Known
from lb.conntrack.entries import Entries, Hasher, Hashes, Mask, summaries

COMPACT_AFTER = 1 << 16
# Below this it is not worth a message.
LEEWAY_S = 5

_ROW = np.dtype([("hash", "u8"), ("summary", "u4"), ("until_s", "u4")])
Rows = npt.NDArray[np.void]


class Told:
    """A table by hash of key: state and end of life, as peers know them. For several threads."""

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._lock = threading.Lock()
        self._sorted: Rows = np.zeros(0, _ROW)
        self._seen: Mask = np.zeros(0, np.bool_)
        self._fresh: list[Rows] = []
        self._fresh_count = 0
        self._surveying = False
        self._newer: Known | None = None

    def __len__(self) -> int:
        return len(self._sorted) + self._fresh_count

    def begin_transfer(self) -> None:
        """A table is going to come that may be older than what is noted from now on."""
        self._newer = Known()

    def end_transfer(self) -> None:
        """It has come, or will not."""
        self._newer = None

    def older(self, hashes: Hashes) -> Mask:
        """Which transferred entries are older than what has been noted meanwhile."""
        newer = self._newer
        return np.zeros(len(hashes), np.bool_) if newer is None else newer.contains(hashes)

    def note(self, entries: Entries, hashes: Hashes, now_s: int, *, transferred: bool = False) -> None:
        """Peers have been told of these entries, or have told of them."""
        newer = self._newer
        if newer is not None and not transferred:
            newer.add(hashes)
        rows = np.zeros(len(entries), _ROW)
        rows["hash"], rows["summary"] = hashes, summaries(entries)
        rows["until_s"] = entries["timeout_s"] + np.uint32(now_s)
        with self._lock:
            self._fresh.append(rows)
            self._fresh_count += len(rows)
            if not self._surveying and self._fresh_count > COMPACT_AFTER + len(self._sorted) // 4:
                self._compact()

    def clear(self) -> None:
        """Peers know nothing, as far as this gateway knows."""
        with self._lock:
            self._sorted, self._seen = np.zeros(0, _ROW), np.zeros(0, np.bool_)
            self._fresh, self._fresh_count = [], 0

    def begin_survey(self) -> None:
        """The kernel's table is going to be compared, from its beginning to its end."""
        with self._lock:
            self._compact()
            self._seen = np.zeros(len(self._sorted), np.bool_)
            self._surveying = True

    def news(self, entries: Entries, now_s: int) -> Mask:
        """Which of these entries of the table peers do not know as they are."""
        hashes = self._hasher(entries)
        with self._lock:
            known = self._sorted
            if not len(known):
                return np.ones(len(entries), np.bool_)
            places = np.minimum(np.searchsorted(known["hash"], hashes), len(known) - 1)
            rows = known[places]
            same: Mask = rows["hash"] == hashes
            if len(self._seen) == len(known):
                self._seen[places[same]] = True
        same &= rows["summary"] == summaries(entries)
        left = rows["until_s"].astype(np.int64) - now_s
        same &= 2 * (left + LEEWAY_S) >= entries["timeout_s"]
        return ~same

    def end_survey(self) -> None:
        """Forget what is not in the kernel's table any more; what was noted meanwhile stays."""
        with self._lock:
            if len(self._seen) == len(self._sorted):
                self._sorted = self._sorted[self._seen]
            self._surveying = False
            self._compact()

    def abandon_survey(self) -> None:
        """The survey came to no end: nothing is forgotten."""
        with self._lock:
            self._surveying = False

    def _compact(self) -> None:
        rows = np.concatenate([self._sorted, *self._fresh])
        self._fresh, self._fresh_count = [], 0
        # Stable: of equal hashes the latest comes last.
        rows = rows[np.argsort(rows["hash"], kind="stable")]
        last = np.ones(len(rows), np.bool_)
        last[:-1] = rows["hash"][1:] != rows["hash"][:-1]
        self._sorted = rows[last]
