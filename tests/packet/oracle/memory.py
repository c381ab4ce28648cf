# SPDX-License-Identifier: Apache-2.0
"""What packets leave behind, and what the path makes of one."""

from collections.abc import Callable
from dataclasses import dataclass, field

Key = tuple[bytes, bytes, int, int, int]


@dataclass(slots=True)
class Entry:
    """A connection as remembered."""

    target: int
    owner: int
    state: str
    service: int


@dataclass(slots=True)
class Result:
    """verdict: PASS, DROP, TX or REDIRECT; reason: its name; frame: as it leaves (for PASS as it is handed on)."""

    verdict: str
    reason: str
    frame: bytes
    commits: list[Callable[[], None]] = field(default_factory=list)
    service: int = 0
    target: int = 0
    by_turn: bool = False
    """The target was drawn by lot or by rotation: asking without a trace gives another one."""
    doubtful: tuple[Key, Entry] | None = None
    """A UDP flow seen before: a connection by now, unless the array of recent flows had to forget it."""
    unsure: Key | None = None
    """A connection that goes on after a reset or FIN: on the short way its state stays, on the full path it opens."""


@dataclass(slots=True)
class Memory:
    """All that packets leave behind."""

    connections: dict[Key, Entry] = field(default_factory=dict)
    half_open: dict[Key, Entry] = field(default_factory=dict)
    fragments: dict[tuple[bytes, bytes, bytes, int], tuple[int, int]] = field(default_factory=dict)
    persistence: dict[tuple[bytes, int], int] = field(default_factory=dict)
    rotation: dict[int, int] = field(default_factory=dict)
    seen: set[Key] = field(default_factory=set)
    """UDP flows of which a packet was seen since the configuration last changed."""


def forget(table: dict[Key, Entry], key: Key) -> None:
    table.pop(key, None)
