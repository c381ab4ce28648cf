# SPDX-License-Identifier: Apache-2.0
"""Bare ring nodes (`python -m sync --json`) as processes in namespaces, for scenarios that look at the ring alone."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netlab.bare_network import Network
from netlab.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
PORT = 7400
FORM_TIMEOUT_S = 20.0


class RingNode:
    """One process: what it has printed, and its standard input."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._rest = b""

    def read(self, timeout: float = 0.0) -> None:
        """Take in what has been printed."""
        assert self.process.stdout is not None
        while select.select([self.process.stdout], [], [], timeout)[0]:
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                return
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.events += [json.loads(line) for line in lines]
            timeout = 0.0

    def type(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def all(self, event: str) -> list[dict[str, Any]]:
        """Everything of one kind it has printed so far."""
        self.read()
        return [line for line in self.events if line["event"] == event]

    @property
    def members(self) -> list[int]:
        """Members of its latest view."""
        views = self.all("view")
        return sorted(views[-1]["members"]) if views else []

    def texts(self) -> list[str]:
        """Messages delivered, in order."""
        return [line["text"] for line in self.all("message")]

    def ask(self, line: str, event: str) -> dict[str, Any]:
        """Type a command and wait for its answer."""
        before = len(self.all(event))
        self.type(line)
        eventually(lambda: len(self.all(event)) > before, what=f"an answer to {line!r}")
        return self.all(event)[-1]

    def digest(self) -> str:
        """Digest of its shared data."""
        return str(self.ask("/digest", "digest")["digest"])


class Ring:
    """Ring nodes on a network; they end with the block."""

    def __init__(self, directory: Path, nodes: int, *, links: int = 1, spare: int = 0, **settings: Any) -> None:
        self.network = Network(nodes + spare, links=links)
        self.nodes: dict[int, RingNode] = {}
        self._directory, self._count, self._settings = directory, nodes, settings

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            key = self._directory / "ring.key"
            key.write_text(secrets.token_hex(32) + "\n")
            key.chmod(0o600)
            for node in range(1, self._count + 1):
                self._configure(node)
                self.start(node)
        except BaseException:
            self.network.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.network.__exit__(kind, error, traceback)

    def addresses(self, node: int) -> list[str]:
        """Where a node listens, one address a link."""
        return [f"{self.network.address(node, link)}:{PORT}" for link in range(self.network.links)]

    def _configure(self, node: int) -> None:
        lines = [f"node = {node}", f"listen = {json.dumps(self.addresses(node))}", 'key_file = "ring.key"']
        lines += [f"{name} = {json.dumps(value)}" for name, value in self._settings.items()]
        lines.append("[peers]")
        others = [peer for peer in range(1, self._count + 1) if peer != node]
        lines += [f"{peer} = {json.dumps(self.addresses(peer))}" for peer in others]
        (self._directory / f"node{node}.toml").write_text("\n".join(lines) + "\n")

    def start(self, node: int, *, place: int = 0) -> RingNode:
        """Start a node, in another namespace than its own if `place` is given."""
        command = [sys.executable, "-m", "sync", "--config", str(self._directory / f"node{node}.toml"), "--json"]
        started = RingNode(
            self.network.spawn(place or node, command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        if not place:
            self.nodes[node] = started
        return started

    def kill(self, node: int) -> None:
        """As a crash does."""
        self.network.end(self.nodes.pop(node).process, signal.SIGKILL)

    def form(self) -> None:
        """Wait until all running nodes are one ring with complete copies."""
        self.await_view(sorted(self.nodes))
        for number, node in self.nodes.items():
            eventually(partial(_is_complete, node), what=f"node {number} complete")

    def await_view(self, members: list[int], timeout: float = FORM_TIMEOUT_S) -> None:
        """Wait until each of these is in a view of exactly these."""

        def assert_view() -> bool:
            views = {number: node.members for number, node in self.nodes.items()}
            assert all(views[node] == members for node in members), f"the views are {views}"
            return True

        eventually(assert_view, timeout, f"view {members}")

    def say_everywhere(self, count: int, first: int = 0) -> set[str]:
        """Every node multicasts `count` lines, numbered from `first`; what they are."""
        said = set()
        for number in range(first, first + count):
            for node, console in self.nodes.items():
                said.add(f"{node}/{number}")
                console.type(f"{node}/{number}")
        return said

    def assert_same_order(self, said: set[str], timeout: float = 20.0) -> None:
        """All of it comes everywhere, once, in one order, and in the order in which each origin said it."""
        for number, node in self.nodes.items():
            eventually(partial(_has_said, node, said), timeout, f"all {len(said)} messages at node {number}")
        first, *others = [[text for text in node.texts() if text in said] for node in self.nodes.values()]
        assert len(first) == len(said)
        assert all(other == first for other in others)
        for origin in {text.split("/")[0] for text in said}:
            numbers = [int(text.split("/")[1]) for text in first if text.split("/")[0] == origin]
            assert numbers == sorted(numbers)

    def assert_equal_copies(self) -> None:
        """All running nodes have the same shared data."""
        eventually(lambda: len({node.digest() for node in self.nodes.values()}) == 1, what="equal copies")

    def drop(self, node: int, rule: str) -> None:
        """Drop what arrives at a node and matches an nft expression."""
        self.nft(node, f"table inet faults {{ chain in {{ type filter hook input priority 0; {rule} drop; }}\n}}")

    def await_link(self, node: int, link: int) -> None:
        """Wait until the node hears all others on a link again."""
        enter = ["nsenter", f"--net=/run/netns/{self.network.namespace(node)}"]
        for other in self.nodes.keys() - {node}:
            ping = [*enter, "ping", "-c", "1", "-W", "1", self.network.address(other, link)]
            eventually(partial(_succeeds, ping), what=f"node {node} reaching node {other} on link {link}")

    def heal(self, node: int) -> None:
        """Take the node's faults away."""
        self.nft(node, "delete table inet faults")

    def nft(self, node: int, text: str) -> None:
        """Feed nft in a node's namespace."""
        enter = ["nsenter", f"--net=/run/netns/{self.network.namespace(node)}"]
        subprocess.run([*enter, "nft", "-f", "-"], input=text, text=True, check=True)


def _is_complete(node: RingNode) -> bool:
    told = node.all("complete")
    return bool(told) and bool(told[-1]["complete"])


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_said(node: RingNode, said: set[str]) -> bool:
    return said <= set(node.texts())
