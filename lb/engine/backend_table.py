# SPDX-License-Identifier: Apache-2.0
"""Which backend a hash value leads to: pure functions from backends to lookup tables.

Maglev follows D. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section
3.4: each backend has a permutation of the slots, and the backends take turns in claiming their first slot that is
still free. Here:

- Weights: the turns of a backend of weight w come at times (k + 1/2) / w, so that it has its share of turns in every
  stretch of the filling, and the turns of the others keep their order when one backend appears or goes.
- The steps of a permutation that find their slot taken, ten in eleven, are skipped by array operations over stretches
  of it. The result is that of going step by step.
- Permutations come from BLAKE2b of the backend's key, so that every gateway computes the same table.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLOT_COUNT = 65537
NO_TARGET = 0
LOOK_AHEAD = 128
STRIDE = 1024
# Before each table: more than a twentieth of the time that making it takes.
REST_S = 0.005

Ids = NDArray[np.uint32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """A target that may receive new connections: `id` goes into the table, `key` decides its place in it."""

    id: int
    key: str
    weight: int


def maglev(choices: Sequence[Choice], slot_count: int = SLOT_COUNT) -> Ids:
    """The table: `slot_count` (a prime) target ids, NO_TARGET throughout when there is nobody to choose.

    The order of `choices` does not matter. Targets of weight 0 get no slot.
    """
    usable = sorted((choice for choice in choices if choice.weight > 0), key=lambda choice: choice.key)
    if not usable:
        return np.full(slot_count, NO_TARGET, np.uint32)
    ids = np.array([choice.id for choice in usable], np.uint32)
    if len(usable) == 1:
        return np.full(slot_count, ids[0], np.uint32)
    owners = _fill(_permutations([choice.key for choice in usable], slot_count), _turns(usable, slot_count), slot_count)
    return ids[owners]


def round_robin(choices: Sequence[Choice], length_max: int) -> Ids:
    """The order in which targets take new connections, weights spread evenly (smooth weighted round robin).

    At most `length_max` entries: weights are scaled down to fit, a target of non-zero weight keeping at least one
    entry as long as there is room for it.
    """
    usable = sorted((choice for choice in choices if choice.weight > 0), key=lambda choice: choice.key)[:length_max]
    if not usable:
        return np.empty(0, np.uint32)
    weights = np.array([choice.weight for choice in usable], np.int64)
    weights //= np.gcd.reduce(weights)
    if weights.sum() > length_max:
        weights = np.maximum(1, weights * length_max // weights.sum())
    while weights.sum() > length_max:
        weights[weights.argmax()] -= 1
    times = np.concatenate([(np.arange(weight) + 0.5) / weight for weight in weights])
    order = np.argsort(times, kind="stable")
    ids = np.array([choice.id for choice in usable], np.uint32)
    return np.repeat(ids, weights)[order]


def _permutations(keys: Sequence[str], slot_count: int) -> tuple[Indices, Indices]:
    """Offset and skip of each key's permutation: position j is slot (offset + j × skip) mod slot_count."""
    digests = [hashlib.blake2b(key.encode(), digest_size=16, person=b"rainlb-maglev").digest() for key in keys]
    words = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    return (words[:, 0] % slot_count).astype(np.int64), (words[:, 1] % (slot_count - 1) + 1).astype(np.int64)


def _turns(choices: Sequence[Choice], slot_count: int) -> Indices:
    """Whose turn it is, `slot_count` times."""
    weights = np.array([choice.weight for choice in choices], np.float64)
    quotas = np.minimum(np.ceil(slot_count * weights / weights.sum()).astype(np.int64) + 1, slot_count)
    owners = np.repeat(np.arange(len(choices)), quotas)
    ordinals = np.arange(quotas.sum()) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    order = np.lexsort((owners, (ordinals + 0.5) / weights[owners]))
    return owners[order[:slot_count]]


def _fill(permutations: tuple[Indices, Indices], turns: Indices, slot_count: int) -> Indices:
    offsets, skips = (part.tolist() for part in permutations)
    taken = bytearray(slot_count)
    taken_view = np.frombuffer(taken, np.uint8)
    owners = [0] * slot_count
    cursors = [0] * len(offsets)
    # Per backend, slots that were free when they were looked up, the next one last.
    queues: list[list[int]] = [[] for _ in offsets]
    order = turns.tolist()
    # Of hundreds of tables in a row, too: from real-time threads that never rest Linux takes the processor for 50 ms of
    # every second (kernel.sched_rt_runtime_us), the interpreter's lock in their hands.
    time.sleep(REST_S)
    for begin in range(0, slot_count, STRIDE):
        # A few milliseconds of a worker thread would be long for those who wait for the processor, or for the
        # interpreter's lock: the event loop does.
        os.sched_yield()
        for done, backend in enumerate(order[begin : begin + STRIDE], begin):
            queue = queues[backend]
            while True:
                while not queue:
                    stretch = LOOK_AHEAD * slot_count // (slot_count - done)
                    positions = np.arange(cursors[backend], min(cursors[backend] + stretch, slot_count))
                    cursors[backend] += stretch
                    slots = (offsets[backend] + positions * skips[backend]) % slot_count
                    queue = queues[backend] = slots[taken_view[slots] == 0][::-1].tolist()
                slot = queue.pop()
                if not taken[slot]:
                    break
            taken[slot] = 1
            owners[slot] = backend
    return np.array(owners, np.int64)
