# SPDX-License-Identifier: Apache-2.0
"""The control methods of a gateway by itself: state, configuration, backends. A cluster adds its own."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from lb import __version__
from lb.configuration import validate
from lb.configuration.advice import advice
from lb.configuration.change import Change, IdentitiesExhausted, diff
from lb.configuration.document import document, toml_text
from lb.configuration.model import Backend, ClusterConfig, Service
from lb.configuration.node import ConfigError
from lb.configuration.store import VersionConflict
from lb.control import Caller, ControlError
from lb.engine.packet_engine import EngineError
from lb.events import Event
from lb.events import to_plain as event_to_plain
from lb.gateway import Gateway

EVENT_LIMIT_MAX = 10_000
NEXT_HOPS_SECONDS = 0.3
CHANGES_IN_EVENT_MAX = 5
FORWARDING = {
    4: Path("/proc/sys/net/ipv4/ip_forward"),
    6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}
Params = dict[str, Any]


def register(gateway: Gateway, detach: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Offers the methods on the daemon's control socket. `detach` ends the daemon and takes the packet path out."""
    offered: dict[str, Callable[[Gateway, Params, Caller], Any]] = {
        "status": _status,
        "services": _services,
        "backends": _backends,
        "events": _events,
        "metrics": _metrics,
        "config.get": _config_get,
        "config.diff": _config_diff,
        "config.apply": _config_apply,
        "backend.drain": _backend_drain,
        "backend.undrain": _backend_undrain,
        "backend.weight": _backend_weight,
        "health.targets": _health_targets,
        "health.report": _health_report,
        "detach": partial(_detach, detach),
    }
    for name, method in offered.items():
        gateway.control.register(name, _bound(gateway, method))


def _bound(gateway: Gateway, method: Callable[[Gateway, Params, Caller], Any]) -> Any:
    async def handle(params: Params, caller: Caller) -> Any:
        result = method(gateway, params, caller)
        return await result if asyncio.iscoroutine(result) else result

    return handle


def text_param(params: Params, name: str) -> str:
    """A text parameter. Raises ControlError."""
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise ControlError("bad_request", f"parameter {name} must be a text", field=name)
    return value


def int_param(params: Params, name: str, lowest: int, highest: int, default: int | None = None) -> int:
    """A whole number within bounds. Raises ControlError."""
    value = params.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ControlError("bad_request", f"parameter {name} must be a number from {lowest} to {highest}", field=name)
    return value


# --- state -----------------------------------------------------------------------------------------------------------


def _status(gateway: Gateway, _params: Params, _caller: Caller) -> dict[str, Any]:
    config = gateway.store.current
    modes = {attached.name: attached.mode for attached in gateway.attached}
    return {
        "cluster": gateway.node.cluster,
        "node": gateway.node.node.name,
        "node_id": gateway.node.node.id,
        "version": __version__,
        "state": gateway.state,
        "reason": gateway.reason or None,
        "started_at": gateway.started_at,
        "uptime_s": time.time() - gateway.started_at,
        "config_version": config.version,
        "view": gateway.view(),
        "loop_lag_ms": gateway.lag_s * 1000,
        "interfaces": [
            {"name": each.name, "segment": each.segment, "xdp_mode": modes.get(each.name)}
            for each in gateway.node.interfaces
        ],
        "service_count": len(config.services),
        "backend_count": sum(len(service.backends) for service in config.services),
        "vip_count": len(config.vips),
        "engine_updates": gateway.driver.updates,
        "engine_failures": gateway.driver.failures,
        "connections": gateway.census.seen,
    }


def _services(gateway: Gateway, _params: Params, _caller: Caller) -> list[dict[str, Any]]:
    return [_service_row(gateway, service) for service in gateway.store.current.services]


def _service_row(gateway: Gateway, service: Service) -> dict[str, Any]:
    states = [backend_state(gateway, service, backend)[0] for backend in service.backends]
    return {
        "name": service.name,
        "id": service.id,
        "address": service.address,
        "port": service.port or "any",
        "protocol": service.protocol,
        "forward": service.forward,
        "scheduler": service.scheduler,
        "persistence_s": service.persistence_s,
        "replicate": service.replicate,
        "on_backend_death": service.on_backend_death,
        "backend_count": len(service.backends),
        "backends_up": states.count("up"),
    }


def _backends(gateway: Gateway, _params: Params, _caller: Caller) -> list[dict[str, Any]]:
    return [_backend_row(gateway, s, backend) for s in gateway.store.current.services for backend in s.backends]


def _backend_row(gateway: Gateway, service: Service, backend: Backend) -> dict[str, Any]:
    state, reason = backend_state(gateway, service, backend)
    condition = gateway.board.condition(backend.id)
    return {
        "service": service.name,
        "name": backend.name,
        "id": backend.id,
        "address": backend.address,
        "port": service.port_of(backend) or "any",
        "weight": backend.weight,
        "effective_weight": condition.weight(backend.weight),
        "connections_max": backend.connections_max,
        "state": state,
        "reason": reason,
        "drain": backend.drain,
        "alive": condition.alive,
        "tenths": condition.tenths,
        "detail": condition.detail,
        "since": condition.since,
    }


def backend_state(gateway: Gateway, service: Service, backend: Backend) -> tuple[str, str | None]:
    """up, down, draining or unresolved, and why."""
    condition = gateway.board.condition(backend.id)
    if not condition.alive:
        return "down", condition.detail
    problem = gateway.neighbours.problems.get(backend.id)
    if problem is not None:
        return "unresolved", problem
    if backend.drain or backend.weight == 0:
        return "draining", "drained" if backend.drain else "weight 0"
    return "up", None if service.health is None else condition.detail


def _events(gateway: Gateway, params: Params, _caller: Caller) -> list[dict[str, Any]]:
    after = int_param(params, "after", 0, 1 << 62, 0)
    limit = int_param(params, "limit", 1, EVENT_LIMIT_MAX, 100)
    return [event_to_plain(event) for event in gateway.journal.after(after, limit)]


def _metrics(gateway: Gateway, _params: Params, _caller: Caller) -> Any:
    return gateway.metrics.as_plain()


# --- configuration ---------------------------------------------------------------------------------------------------


def _config_get(gateway: Gateway, _params: Params, _caller: Caller) -> dict[str, Any]:
    config = gateway.store.current
    content = document(config)
    return {"version": config.version, "document": content, "text": toml_text(content)}


async def _config_diff(gateway: Gateway, params: Params, _caller: Caller) -> dict[str, Any]:
    wanted = await _validated(params)
    config = gateway.store.current
    return {"version": config.version, "changes": _plain(diff(config, wanted)), "warnings": warnings(gateway, wanted)}


async def _config_apply(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    version = params.get("if_version")
    if version is not None:
        version = int_param(params, "if_version", 0, 1 << 62)
    form = params.get("format", "toml")
    text, source = text_param(params, "text"), str(params.get("source") or "request")
    return await apply_text(gateway, text, form, source, version, caller)


async def apply_text(
    gateway: Gateway, text: str, form: str, source: str, version: int | None, caller: Caller
) -> dict[str, Any]:
    """Validates a cluster file and makes it the current configuration. Raises ConfigError or ControlError."""
    wanted = await _validated({"text": text, "format": form, "source": source})
    return await apply(gateway, wanted, version, caller)


async def _validated(params: Params) -> ClusterConfig:
    form = params.get("format", "toml")
    if form not in ("toml", "json"):
        raise ControlError("bad_request", f"unknown format {form!r}", field="format", remedy="toml or json")
    source = str(params.get("source") or "request")[:256]
    text = params.get("text")
    if not isinstance(text, str):
        raise ControlError("bad_request", "parameter text must be a text", field="text")
    try:
        return await asyncio.to_thread(validate.cluster_config, text, source, form)
    except ConfigError as error:
        first = error.problems[0]
        raise ControlError("invalid", str(error), field=first["path"] or None, remedy=_remedy(first)) from None


def _remedy(problem: dict[str, Any]) -> str | None:
    return f"allowed: {problem['allowed']}" if problem["allowed"] else None


async def apply(gateway: Gateway, wanted: ClusterConfig, version: int | None, caller: Caller) -> dict[str, Any]:
    """Makes a validated configuration the current one, and waits until the packet path has it. Raises ControlError."""
    old = gateway.store.current
    changes = diff(old, wanted)
    notes = warnings(gateway, wanted)
    if version is not None and version != old.version:
        raise _conflict(VersionConflict(version, old.version))
    if not changes and old.version:
        return {"version": old.version, "changes": [], "warnings": notes}
    try:
        new = await gateway.store.apply(wanted, version, caller)
        await gateway.driver.settled()
        # Who is told "applied" may send at once: neighbours answer in well under a millisecond, or are not there.
        await gateway.neighbours.settled(NEXT_HOPS_SECONDS)
        await gateway.driver.settled()
    except VersionConflict as error:
        raise _conflict(error) from None
    except IdentitiesExhausted as error:
        raise ControlError("invalid", str(error)) from None
    except OSError as error:
        remedy = f"see whether {gateway.node.state_dir} is writable and has room"
        raise ControlError("unavailable", f"the configuration cannot be kept: {error}", remedy=remedy) from None
    except EngineError as error:
        raise ControlError("unavailable", str(error), remedy="see `lbctl events` and the daemon's journal") from None
    gateway.report(
        Event("config.applied", _in_short(new.version, changes), subject=f"version {new.version}", who=caller.who)
    )
    return {"version": new.version, "changes": _plain(changes), "warnings": notes}


def _conflict(error: VersionConflict) -> ControlError:
    return ControlError(
        "version_mismatch", str(error), field="if_version", remedy="look at the difference again, then apply"
    )


def _in_short(version: int, changes: list[Change]) -> str:
    texts = [change.text for change in changes[:CHANGES_IN_EVENT_MAX]]
    if len(changes) > CHANGES_IN_EVENT_MAX:
        texts.append(f"and {len(changes) - CHANGES_IN_EVENT_MAX} more")
    return f"configuration {version}: {'; '.join(texts)}"


def _plain(changes: list[Change]) -> list[dict[str, Any]]:
    return [asdict(change) for change in changes]


def warnings(gateway: Gateway, config: ClusterConfig) -> list[str]:
    """What is allowed and probably not meant."""
    forwarding = {version: file.read_text().strip() != "0" for version, file in FORWARDING.items()}
    return advice(config, gateway.networks, forwarding)


# --- backends --------------------------------------------------------------------------------------------------------


async def _backend_drain(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    return await _change_backend(gateway, params, caller, drain=True)


async def _backend_undrain(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    return await _change_backend(gateway, params, caller, drain=False)


async def _backend_weight(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
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


# --- health and the end ----------------------------------------------------------------------------------------------


def _health_targets(gateway: Gateway, _params: Params, _caller: Caller) -> dict[str, Any]:
    return {"targets": gateway.board.targets()}


def _health_report(gateway: Gateway, params: Params, _caller: Caller) -> dict[str, Any]:
    findings = params.get("findings")
    if not isinstance(findings, list):
        raise ControlError("bad_request", "findings must be a list", field="findings")
    try:
        gateway.board.report(findings)
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError("bad_request", f"a finding is malformed: {error}", field="findings") from None
    return {}


async def _detach(
    detach: Callable[[], Coroutine[Any, Any, None]], gateway: Gateway, _params: Params, caller: Caller
) -> dict[str, Any]:
    gateway.report(
        Event("engine.detached", "the packet path is taken off all interfaces", who=caller.who, severity="warning")
    )
    gateway.spawn(detach(), "detach")
    return {"interfaces": [attached.name for attached in gateway.attached]}
