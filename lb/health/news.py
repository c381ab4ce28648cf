# SPDX-License-Identifier: Apache-2.0
"""What of the backends' health is worth an event."""

from collections.abc import Mapping

from lb.configuration.model import ClusterConfig
from lb.events import Event
from lb.health.board import Condition


class HealthNews:
    """Remembers who was alive. Other changes of a condition (its words, the steps of a slow start) are not news."""

    def __init__(self) -> None:
        self._alive: dict[int, bool] = {}

    def take(self, config: ClusterConfig, changed: Mapping[int, Condition]) -> list[Event]:
        """The events that changed conditions amount to, by backend id; backends that are gone are forgotten."""
        names = {backend.id: f"{s.name}/{backend.name}" for s in config.services for backend in s.backends}
        events = []
        for backend_id, condition in changed.items():
            if condition.alive != self._alive.get(backend_id, True):
                self._alive[backend_id] = condition.alive
                events.append(_event(names.get(backend_id, str(backend_id)), condition))
        self._alive = {each: alive for each, alive in self._alive.items() if each in names}
        return events


def _event(name: str, condition: Condition) -> Event:
    what, severity = ("alive", "info") if condition.alive else ("dead", "warning")
    return Event(f"backend.{what}", f"backend {name} is {what}: {condition.detail}", subject=name, severity=severity)
