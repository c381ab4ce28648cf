# SPDX-License-Identifier: Apache-2.0
"""Measures the event loop."""

import asyncio
from collections import deque

from lb.gateway import Gateway

LAG_PROBE_SECONDS = 0.2
LAG_WINDOW = 50


class LoopLag:
    """How late the event loop runs what is due: the worst of the last ten seconds, and a histogram."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._recent: deque[float] = deque(maxlen=LAG_WINDOW)
        self._histogram = gateway.metrics.histogram("loop_lag_seconds", "Delay of the event loop of lbd.")

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PROBE_SECONDS
            await asyncio.sleep(LAG_PROBE_SECONDS)
            late = max(0.0, loop.time() - due)
            self._recent.append(late)
            self._gateway.lag_s = max(self._recent)
            self._histogram.observe(late)
