# SPDX-License-Identifier: Apache-2.0
"""A real lbd in a network namespace, talked to over its control socket, with a stand-in for the service manager."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack

from ebpf import libbpf

START_SECONDS = 90
NODE_FILE = """
cluster = "test"
[node]
name = "gw1"
id = 1
run_dir = "{directory}/run"
state_dir = "{directory}/state"
[[interface]]
name = "wire"
segment = "outside"
xdp = "generic"
[engine]
connections_max = 65536
half_open_max = 4096
sweep_interval_ms = 500
"""


class ServiceManager:
    """The receiving end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.seen: list[str] = []

    def wait_for(self, text: str, seconds: float = START_SECONDS) -> str:
        """The first message from now on that contains `text`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                break
            self.seen.append(message)
            if text in message:
                return message
        raise AssertionError(f"no {text!r} within {seconds} s; seen: {self.seen}")

    def forget(self) -> None:
        """Drops what was not read."""
        self.seen.clear()
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(4096)

    def close(self) -> None:
        self._socket.close()


class Lbd:
    """One daemon process at a time for a node in `directory`."""

    def __init__(self, directory: Path, namespace: str) -> None:
        self.directory, self.namespace = directory, namespace
        self.node_file = directory / "node.toml"
        self.reset()
        self.manager = ServiceManager(directory / "notify.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def reset(self) -> None:
        """As on a machine that has never had a configuration."""
        self.node_file.write_text(NODE_FILE.format(directory=self.directory))
        shutil.rmtree(self.directory / "state", ignore_errors=True)

    def kill(self) -> None:
        """Ends whatever runs, and forgets what it told the service manager."""
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)
        self.manager.forget()

    def command(self, *options: str) -> list[str]:
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}"]
        return [*enter, sys.executable, "-m", "lb.main", "--config", str(self.node_file), *options]

    def start(self, *options: str, children: str = "--no-children", **environment: str) -> None:
        """Starts it and waits until it says that it is ready."""
        told = {"NOTIFY_SOCKET": str(self.manager.path), **environment}
        with open(self.directory / "lbd.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(children, *options), env={**os.environ, **told}, stdout=log, stderr=log
            )
        try:
            self.manager.wait_for("READY=1")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        return subprocess.run(
            self.command(*options), capture_output=True, text=True, timeout=START_SECONDS, check=False
        )

    @property
    def log(self) -> str:
        return (self.directory / "lbd.log").read_text()

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends it with a signal; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.send(number)
        return self.process.wait(START_SECONDS)

    def call(self, method: str, **params: Any) -> Any:
        """The result of a control method; AssertionError with the error if it is refused."""
        answer = self.ask(method, **params)
        assert "result" in answer, answer
        return answer["result"]

    def ask(self, method: str, **params: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(START_SECONDS)
            connection.connect(str(self.directory / "run" / "control.sock"))
            data = msgpack.packb({"id": 1, "method": method, "params": params})
            connection.sendall(struct.pack(">I", len(data)) + data)
            with connection.makefile("rb") as stream:
                (length,) = struct.unpack(">I", stream.read(4))
                return msgpack.unpackb(stream.read(length))

    def xdp_program(self) -> int:
        """Id of the program on the interface; 0: none."""
        code = "from ebpf import loader; print(loader.query('wire').program)"
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", sys.executable, "-c", code]
        return int(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)


@contextmanager
def lbd_in(directory: Path, namespace: str) -> Iterator[Lbd]:
    """A node; whatever was left running or mounted is gone afterwards."""
    lbd = Lbd(directory, namespace)
    try:
        yield lbd
    finally:
        lbd.kill()
        lbd.run("--remove")
        lbd.manager.close()
        bpffs = directory / "run" / "bpf"
        if bpffs.exists() and libbpf.is_bpffs(bpffs):
            libbpf.unmount(bpffs)
