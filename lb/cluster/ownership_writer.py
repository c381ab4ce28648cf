# SPDX-License-Identifier: Apache-2.0
"""Writes decisions about VIPs into the shared data: all of them or none, and only over what they were made from."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from lb.cluster.ownership import HOLDING_PREFIX, Write, pack
from lb.cluster.state import ClusterState
from sync.data import OutcomeUnknown, RequestRefused, VersionConflict
from sync.driver import Ring

# A ring that takes nothing now is not asked again sooner: whoever decides would decide the same, at once and for ever.
PAUSE_S = 0.05
log = logging.getLogger("lb.cluster")


class OwnershipWriter:
    """One transaction at a time; `done()` is called after each, whatever became of it."""

    def __init__(self, ring: Ring, state: ClusterState, done: Callable[[], None]) -> None:
        self._ring = ring
        self._state = state
        self._done = done
        self.busy = False

    def write(self, writes: list[Write]) -> Coroutine[Any, Any, None]:
        """To be awaited by a task; busy from now on until it is done. Not to be called while `busy`."""
        self.busy = True
        return self._write(writes)

    async def _write(self, writes: list[Write]) -> None:
        try:
            await self._transact(writes)
        except VersionConflict:
            pass  # somebody was first; what they made of it is decided on anew
        except OutcomeUnknown as error:
            log.info("ownership not written: %s", error)
        except RequestRefused as error:
            log.info("ownership not written: %s", error)
            await asyncio.sleep(PAUSE_S)
        finally:
            self.busy = False
            self._done()

    async def _transact(self, writes: list[Write]) -> None:
        async with self._ring.transaction() as change:
            for write in writes:
                key = HOLDING_PREFIX + write.address
                change.require(key, self._state.versions.get(write.address, 0) if write.before is not None else 0)
                if write.after is None:
                    del change[key]
                else:
                    change[key] = pack(write.after)
