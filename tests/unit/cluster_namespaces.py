# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for the cluster tests: a pair of hosts on one wire, entered by short-lived child processes."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netlab.commands import run

ROOT = Path(__file__).resolve().parents[2]
# What the tests import, for the Python that is started in a namespace.
IMPORTS = f"{ROOT}:{ROOT / 'netns-lab'}"


@dataclass(frozen=True)
class Pair:
    """Two namespaces joined by one veth; both ends are called `wire` and are 10.9.0.{1,2}/24, fd09::{1,2}/64."""

    left: str
    right: str

    def python(self, namespace: str, code: str, *, timeout_s: float = 60) -> str:
        """Run Python in one of the namespaces and return what it printed."""
        return self.start(namespace, code).communicate_checked(timeout_s)

    def start(self, namespace: str, code: str) -> "Child":
        """Start Python in one of the namespaces."""
        command = ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-c", code]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": IMPORTS},
        )
        return Child(process)


@dataclass(frozen=True)
class Child:
    """A Python process in a namespace."""

    process: "subprocess.Popen[str]"

    def communicate_checked(self, timeout_s: float = 60) -> str:
        """Wait for the end; its output, or an error with its error text."""
        try:
            out, err = self.process.communicate(timeout=timeout_s)
        finally:
            self.process.kill()
        if self.process.returncode:
            raise RuntimeError(err)
        return out

    def read_line(self) -> str:
        """The next line it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def write_line(self, text: str = "") -> None:
        """A line for it to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()


@contextmanager
def pair() -> Iterator[Pair]:
    """Two joined namespaces for the length of a block."""
    tag = f"Gt{os.getpid() % 100000}{uuid.uuid4().hex[:3]}"
    left, right = f"{tag}l", f"{tag}r"
    try:
        for name in (left, right):
            run("ip", "netns", "add", name)
        run("ip", "-n", left, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", right)
        for host, name in ((1, left), (2, right)):
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "addr", "add", f"10.9.0.{host}/24", "dev", "wire")
            run("ip", "-n", name, "addr", "add", f"fd09::{host}/64", "dev", "wire", "nodad")
            run("ip", "-n", name, "link", "set", "wire", "up")
        yield Pair(left, right)
    finally:
        for name in (left, right):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
