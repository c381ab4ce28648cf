# SPDX-License-Identifier: Apache-2.0
"""A ring of real processes in namespaces, driven line by line."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from netlab.bare_network import Network

ROOT = Path(__file__).resolve().parents[2]
PORT = 7400
FORM_TIMEOUT_S = 20.0


class NodeFailed(RuntimeError):
    """A node's process ended, or did not say in time what was expected."""


class BenchNode:
    """One process of the cluster's program."""

    def __init__(self, cluster: "Cluster", node: int) -> None:
        self.node = node
        self._network = cluster.network
        spec = {"node": node, "addresses": cluster.addresses, "key": cluster.key, "settings": cluster.settings,
                "scheduling": cluster.scheduling}  # fmt: skip
        if cluster.profile:
            spec["profile"] = f"{cluster.profile}.{node}"
        self.process = cluster.network.spawn(
            node,
            [sys.executable, "-m", cluster.program, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self.pid = self.process.pid
        self._rest = b""
        self.views: list[tuple[float, list[int]]] = []
        self._lines: list[dict[str, Any]] = []

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()

    def poll(self, timeout: float) -> None:
        """Read what has been said, waiting up to `timeout` for something."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return
        read = os.read(self.process.stdout.fileno(), 1 << 20)
        if not read:
            raise NodeFailed(f"node {self.node} ended with {self.process.wait()}")
        *lines, self._rest = (self._rest + read).split(b"\n")
        for line in map(json.loads, lines):
            if line["event"] == "view":
                self.views.append((line["t"], line["members"]))
            else:
                self._lines.append(line)

    def expect(self, event: str, timeout: float = 30.0) -> dict[str, Any]:
        """The next line of this kind."""
        end = time.monotonic() + timeout
        while True:
            for index, line in enumerate(self._lines):
                if line["event"] == event:
                    return self._lines.pop(index)
            if time.monotonic() > end:
                raise NodeFailed(f"node {self.node} did not say {event!r} within {timeout:.0f} s")
            self.poll(0.1)

    @property
    def members(self) -> list[int]:
        """Members of its latest view."""
        return self.views[-1][1] if self.views else []

    def kill(self) -> None:
        """As a crash does."""
        self._network.end(self.process, signal.SIGKILL)


class Cluster:
    """Nodes 1..n; authenticated unless `key` is emptied."""

    def __init__(
        self,
        network: Network,
        *,
        settings: dict[str, Any] | None = None,
        scheduling: str = "auto",
        authenticated: bool = True,
        profile: str = "",
        program: str = "tools.bench.ring_node",
    ) -> None:
        self.network = network
        self.settings = settings or {}
        self.scheduling, self.profile, self.program = scheduling, profile, program
        self.key = secrets.token_hex(32) if authenticated else ""
        self.addresses = {
            node: [f"{network.address(node, link)}:{PORT}" for link in range(network.links)]
            for node in range(1, network.nodes + 1)
        }
        self.nodes: dict[int, BenchNode] = {}

    def start(self, *nodes: int) -> None:
        """Start some nodes, by default all."""
        for node in nodes or self.addresses:
            self.nodes[node] = BenchNode(self, node)

    def wait_for(self, members: list[int], timeout: float = FORM_TIMEOUT_S) -> None:
        """Wait until each of these nodes is in a view of exactly these."""
        end = time.monotonic() + timeout
        while any(self.nodes[node].members != members for node in members):
            if time.monotonic() > end:
                seen = {node: self.nodes[node].members for node in members}
                raise NodeFailed(f"no common view of {members} within {timeout:.0f} s: {seen}")
            for node in members:
                self.nodes[node].poll(0.01)

    def form(self) -> None:
        """Start all and wait until they are one ring."""
        self.start()
        self.wait_for(sorted(self.addresses))

    def view_count(self) -> int:
        """Views that all running nodes have told of so far."""
        for node in self.nodes.values():
            node.poll(0.02)
        return sum(len(node.views) for node in self.nodes.values())

    def pids(self) -> list[int]:
        """Of the running nodes."""
        return [node.pid for node in self.nodes.values() if node.process.poll() is None]

    def tell(self, do: str, **arguments: Any) -> None:
        """Send every node a command."""
        for node in self.nodes.values():
            node.tell(do, **arguments)

    def expect(self, event: str, timeout: float = 30.0) -> dict[int, dict[str, Any]]:
        """One line of this kind from every node."""
        return {number: node.expect(event, timeout) for number, node in self.nodes.items()}

    def stop(self) -> None:
        """End all nodes; with a profile, let them write it."""
        for node in self.nodes.values():
            if self.profile and node.process.stdin is not None:
                node.process.stdin.close()
                node.process.wait(10)
            self.network.end(node.process, signal.SIGKILL)
        self.nodes.clear()
