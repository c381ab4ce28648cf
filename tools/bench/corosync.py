# SPDX-License-Identifier: Apache-2.0
"""Corosync from Debian's packages in the benchmark's namespaces, as a user would set it up."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from netlab.bare_network import Network

from tools.bench.programs import compiled

FORM_TIMEOUT_S = 40.0


class CorosyncFailed(RuntimeError):
    """Corosync did not form a group, or its client failed."""


class Corosync:
    """One corosync per node of a network.

    token_ms 0 leaves its default, 3 s + 0.65 s per node above two. `realtime` is its own default (SCHED_RR); without
    it small messages are faster here, since its client gets to run.
    """

    def __init__(
        self, network: Network, *, encrypted: bool = False, realtime: bool = True, token_ms: int = 0, ping_ms: int = 0
    ) -> None:
        self.network = network
        self._directory = tempfile.TemporaryDirectory(prefix="bench-corosync-")
        self._path = Path(self._directory.name)
        self._client = compiled("corosync_client", self._path, "cpg", "pthread")
        (self._path / "key").write_bytes(os.urandom(256))
        (self._path / "corosync.conf").write_text(self._configuration(encrypted, realtime, token_ms, ping_ms))
        self.daemons: dict[int, subprocess.Popen[Any]] = {}
        for node in range(1, network.nodes + 1):
            self.start(node)

    def _configuration(self, encrypted: bool, realtime: bool, token_ms: int, ping_ms: int) -> str:
        totem = ["version: 2", "cluster_name: bench", "transport: knet"]
        if token_ms:
            totem += [f"token: {token_ms}", "token_coefficient: 0", "token_retransmits_before_loss_const: 1"]
        if encrypted:
            totem += ["crypto_cipher: aes256", "crypto_hash: sha256", f"keyfile: {self._path}/key"]
        else:
            totem += ["crypto_cipher: none", "crypto_hash: none"]
        if ping_ms:  # by default its link heartbeat follows from the token and, when that is short, takes links down
            totem += [
                f"interface {{\nlinknumber: 0\nknet_ping_timeout: {ping_ms}\nknet_ping_interval: {ping_ms // 4}\n}}"
            ]
        nodes = "\n".join(
            f"node {{\nring0_addr: {self.network.address(node)}\nnodeid: {node}\nname: n{node}\n}}"
            for node in range(1, self.network.nodes + 1)
        )
        return (
            "totem {\n" + "\n".join(totem) + "\n}\n"
            f"system {{\nallow_knet_handle_fallback: yes\nsched_rr: {'yes' if realtime else 'no'}\n}}\n"
            "logging {\nto_stderr: yes\nto_syslog: no\nto_logfile: no\n}\n"
            "quorum {\nprovider: corosync_votequorum\n}\n"
            f"nodelist {{\n{nodes}\n}}\n"
        )

    def start(self, node: int) -> None:
        """Start a node's daemon, with files of its own where corosync keeps its sockets and state."""
        script = (
            "mount --make-rprivate / && mount -t tmpfs t /run && mount -t tmpfs t /dev/shm && mkdir /run/corosync && "
            f"mount -t tmpfs t /var/lib/corosync && exec corosync -f -c {self._path}/corosync.conf"
        )
        command = ["unshare", "--mount", "sh", "-c", script]
        with open(self._log(node), "a") as log:
            self.daemons[node] = self.network.spawn(node, command, stdout=log, stderr=log)

    def _log(self, node: int) -> Path:
        return self._path / f"log{node}"

    def form(self) -> None:
        """Wait until every running node counts all of them, and a moment longer."""
        end = time.monotonic() + FORM_TIMEOUT_S
        wanted = len(self.daemons)
        while any(self._members(node) != wanted for node in self.daemons):
            if time.monotonic() > end:
                raise CorosyncFailed(f"no group of {wanted}: {self._log(1).read_text()[-800:]}")
            time.sleep(0.1)
        time.sleep(1.0)

    def _members(self, node: int) -> int:
        lines = [line for line in self._log(node).read_text().splitlines() if "[QUORUM] Members[" in line]
        return int(lines[-1].split("Members[")[1].split("]")[0]) if lines else 0

    def pids(self) -> list[int]:
        """Of the running daemons."""
        return [daemon.pid for daemon in self.daemons.values() if daemon.poll() is None]

    def client(self, node: int, *arguments: Any) -> subprocess.Popen[Any]:
        """Start a member of the process group beside a node's daemon."""
        target = str(self.daemons[node].pid)
        command = ["nsenter", "-t", target, "-m", "-n", str(self._client), *map(str, arguments)]
        return self.network.spawn(node, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def clients(self, *arguments: Any, timeout: float) -> list[dict[str, Any]]:
        """Run a client on every node, return their results."""
        running = [self.client(node, *arguments) for node in self.daemons]
        results = []
        for process in running:
            try:
                out, error = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise CorosyncFailed(f"client did not finish within {timeout:.0f} s") from None
            if process.returncode or not out.strip():
                raise CorosyncFailed(error.strip() or f"client ended with {process.returncode}")
            results.append(json.loads(out))
        return results

    def kill(self, nodes: Iterable[int]) -> None:
        """As a crash does."""
        for node in nodes:
            self.network.end(self.daemons[node], signal.SIGKILL)

    def stop(self) -> None:
        """End all daemons and forget their files."""
        self.kill(self.daemons)
        self._directory.cleanup()
