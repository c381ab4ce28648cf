# SPDX-License-Identifier: Apache-2.0
"""From one configuration to the next: identities that stay, the version that counts, and the difference in words.

Identities travel in replicated connection records, so they must mean the same on every gateway and for as long as a
record may live. They are therefore part of the configuration, assigned once when it is applied, and an identity that
became free is used again only after all others were.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from lb.configuration.model import (
    BACKEND_COUNT_MAX,
    SERVICE_COUNT_MAX,
    Backend,
    ClusterConfig,
    Routed,
    Service,
    Vip,
)

ChangeKind = Literal["add", "remove", "change"]


def _random_seed() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: `path` names the thing (`service[web].backend[b1].weight`), the values are plain."""

    kind: ChangeKind
    path: str
    before: Any
    after: Any
    text: str


class IdentitiesExhausted(ValueError):
    """More services or backends than the packet engine has identities for."""


def succeed(old: ClusterConfig, new: ClusterConfig, fresh_seed: Callable[[], str] = _random_seed) -> ClusterConfig:
    """`new` as the successor of `old`: next version, and identities kept for what stays the same.

    A service keeps its identity as long as its name, a backend as long as its service, name, address and port:
    connections go to an address, so a backend that moves to another one is another backend. The hash seed is drawn
    once in a cluster's life. Raises IdentitiesExhausted.
    """
    services, routed, next_service_id = _with_service_ids(old, new)
    known = {_backend_key(s, b): b.id for s in old.services for b in s.backends}
    take = _Taker(set(known.values()), old.next_backend_id, BACKEND_COUNT_MAX, "backends")
    placed = tuple(
        replace(s, backends=tuple(replace(b, id=known.get(_backend_key(s, b)) or take()) for b in s.backends))
        for s in services
    )
    return replace(
        new,
        services=placed,
        routed=routed,
        hash_seed=old.hash_seed or fresh_seed(),
        version=old.version + 1,
        next_service_id=next_service_id,
        next_backend_id=take.next_id,
    )


def _with_service_ids(old: ClusterConfig, new: ClusterConfig) -> tuple[tuple[Service, ...], Routed | None, int]:
    known = {service.name: service.id for service in old.services}
    used = set(known.values()) | ({old.routed.id} if old.routed else set())
    take = _Taker(used, old.next_service_id, SERVICE_COUNT_MAX, "services")
    services = tuple(replace(service, id=known.get(service.name) or take()) for service in new.services)
    routed = new.routed
    if routed is not None:
        routed = replace(routed, id=old.routed.id if old.routed else take())
    return services, routed, take.next_id


def _backend_key(service: Service, backend: Backend) -> tuple[str, str, str, int]:
    return service.name, backend.name, backend.address, service.port_of(backend)


class _Taker:
    """Hands out identities 1..`highest` round robin, leaving out those in use before the change.

    Those just freed count as in use: records about them may still be on their way.
    """

    def __init__(self, used: set[int], first: int, highest: int, what: str) -> None:
        self.used, self.next_id, self.highest, self.what = used, first, highest, what

    def __call__(self) -> int:
        for step in range(self.highest):
            candidate = (self.next_id - 1 + step) % self.highest + 1
            if candidate not in self.used:
                self.used.add(candidate)
                self.next_id = candidate % self.highest + 1
                return candidate
        raise IdentitiesExhausted(
            f"no identity is free for further {self.what}: at most {self.highest}, counting those just removed"
        )


def diff(old: ClusterConfig, new: ClusterConfig) -> list[Change]:
    """What changes from `old` to `new` in the operator's terms (version and identities left out), in file order."""
    changes: list[Change] = []
    changes += _diff_tables("vip", old.vips, new.vips, lambda vip: vip.host, ())
    changes += _diff_services(old.services, new.services)
    changes += _diff_tables("routed", _as_table(old.routed), _as_table(new.routed), lambda _: "all", ())
    changes += _diff_fields("policy", old.policy, new.policy, ())
    changes += _diff_fields("timeouts", old.timeouts, new.timeouts, ())
    return changes


def _as_table(routed: Routed | None) -> tuple[Routed, ...]:
    return () if routed is None else (routed,)


def _diff_services(old: tuple[Service, ...], new: tuple[Service, ...]) -> Iterator[Change]:
    yield from _diff_tables("service", old, new, lambda service: service.name, ("backends",))
    before = {service.name: service for service in old}
    for service in new:
        backends = before[service.name].backends if service.name in before else ()
        yield from _diff_tables(
            f"service[{service.name}].backend", backends, service.backends, lambda backend: backend.name, ()
        )


def _diff_tables(
    path: str, old: Iterable[Any], new: Iterable[Any], key: Callable[[Any], str], skipped: tuple[str, ...]
) -> Iterator[Change]:
    before: Mapping[str, Any] = {key(item): item for item in old}
    after: Mapping[str, Any] = {key(item): item for item in new}
    for name in before:
        if name not in after:
            yield Change(
                "remove", f"{path}[{name}]", summary(before[name]), None, f"- {path}[{name}] {summary(before[name])}"
            )
    for name, item in after.items():
        if name not in before:
            yield Change("add", f"{path}[{name}]", None, summary(item), f"+ {path}[{name}] {summary(item)}")
        else:
            yield from _diff_fields(f"{path}[{name}]", before[name], item, skipped)


def _diff_fields(path: str, old: Any, new: Any, skipped: tuple[str, ...]) -> Iterator[Change]:
    for item in fields(new):
        if item.metadata.get("internal") or item.name in skipped:
            continue
        before, after = _shown(getattr(old, item.name)), _shown(getattr(new, item.name))
        if before != after:
            where = f"{path}.{item.name}"
            yield Change("change", where, before, after, f"~ {where}: {before} → {after}")


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return summary(value)


def summary(item: Any) -> str:
    """One line about a thing that appears or disappears as a whole."""
    if isinstance(item, Vip):
        return f"{item.address} announced as a route" if item.is_routed else f"{item.address} on {item.segment}"
    if isinstance(item, Service):
        port = item.port or "any"
        return f"{item.protocol} {item.address} port {port}, {item.forward}, {item.scheduler}"
    if isinstance(item, Backend):
        drained = ", drained" if item.drain else ""
        return f"{item.address} port {item.port or 'as the service'}, weight {item.weight}{drained}"
    if isinstance(item, Routed):
        return f"all connections, replicate {item.replicate}"
    return ", ".join(
        f"{part.name}={getattr(item, part.name)}" for part in fields(item) if getattr(item, part.name) != part.default
    )
