# SPDX-License-Identifier: Apache-2.0
"""Which control methods a gateway by itself offers. A cluster adds its own."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from lb.control import Caller
from lb.events import Event
from lb.gateway import Gateway
from lb.methods import backends, configuration, state
from lb.methods.params import Params


def register(gateway: Gateway, detach: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Offers the methods on the daemon's control socket. `detach` ends the daemon and takes the packet path out."""
    offered: dict[str, Callable[[Gateway, Params, Caller], Any]] = {
        "status": state.status,
        "services": state.services,
        "backends": state.backends,
        "events": state.events,
        "metrics": state.metrics,
        "config.get": configuration.get,
        "config.diff": configuration.difference,
        "config.apply": configuration.apply_request,
        "backend.drain": backends.drain,
        "backend.undrain": backends.undrain,
        "backend.weight": backends.weight,
        "health.targets": backends.targets,
        "health.report": backends.report,
        "detach": partial(_detach, detach),
    }
    for name, method in offered.items():
        gateway.control.register(name, _bound(gateway, method))


def _bound(gateway: Gateway, method: Callable[[Gateway, Params, Caller], Any]) -> Any:
    async def handle(params: Params, caller: Caller) -> Any:
        result = method(gateway, params, caller)
        return await result if asyncio.iscoroutine(result) else result

    return handle


async def _detach(
    detach: Callable[[], Coroutine[Any, Any, None]], gateway: Gateway, _params: Params, caller: Caller
) -> dict[str, Any]:
    gateway.report(
        Event("engine.detached", "the packet path is taken off all interfaces", who=caller.who, severity="warning")
    )
    gateway.spawn(detach(), "detach")
    return {"interfaces": [attached.name for attached in gateway.attached]}
