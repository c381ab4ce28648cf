# SPDX-License-Identifier: Apache-2.0
"""What the handlers work with: the way to lbd, the way to the pinned maps, the audit log, the live stream."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from lb.api.access import Identity, Token
from lb.api.audit import AuditLog
from lb.api.cluster_traffic import ClusterTraffic
from lb.api.datapath import DataPath
from lb.api.hub import Hub
from lb.api.sampler import Sampler
from lb.api.settings import Settings
from lb.control import ControlError
from lb.control.client import CHANGE_TIMEOUT_S, READ_TIMEOUT_S, ControlClient

log = logging.getLogger("lb.api")


@dataclass
class Gateway:
    """The parts of a running API process."""

    settings: Settings
    control: ControlClient
    datapath: DataPath
    sampler: Sampler
    audit: AuditLog
    tokens: list[Token] = field(default_factory=list)
    hub: Hub = field(init=False)
    everywhere: ClusterTraffic = field(init=False)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.everywhere = ClusterTraffic(self.control)

    async def ask(self, method: str, **params: Any) -> Any:
        """Read something from lbd. Raises ControlError."""
        return await self.control.call(method, params, timeout_s=READ_TIMEOUT_S)

    async def change(self, identity: Identity, method: str, **params: Any) -> Any:
        """Have lbd change something; what comes of it is in the audit log before the caller hears it."""
        begin = time.monotonic()
        outcome = "done"
        try:
            return await self.control.call(method, params, caller=identity.as_caller(), timeout_s=CHANGE_TIMEOUT_S)
        except ControlError as problem:
            outcome = f"{problem.code}: {problem.message}"
            raise
        except asyncio.CancelledError:
            outcome = "asked for; the caller went away before the answer"
            raise
        finally:
            took_ms = (time.monotonic() - begin) * 1000
            await asyncio.shield(self.record(identity, method, params, outcome, took_ms))

    async def record(
        self, identity: Identity, action: str, params: dict[str, Any], outcome: str, took_ms: float
    ) -> None:
        """A line of the audit log. Where it cannot be written, the journal has it: what was done is done."""
        try:
            await asyncio.to_thread(self.audit.write, identity, action, params, outcome, took_ms)
        except OSError as error:
            text = "audit log %s cannot be written (%s): make room; it would say: %s by %s from %s: %s"
            log.error(text, self.audit.path, error.strerror, action, identity.who, identity.origin, outcome)
