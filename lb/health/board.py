# SPDX-License-Identifier: Apache-2.0
"""lbd's side of backend health: publishes what this gateway's checks found and combines what all gateways found.

Reports and slow-start steps are shared data, so every gateway computes the same conditions from the same values, and
so the same lookup tables:

- `health/<backend id>/<node id>`: the last change one checker saw (written by that checker);
- `slow-start/<backend id>`: the share of its weight, in tenths, that a returned backend gets (written by the member
  with the lowest id).

The board does no I/O: `share` writes an item, `shared` is told of written items in stream order, `tick` is called
about once a second.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgpack

from ebpf.probe_path import mark_of
from lb.configuration.model import Backend, ClusterConfig, Service
from lb.configuration.plain import to_plain
from lb.health.agreement import Report, checkers, slow_start_weight, verdict

REPORT_PREFIX = "health/"
SLOW_START_PREFIX = "slow-start/"
FULL = 10
DETAIL_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True)
class Condition:
    """What the cluster agrees on about a backend. `since` is Unix seconds, 0 before the first report."""

    alive: bool
    tenths: int
    detail: str
    since: float

    def weight(self, configured: int) -> int:
        """The weight a lookup table uses: none while dead, part of it during slow start."""
        return slow_start_weight(configured, self.tenths - 1, FULL - 1) if self.alive else 0


UNCHECKED = Condition(True, FULL, "not checked", 0.0)


def reaches_vip(service: Service, backend: Backend) -> bool:
    """Whether checks of a backend are to reach the VIP on it: where clients' packets arrive with that destination.

    Not where a tunnel changes the IP version (a probe's socket has the backend's), nor for programs, which open sockets
    of their own.
    """
    health = service.health
    return (
        health is not None
        and health.reach == "vip"
        and health.kind != "script"
        and service.forward in ("dsr", "tunnel")
        and service.ip.version == backend.ip.version
    )


class HealthBoard:
    """Conditions of all backends. `changed` is called with those that became different."""

    def __init__(
        self,
        node_id: int,
        share: Callable[[str, bytes | None], None],
        changed: Callable[[Mapping[int, Condition]], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._node_id = node_id
        self._share = share
        self._changed = changed
        self._clock = clock
        self._members: tuple[int, ...] = (node_id,)
        self._checked: dict[int, tuple[Service, Backend]] = {}
        self._reports: dict[int, dict[int, Report]] = {}
        self._tenths: dict[int, int] = {}
        self._conditions: dict[int, Condition] = {}
        self.reaches_vips: bool | None = None
        self.malformed = 0

    def configure(self, config: ClusterConfig) -> None:
        """Take over a new configuration: backends that stay keep their condition."""
        self._checked = {b.id: (s, b) for s in config.services if s.health is not None for b in s.backends}
        self._reports = {key: value for key, value in self._reports.items() if key in self._checked}
        self._tenths = {key: value for key, value in self._tenths.items() if key in self._checked}
        self._conditions = {key: value for key, value in self._conditions.items() if key in self._checked}
        self._combine(self._checked)

    def members_changed(self, members: Iterable[int]) -> None:
        """A view was committed: other gateways check from now on."""
        self._members = tuple(sorted(members)) or (self._node_id,)
        self._combine(self._checked)

    @property
    def leads(self) -> bool:
        """Whether this gateway speaks for all about what they agree on: the member with the lowest id."""
        return self._node_id == self._members[0]

    def condition(self, backend_id: int) -> Condition:
        return self._conditions.get(backend_id, UNCHECKED)

    def conditions(self) -> dict[int, Condition]:
        return dict(self._conditions)

    def way_to_vips(self, ready: bool | None) -> None:
        """Whether checks can reach a VIP on one backend: True, False (they go to the backend's own address), or None
        while that is not known yet (they wait).
        """
        self.reaches_vips = ready

    def targets(self) -> list[dict[str, Any]]:
        """What this gateway is to check, as plain values for the health process."""
        return [
            {
                "backend_id": backend.id,
                "name": f"{service.name}/{backend.name}",
                "address": backend.address,
                "port": service.health.port or service.port_of(backend),
                "host": service.address,
                "check": to_plain(service.health),
                "mark": mark_of(backend.id) if self.reaches_vips and reaches_vip(service, backend) else 0,
            }
            for service, backend in self._checked.values()
            if service.health is not None
            and self._node_id in checkers(backend.id, self._members)
            and (self.reaches_vips is not None or not reaches_vip(service, backend))
        ]

    def report(self, findings: Iterable[Mapping[str, Any]]) -> None:
        """Findings of this gateway's health process. KeyError or TypeError for malformed ones: nothing is shared."""
        items = [
            (int(f["backend_id"]), Report(bool(f["alive"]), str(f["detail"])[:DETAIL_LENGTH_MAX], float(f["since"])))
            for f in findings
        ]
        for backend_id, report in items:
            if backend_id in self._checked and self._reports.get(backend_id, {}).get(self._node_id) != report:
                packed = msgpack.packb([report.alive, report.detail, report.since])
                self._share(f"{REPORT_PREFIX}{backend_id}/{self._node_id}", packed)

    def shared(self, key: str, value: bytes | None) -> None:
        """A shared item under one of the two prefixes was written, or removed (None)."""
        try:
            touched = self._take_slow_start(key, value) if key.startswith(SLOW_START_PREFIX) else self._take(key, value)
        except (ValueError, TypeError, msgpack.UnpackException):
            self.malformed += 1
            return
        if touched in self._checked:
            self._combine([touched])

    def tick(self) -> None:
        """Advance slow starts (the member with the lowest id does it for all)."""
        if not self.leads:
            return
        for backend_id, (service, _) in self._checked.items():
            condition = self.condition(backend_id)
            if service.health is None or not condition.alive or condition.tenths == FULL:
                continue
            elapsed = self._clock() - condition.since
            wanted = slow_start_weight(FULL, elapsed, service.health.slow_start_s)
            if wanted > condition.tenths:
                self._share(f"{SLOW_START_PREFIX}{backend_id}", msgpack.packb(wanted))

    def _take(self, key: str, value: bytes | None) -> int:
        backend_id, node_id = (int(part) for part in key.removeprefix(REPORT_PREFIX).split("/"))
        reports = self._reports.setdefault(backend_id, {})
        if value is None:
            reports.pop(node_id, None)
        else:
            alive, detail, since = msgpack.unpackb(value)
            reports[node_id] = Report(bool(alive), str(detail), float(since))
        return backend_id

    def _take_slow_start(self, key: str, value: bytes | None) -> int:
        backend_id = int(key.removeprefix(SLOW_START_PREFIX))
        self._tenths[backend_id] = FULL if value is None else min(FULL, max(1, int(msgpack.unpackb(value))))
        return backend_id

    def _combine(self, backend_ids: Iterable[int]) -> None:
        fresh = {backend_id: self._condition_of(backend_id) for backend_id in backend_ids}
        different = {key: value for key, value in fresh.items() if self._conditions.get(key) != value}
        self._conditions.update(different)
        if different:
            self._changed(different)

    def _condition_of(self, backend_id: int) -> Condition:
        service, _ = self._checked[backend_id]
        before = self._conditions.get(backend_id, UNCHECKED)
        checking = checkers(backend_id, self._members)
        reports = self._reports.get(backend_id, {})
        alive = verdict(reports, checking)
        telling = [r for r in reports.values() if r.alive == alive]
        newest = max(telling, key=lambda r: r.since, default=None)
        if alive and not before.alive and service.health is not None and service.health.slow_start_s:
            self._tenths[backend_id] = 1
        tenths = self._tenths.get(backend_id, FULL)
        if newest is None:
            return replace(before, alive=alive, tenths=tenths)
        since = newest.since if alive != before.alive or before.since == 0 else before.since
        return Condition(alive, tenths, newest.detail, since)
