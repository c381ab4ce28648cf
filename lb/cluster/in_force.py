# SPDX-License-Identifier: Apache-2.0
"""Which configuration this gateway's packet path serves: from the shared one to the kernel's maps it takes a while.

An address that is announced before the path knows its services would have its clients refused by the kernel. So new
addresses are taken, a joining gateway is ready, and the others are told the version, only when the path has it.
"""

import asyncio
import contextlib
from collections.abc import Callable

from lb.cluster.ownership import NodeFacts
from lb.cluster.shared_config import SharedStore
from lb.cluster.state import ClusterState
from lb.configuration.model import ClusterConfig
from lb.engine.driver import EngineDriver
from lb.engine.packet_engine import EngineError

# After the path has refused a configuration; the driver goes on trying by itself.
RETRY_S = 1.0
# A gateway that takes longer is named to the operator.
EVERYWHERE_TIMEOUT_S = 5.0


class InForce:
    """Follows the store. `changed(config)` is called when the packet path has the store's present configuration."""

    def __init__(
        self, store: SharedStore, driver: EngineDriver, state: ClusterState, changed: Callable[[ClusterConfig], None]
    ) -> None:
        self._store = store
        self._driver = driver
        self._state = state
        self._changed = changed
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        # The daemon has brought what was on disk to the packet path before anything else.
        self.config = store.current

    @property
    def is_current(self) -> bool:
        """Whether what the cluster has is known, and the path has it."""
        known = self._state.complete and not self._store.is_settling
        return known and self.config is self._store.current

    def follow(self) -> None:
        """The store has another configuration, which the driver was told of."""
        self._wake.set()

    async def run(self) -> None:
        """Never returns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            config = self._store.current
            try:
                await self._driver.settled()
            except EngineError:
                await asyncio.sleep(RETRY_S)
                self._wake.set()
                continue
            self.config = config
            self._changed(config)

    def news(self) -> None:
        """What the members tell of themselves may have changed."""
        self._news.set()

    async def everywhere(self, version: int) -> list[str]:
        """Wait until every member's packet path has this version; the names of those that do not in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERYWHERE_TIMEOUT_S):
                while self._without(version):
                    self._news.clear()
                    await self._news.wait()
        return self._without(version)

    def _without(self, version: int) -> list[str]:
        view, facts = self._state.view, self._state.facts
        members = view.members if view is not None else ()
        late = (node for node in members if facts.get(node, NodeFacts()).config_version < version)
        return [self._state.name(node) for node in late]
