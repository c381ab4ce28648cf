# SPDX-License-Identifier: Apache-2.0
"""The journal of what happened in the cluster: who moved what, when and why; the same on every gateway.

Events travel over the ring in its total order, so all journals agree on what came before what. A journal is bounded
in memory and on disk and survives restarts. Writing to disk is the caller's to do in a thread: `pending` hands out
what is not written yet, `write` writes it.
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import msgpack

EVENTS_KEPT_MAX = 10_000
UNWRITTEN_MAX = 5_000
FILE_BYTES_MAX = 4 << 20
TEXT_LENGTH_MAX = 500
SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `time` is Unix time at the node that reports it, `kind` is `subject-class.verb`."""

    kind: str
    message: str
    node: str = ""
    subject: str = ""
    why: str = ""
    who: str = ""
    severity: str = "info"
    time: float = 0.0
    id: int = 0


_FIELDS = tuple(Event.__dataclass_fields__)
_TEXTS = ("kind", "message", "node", "subject", "why", "who", "severity")


def vip_duplicate(address: str, mac: str, interface: str) -> Event:
    """A host that is no gateway of the cluster uses an address."""
    text = f"another host ({mac}) on {interface} uses {address}: take it off there"
    return Event("vip.duplicate", text, subject=address, severity="error")


def vip_put_back(address: str, interface: str) -> Event:
    """Somebody, or something, had taken an address off an interface of a gateway that holds it."""
    text = f"{address} was gone from {interface} (taken off, or the link was set down): put back"
    return Event("vip.put_back", text, subject=address, severity="warning")


def pack_event(event: Event) -> bytes:
    """The event as it travels; its id is each journal's own and stays behind."""
    plain = asdict(event)
    del plain["id"]
    return bytes(msgpack.packb(plain))


def unpack_event(data: bytes) -> Event:
    """The event in a message from a peer. Raises ValueError for anything else."""
    try:
        plain = msgpack.unpackb(data)
    except Exception as error:
        raise ValueError(f"not an event: {error}") from None
    return from_plain(plain)


def from_plain(plain: object) -> Event:
    """An event from a dict; unknown keys of a newer peer are ignored. Raises ValueError."""
    if not isinstance(plain, dict):
        raise ValueError("not an event: not a map")
    known = {name: plain[name] for name in _FIELDS if name in plain}
    if not all(isinstance(known.get(name, ""), str) for name in _TEXTS):
        raise ValueError("not an event: a text field holds something else")
    if not isinstance(known.get("time", 0.0), (int, float)) or not isinstance(known.get("id", 0), int):
        raise ValueError("not an event: time and id must be numbers")
    if known.get("severity", "info") not in SEVERITIES or not known.get("kind"):
        raise ValueError("not an event: no kind, or an unknown severity")
    for name in _TEXTS:
        known[name] = known.get(name, "")[:TEXT_LENGTH_MAX]
    known["severity"] = known["severity"] or "info"
    return Event(**known)


def to_plain(event: Event) -> dict[str, object]:
    """The event as the API shows it."""
    return asdict(event)


class Journal:
    """The last events, by a growing id. Not thread-safe, apart from `write`, which touches the file alone."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self._unwritten: deque[Event] = deque()
        self._listeners: list[Callable[[Event], None]] = []
        self._next_id = 1
        self.shed = 0
        self.unreadable = 0
        if path is not None:
            self._restore(path)

    def __len__(self) -> int:
        return len(self._events)

    def append(self, event: Event) -> Event:
        """Add an event; gives it its id, and the time where it has none."""
        event = Event(**{**asdict(event), "id": self._next_id, "time": event.time or self._clock()})
        self._next_id += 1
        self._events.append(event)
        if self._path is not None:
            if len(self._unwritten) >= UNWRITTEN_MAX:
                self._unwritten.popleft()
                self.shed += 1
            self._unwritten.append(event)
        for listener in self._listeners:
            listener(event)
        return event

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with each event appended from now on; returns the way to stop it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def after(self, event_id: int, limit: int) -> list[Event]:
        """Up to `limit` events with a greater id; without a bound below (0) the newest ones. Oldest first."""
        if event_id <= 0:
            return list(self._events)[-limit:] if limit > 0 else []
        newer = [event for event in self._events if event.id > event_id]
        return newer[:limit]

    def pending(self) -> list[Event]:
        """Hand over what has not been written yet; the caller writes it."""
        taken = list(self._unwritten)
        self._unwritten.clear()
        return taken

    def write(self, events: Iterable[Event]) -> None:
        """Append events to the file and force them to disk. May block; OSError says what failed."""
        if self._path is None:
            return
        text = "".join(json.dumps(asdict(event), separators=(",", ":")) + "\n" for event in events)
        if not text:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._size() + len(text) > FILE_BYTES_MAX:
            with contextlib.suppress(FileNotFoundError):
                os.replace(self._path, self._older())
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fdatasync(file.fileno())

    def _size(self) -> int:
        try:
            return self._path.stat().st_size if self._path is not None else 0
        except FileNotFoundError:
            return 0

    def _older(self) -> Path:
        assert self._path is not None
        return self._path.with_suffix(self._path.suffix + ".1")

    def _restore(self, path: Path) -> None:
        for source in (self._older(), path):
            try:
                lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
            except FileNotFoundError:
                continue
            for line in lines[-EVENTS_KEPT_MAX:]:
                self._restore_line(line)
        self._next_id = max((event.id for event in self._events), default=0) + 1

    def _restore_line(self, line: str) -> None:
        try:
            self._events.append(from_plain(json.loads(line)))
        except ValueError:
            # A line half written when the power failed must not cost the rest.
            self.unreadable += 1
