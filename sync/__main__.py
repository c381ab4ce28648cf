# SPDX-License-Identifier: Apache-2.0
"""A bare ring node for experiments: prints views and messages, multicasts the lines it reads from standard input.

    python -m sync --config node.toml [--json]

    node = 1
    cluster = "demo"
    listen = ["10.0.0.1:7400"]
    key_file = "ring.key"            # optional; without it datagrams are not authenticated
    failure_detection_ms = 40        # and every other setting of sync.config.RingConfig that is a number or a text
    scheduling = "auto"              # "other", "nice:-10", "rr:5"
    [peers]
    2 = ["10.0.0.2:7400"]

A line that begins with a slash is a command: /set KEY VALUE, /get KEY, /add KEY NUMBER, /lock NAME, /unlock NAME,
/stats, /digest, /leave. Anything else is multicast to the group. With --json everything printed is one object a line,
with the instant in monotonic seconds.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import queue
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

import uvloop

from .config import ConfigError, Mode, Policy, RingConfig
from .coordination import Lock
from .data import OutcomeUnknown, RequestRefused, VersionConflict
from .driver import MulticastFailed, Ring, peer_paths
from .events import Deliver, View
from .key_file import KeyFileError, load_key_file
from .shared import Change, MalformedCommand
from .sockets import AddressError
from .transport.effects import PeerConfig
from .transport.keys import KeyRing

CHANNEL = 16
LINE_BYTES_MAX = 1 << 20
LINES_MAX = 65_536  # waiting to be printed
FINISH_S = 1.0
SPECIAL = {"node", "listen", "peers", "key_file", "scheduling", "mode", "policy", "parallel"}
PLAIN = {field.name for field in fields(RingConfig)} - {"node", "peers", "keys", "mode", "policy"}


class Node:
    """What one configuration file says."""

    def __init__(self, path: Path) -> None:
        table = tomllib.loads(path.read_text())
        unknown = sorted(table.keys() - SPECIAL - PLAIN)
        if unknown:
            raise ConfigError(f"{path}: {unknown[0]!r} is not known; allowed are {', '.join(sorted(SPECIAL | PLAIN))}")
        missing = sorted({"node", "listen"} - table.keys())
        if missing:
            raise ConfigError(f"{path}: {missing[0]!r} is missing")
        self.listen: list[str] = list(table["listen"])
        self.scheduling = str(table.get("scheduling", "auto"))
        peers = {int(node): self._peer(table, addresses) for node, addresses in table.get("peers", {}).items()}
        settings: dict[str, Any] = {name: value for name, value in table.items() if name in PLAIN}
        if "mode" in table:
            settings["mode"] = Mode(table["mode"])
        if "policy" in table:
            settings["policy"] = Policy(table["policy"])
        self.config = RingConfig(node=table["node"], peers=peers, keys=self._keys(path, table), **settings)

    def _peer(self, table: dict[str, Any], addresses: list[str]) -> PeerConfig:
        return peer_paths(self.listen, addresses, parallel=bool(table.get("parallel", False)))

    @staticmethod
    def _keys(path: Path, table: dict[str, Any]) -> KeyRing | None:
        return load_key_file(path.parent / table["key_file"]) if "key_file" in table else None


class Printer:
    """Writes lines in a thread of its own: a reader that does not read must not stop the ring."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self.dropped = 0
        self._thread = threading.Thread(target=self._write, name="printer", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Print a line soon; dropped and counted if LINES_MAX lines are waiting already."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def finish(self) -> None:
        """Give what is waiting FINISH_S to get out."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(FINISH_S)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            print(line, file=self._out, flush=True)


class Console:
    """Prints what happens and does what is typed."""

    def __init__(self, ring: Ring, printer: Printer, as_json: bool) -> None:
        self._ring, self._print, self._as_json = ring, printer, as_json
        self._locks: dict[str, Lock] = {}
        self.leaving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._commands: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
            "set": self._set,
            "get": self._get,
            "add": self._add,
            "lock": self._lock,
            "unlock": self._unlock,
            "stats": self._stats,
            "digest": self._digest,
            "leave": self._leave,
        }
        ring.on_view(self._on_view)
        ring.subscribe(CHANNEL, self._on_batch)
        ring.on_complete(lambda complete: self.say("complete", complete=complete))
        ring.on_replaced(lambda replaced: self.say("replaced", lineage_changed=replaced.lineage_changed))
        ring.data.watch("", self._on_changes)

    def say(self, kind: str, **fields: Any) -> None:
        """Print one event."""
        if self._as_json:
            text = json.dumps({"event": kind, "t": round(time.monotonic(), 6), **fields})
        else:
            text = " ".join([kind, *(f"{name}={value}" for name, value in fields.items())])
        self._print(text)

    def _on_view(self, view: View) -> None:
        self.say("view", number=view.number, members=list(view.members), joined=sorted(view.joined))

    def _on_batch(self, batch: Deliver) -> None:
        for offset, payload in enumerate(batch.payloads()):
            text = bytes(payload).decode(errors="replace")
            self.say("message", origin=batch.origin, position=batch.position + offset, text=text)

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            value = change.item.value.decode(errors="replace") if change.item is not None else None
            self.say("item", key=change.key, value=value, version=change.version)

    async def on_line(self, line: str) -> None:
        """Carry out one line of input."""
        try:
            if not line.startswith("/"):
                await self._ring.multicast(CHANNEL, line.encode())
                return
            name, *arguments = line[1:].split(" ", 2)
            command = self._commands.get(name)
            if command is None:
                self.say("error", text=f"no command /{name}; there are /{', /'.join(sorted(self._commands))}")
            else:
                await command(*arguments)
        except (TypeError, ValueError, MalformedCommand) as error:
            self.say("error", text=f"{line!r} is not understood: {error}")
        except (MulticastFailed, RequestRefused, VersionConflict, OutcomeUnknown) as error:
            self.say("error", text=f"{line!r} failed: {error}")

    async def _set(self, key: str, value: str) -> None:
        self.say("set", key=key, version=await self._ring.data.put(key, value.encode()))

    async def _get(self, key: str) -> None:
        value = self._ring.data.get(key)
        self.say("get", key=key, value=value.decode(errors="replace") if value is not None else None)

    async def _add(self, key: str, addend: str) -> None:
        self.say("add", key=key, sum=await self._ring.data.add(key, int(addend)))

    async def _lock(self, name: str, lease_s: str = "10") -> None:
        lock = self._ring.lock(name, lease_s=float(lease_s))
        fencing = await lock.acquire()
        self._locks[name] = lock
        lock.on_lost(lambda: self.say("lock_lost", name=name, fencing=fencing))
        self.say("lock", name=name, fencing=fencing)

    async def _unlock(self, name: str) -> None:
        lock = self._locks.pop(name, None)
        if lock is None:
            raise ValueError(f"lock {name!r} is not held here")
        await lock.release()
        self.say("unlock", name=name)

    async def _stats(self) -> None:
        self.say("stats", **self._ring.stats(), lines_dropped=self._print.dropped)

    async def _digest(self) -> None:
        complete, digest = self._ring.data.complete, self._ring.shared.digest().hex()
        self.say("digest", complete=complete, digest=digest, items=len(self._ring.data))

    async def _leave(self) -> None:
        self.leaving = True

    def start(self, line: str) -> asyncio.Task[None]:
        """Carry out a line beside others: /lock may have to wait."""
        task = asyncio.ensure_future(self.on_line(line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def run(node: Node, as_json: bool) -> None:
    """Run until standard input ends or /leave."""
    ring = Ring(node.config, node.listen, scheduling=node.scheduling)
    printer = Printer(sys.stdout)
    console = Console(ring, printer, as_json)
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with ring:
        while not console.leaving:
            line = await reader.readline()
            if not line:
                break
            task = console.start(line.decode(errors="replace").rstrip("\n"))
            if not line.startswith(b"/lock"):
                await task
    console.say("left")
    printer.finish()


def main() -> int:
    """Entry point; exit code 2 for a configuration that cannot work."""
    parser = argparse.ArgumentParser(prog="python -m sync", description="Run a bare ring node.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file, see the module's text")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    try:
        node = Node(arguments.config)
        uvloop.run(run(node, arguments.json))
    except (ConfigError, KeyFileError, AddressError, tomllib.TOMLDecodeError, OSError, ValueError) as error:
        print(f"{arguments.config}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
