# SPDX-License-Identifier: Apache-2.0
"""Single backends: drained and weighted by operators, found alive or dead by the health process."""

from dataclasses import replace
from typing import Any

from lb.control import Caller, ControlError
from lb.gateway import Gateway
from lb.methods.configuration import apply
from lb.methods.params import Params, int_param, text_param


async def drain(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    """`backend.drain`: no new connections."""
    return await _change_backend(gateway, params, caller, drain=True)


async def undrain(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    """`backend.undrain`: new connections again."""
    return await _change_backend(gateway, params, caller, drain=False)


async def weight(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    """`backend.weight`: its share of new connections."""
    return await _change_backend(gateway, params, caller, weight=int_param(params, "weight", 0, 65535))


async def _change_backend(gateway: Gateway, params: Params, caller: Caller, **changes: Any) -> dict[str, Any]:
    config = gateway.store.current
    service = config.service(text_param(params, "service"))
    if service is None:
        known = ", ".join(each.name for each in config.services) or "none"
        raise ControlError(
            "not_found", f"no service {params['service']!r}", field="service", remedy=f"there are: {known}"
        )
    backend = service.backend(text_param(params, "backend"))
    if backend is None:
        known = ", ".join(each.name for each in service.backends) or "none"
        message = f"service {service.name} has no backend {params['backend']!r}"
        raise ControlError("not_found", message, field="backend", remedy=f"there are: {known}")
    backends = tuple(replace(each, **changes) if each is backend else each for each in service.backends)
    services = tuple(replace(each, backends=backends) if each is service else each for each in config.services)
    return await apply(gateway, replace(config, services=services), config.version, caller)


def targets(gateway: Gateway, _params: Params, _caller: Caller) -> dict[str, Any]:
    """`health.targets`: what the health process is to check."""
    return {"targets": gateway.board.targets()}


def report(gateway: Gateway, params: Params, _caller: Caller) -> dict[str, Any]:
    """`health.report`: what it found."""
    findings = params.get("findings")
    if not isinstance(findings, list):
        raise ControlError("bad_request", "findings must be a list", field="findings")
    try:
        gateway.board.report(findings)
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError("bad_request", f"a finding is malformed: {error}", field="findings") from None
    return {}
