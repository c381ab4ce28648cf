# SPDX-License-Identifier: Apache-2.0
"""Namespaces around a switch and nothing else in them: for what is to run alone, bare ring nodes above all."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from netlab.commands import run

END_GRACE_S = 2.0


class Network:
    """`nodes` namespaces, numbered from 1, on one bridge (or `links` bridges); everything is removed at the end."""

    def __init__(self, nodes: int, *, links: int = 1, mtu: int = 1500) -> None:
        self.nodes, self.links, self.mtu = nodes, links, mtu
        self._tag = f"rb{os.getpid()}"
        self._processes: list[subprocess.Popen[Any]] = []

    def namespace(self, node: int) -> str:
        """Name of a node's namespace; 0 is the switch's."""
        return f"{self._tag}-{node}"

    def address(self, node: int, link: int = 0) -> str:
        """IPv4 address of a node on a link."""
        return f"10.78.{link}.{node}"

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        for node in range(self.nodes + 1):
            run("ip", "netns", "add", self.namespace(node))
            run("ip", "-n", self.namespace(node), "link", "set", "lo", "up")
        switch = self.namespace(0)
        for link in range(self.links):
            run(
                "ip",
                "-n",
                switch,
                "link",
                "add",
                f"br{link}",
                "type",
                "bridge",
                "stp_state",
                "0",
                "mcast_snooping",
                "0",
            )
            run("ip", "-n", switch, "link", "set", f"br{link}", "up")
            for node in range(1, self.nodes + 1):
                self._plug(switch, node, link)

    def _plug(self, switch: str, node: int, link: int) -> None:
        own, port = self.namespace(node), self.port(node, link)
        mtu = str(self.mtu)
        run("ip", "link", "add", f"eth{link}", "netns", own, "mtu", mtu, "type", "veth",
            "peer", "name", port, "netns", switch, "mtu", mtu)  # fmt: skip
        run("ip", "-n", switch, "link", "set", port, "master", f"br{link}", "up")
        run("ip", "-n", own, "addr", "add", f"{self.address(node, link)}/24", "dev", f"eth{link}")
        run("ip", "-n", own, "link", "set", f"eth{link}", "up")

    @staticmethod
    def port(node: int, link: int) -> str:
        """The switch's end of a node's cable."""
        return f"p{node}-{link}"

    def cut(self, node: int, link: int = 0) -> float:
        """Pull a cable at the switch; the node sees its own carrier go as well. When it happened, monotonic seconds.

        Taking an interface down lasts for tens of milliseconds in which frames still pass; a port that the switch
        disables before passes none from one instant to the next.
        """
        switch, port = self.namespace(0), self.port(node, link)
        run("bridge", "-n", switch, "link", "set", "dev", port, "state", "0")
        instant = time.monotonic()
        run("ip", "-n", switch, "link", "set", port, "down")
        return instant

    def mend(self, node: int, link: int = 0) -> None:
        """Plug it in again."""
        run("ip", "-n", self.namespace(0), "link", "set", self.port(node, link), "up")

    def spawn(self, node: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in a node's namespace, with its network alone changed."""
        entered = ["nsenter", f"--net=/run/netns/{self.namespace(node)}", *command]
        process = subprocess.Popen(entered, **options)
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[Any], how: int = signal.SIGTERM) -> None:
        """End one of our processes and wait for it."""
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(END_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _remove(self) -> None:
        for process in reversed(self._processes):
            self.end(process)
        for node in range(self.nodes + 1):
            if Path("/run/netns", self.namespace(node)).exists():
                run("ip", "netns", "del", self.namespace(node))
