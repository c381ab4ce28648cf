# SPDX-License-Identifier: Apache-2.0
"""What a gateway says of itself: its state, services, backends, events and metrics."""

from typing import Any

from lb import __version__
from lb.configuration.model import Backend, Service
from lb.control import Caller
from lb.events import to_plain
from lb.gateway import Gateway
from lb.methods.params import Params, int_param

EVENT_LIMIT_MAX = 10_000


def status(gateway: Gateway, _params: Params, _caller: Caller) -> dict[str, Any]:
    """`status`: the gateway as a whole."""
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
        "uptime_s": gateway.uptime_s,
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


def services(gateway: Gateway, _params: Params, _caller: Caller) -> list[dict[str, Any]]:
    """`services`: one row a service."""
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


def backends(gateway: Gateway, _params: Params, _caller: Caller) -> list[dict[str, Any]]:
    """`backends`: one row a backend of each service."""
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


def events(gateway: Gateway, params: Params, _caller: Caller) -> list[dict[str, Any]]:
    """`events`: the latest, or those after an id."""
    after = int_param(params, "after", 0, 1 << 62, 0)
    limit = int_param(params, "limit", 1, EVENT_LIMIT_MAX, 100)
    return [to_plain(event) for event in gateway.journal.after(after, limit)]


def metrics(gateway: Gateway, _params: Params, _caller: Caller) -> Any:
    """`metrics`: all of the daemon's own."""
    return gateway.metrics.as_plain()
