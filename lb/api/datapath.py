# SPDX-License-Identifier: Apache-2.0
"""What the API needs of the pinned maps, apart from how they are laid out: the border to the packet path.

Calls block (system calls, numpy) and are made in threads. They work without lbd: the maps outlive it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lb.api.problems import ApiProblem


@dataclass(frozen=True)
class Traffic:
    """Counters of one service or backend since the data path was loaded."""

    packets: int = 0
    bytes: int = 0
    connections_new: int = 0
    connections_active: int = 0
    refused: int = 0
    unreachable: int = 0


@dataclass(frozen=True)
class ReasonCount:
    """How often the packet path ended with this verdict."""

    reason: str
    kind: str
    meaning: str
    packets: int
    bytes: int = 0

    @property
    def alarming(self) -> bool:
        return self.kind == "alarm"


@dataclass(frozen=True)
class Counters:
    """One reading of all counters."""

    services: Mapping[int, Traffic] = field(default_factory=dict)
    backends: Mapping[int, Traffic] = field(default_factory=dict)
    reasons: tuple[ReasonCount, ...] = ()


@dataclass(frozen=True)
class Names:
    """What the numbers in the maps are called, as lbd said last; numbers without a name are shown as they are."""

    services: Mapping[int, str] = field(default_factory=dict)
    #: backend (target) id -> (service name, backend name)
    backends: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    nodes: Mapping[int, str] = field(default_factory=dict)

    def node(self, number: int) -> str | None:
        return self.nodes.get(number, f"node {number}") if number else None


class DataPathAway(ApiProblem):
    """The pinned maps cannot be opened."""

    def __init__(self, message: str) -> None:
        super().__init__(
            "unavailable",
            f"the packet path cannot be read: {message}",
            remedy="is it loaded? 'lbctl doctor' tells what this host lacks, 'systemctl start lbd' loads it",
        )


class DataPath(Protocol):
    """Blocking access to the packet path of this gateway. Every method raises DataPathAway if it is not loaded."""

    def counters(self) -> Counters: ...

    def connections(self, query: Any, names: Names) -> dict[str, Any]:
        """One page as of shapes.ConnectionPage for a ConnectionQuery."""
        ...

    def top(self, query: Any, names: Names) -> dict[str, Any]:
        """The biggest groups as of shapes.ConnectionTop for a TopQuery."""
        ...

    def where(self, request: Any, names: Names) -> dict[str, Any]:
        """What the program would do with a packet, as of shapes.Where."""
        ...

    def capture(self, request: Any, names: Names, stop: Callable[[], bool]) -> Iterator[bytes]:
        """A pcapng file piece by piece until the request's limits or stop()."""
        ...
