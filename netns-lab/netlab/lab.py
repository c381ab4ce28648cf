# SPDX-License-Identifier: Apache-2.0
"""One lab: bring it up, run things in it, look at it, take it down. For the command, the scenarios and the demo."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from netlab import build, gateway_api, gateway_files, namespaces, services, state
from netlab.gateway_files import Scalar
from netlab.namespaces import Process
from netlab.state import LabError
from netlab.topologies import TOPOLOGIES
from netlab.topology import HTTP_PORT, PUSH_PORT, Node, Topology
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

Result = TypeVar("Result")

# What makes a lab and hands it out: the fixture of the scenarios.
LabMaker = Callable[..., "Lab"]
# One word of a traffic program's command line.
Argument = str | int | float

# A first start compiles the packet path, seconds of processor time for each gateway: on a busy machine that is long.
READY_S = 90.0


@contextmanager
def interruptions_held() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is done: netlink conversations and forks are not to be cut in half."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Lab:
    """A lab that is up. Make one with `Lab.up` or `Lab.open`; nothing is held open between calls."""

    def __init__(self, name: str, topology: Topology, directory: Path) -> None:
        self.name = name
        self.topology = topology
        self.directory = directory
        # Children of this very process are waited for, so that they do not stay behind as zombies.
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    # -- life -----------------------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        name: str,
        topology: str | Topology | None = None,
        *,
        daemons: bool = True,
        ring_options: dict[str, Scalar] | None = None,
    ) -> "Lab":
        """Build the network and start what runs in it. Whatever fails or interrupts it, nothing is left behind."""
        plan = topology if isinstance(topology, Topology) else known_topology(topology or name)
        directory = state.begin(name, plan.name)
        lab = cls(name, plan, directory)
        try:
            gateway_files.write_all(name, plan, directory, ring_options)
            services.make_content(directory, "1m", 1 << 20)
            with interruptions_held():
                build.make_network(name, plan)
            lab._give_tunnels()
            lab._start_services()
            if daemons:
                lab.start_gateways()
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def open(cls, name: str) -> "Lab":
        record = state.load(name)
        return cls(name, known_topology(record.topology), state.directory_of(name))

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def down(self) -> None:
        # Ending the processes and reaping our own children among them have to go together.
        for child in self._children.values():
            child.terminate()
        state.clean_up(self.name)
        for child in self._children.values():
            child.wait()
        self._children.clear()

    def _give_tunnels(self) -> None:
        ends = [
            f"{self.namespace(node.name)}:{interface.name}"
            for node in self.topology.nodes
            if node.decapsulates
            for interface in node.interfaces
        ]
        if ends:
            environment = services.whole_environment(services.environment())
            command = [sys.executable, "-m", "netlab.decapsulate", *ends]
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                raise LabError(f"the backends' tunnel ends could not be made:\n{done.stderr[-2000:]}")

    def _start_services(self) -> None:
        for key, (node, command) in services.commands(self.directory, self.topology).items():
            self.start(key, node, command)
        for node in self.topology.of_role("backend"):
            for port in (HTTP_PORT, PUSH_PORT):
                eventually(partial(self._listens, node, port), what=f"{node.name} listens on port {port}")

    def _listens(self, node: Node, port: int) -> bool:
        address = node.address(node.interfaces[0].segment.name, 4)

        def connect() -> bool:
            with socket.create_connection((address, port), timeout=1):
                return True

        return self.inside(node.name, connect)

    # -- processes ------------------------------------------------------------------------------------------------

    def namespace(self, node: str) -> str:
        if node not in self.topology.switches:
            try:
                self.topology.node(node)
            except KeyError as error:
                raise LabError(str(error.args[0])) from None
        return namespaces.full_name(self.name, node)

    def start(self, key: str, node: Node, command: Sequence[str]) -> Process:
        """Start a program in a node as "node/service", its output in log/node-service.log; recorded for `down`."""
        return self._launch(key, node.name, command, services.gateway_environment(self.directory, node.name))

    def start_in_switch(self, key: str, switch: str, command: Sequence[str]) -> Process:
        return self._launch(key, switch, command, services.environment())

    def _launch(self, key: str, node: str, command: Sequence[str], environment: dict[str, str]) -> Process:
        log = self.directory / "log" / f"{key.replace('/', '-')}.log"
        with state.changing(self.name) as record:
            child = namespaces.spawn(self.namespace(node), command, log=log, environment=environment)
            process = Process.of(child.pid)
            if process is None:
                raise LabError(f"{key} ended at once: {' '.join(command)}; see {log}")
            record.processes[key] = process
        self._reap(key)
        self._children[key] = child
        return process

    def _reap(self, key: str) -> None:
        child = self._children.pop(key, None)
        if child is not None and child.poll() is None:
            self._children[f"{key}#{child.pid}"] = child

    def forget(self, key: str) -> None:
        """Reap a child that was ended."""
        if key in self._children:
            self._children.pop(key).wait()

    def process(self, key: str) -> Process:
        record = state.load(self.name)
        if key not in record.processes:
            raise LabError(f"nothing called {key} was started in lab {self.name}")
        return record.processes[key]

    def stop(self, key: str) -> None:
        """SIGTERM, wait, SIGKILL if it must be; no error if it is not running."""
        namespaces.end([self.process(key)], grace_s=10.0)
        self.forget(key)

    def inside(self, node: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a function in a thread that is in the node's network namespace."""
        return namespaces.run_inside(self.namespace(node), function, *args, **kwargs)

    def run(
        self, node: str, command: Sequence[str], *, check: bool = True, timeout: float = 60.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in a node to its end; CalledProcessError, with what it said, if it fails and `check` is set."""
        environment = services.environment()
        if node not in self.topology.switches:
            environment = services.gateway_environment(self.directory, node)

        def execute() -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, env=services.whole_environment(environment)
            )

        done = self.inside(node, execute)
        if check and done.returncode != 0:
            raise LabCommandError(node, command, done)
        return done

    def json(self, node: str, command: Sequence[str], *, timeout: float = 60.0) -> Any:
        """Run a command that prints JSON; what it printed."""
        return json.loads(self.run(node, command, timeout=timeout).stdout)

    @contextmanager
    def traffic(self, program: str, *arguments: Argument, node: str = "client") -> Iterator[Traffic]:
        """Run a program of netlab.traffic while the block runs; its report is there afterwards."""
        run = Traffic(partial(self.inside, node), program, [str(argument) for argument in arguments])
        try:
            yield run
            run.finish()
        finally:
            run.abort()

    def measure(self, program: str, *arguments: Argument, node: str = "client", timeout: float = 60.0) -> Any:
        """Run a program of netlab.traffic to its end; its report."""
        return self.json(node, Traffic.command(program, [str(argument) for argument in arguments]), timeout=timeout)

    def established(self, node: str, which: str = "") -> int:
        """TCP connections that a node's own kernel has open; `which` filters them as in ss(8)."""
        command = ["ss", "-Htn", "state", "established", *([which] if which else [])]
        return len(self.run(node, command).stdout.splitlines())

    # -- gateways -------------------------------------------------------------------------------------------------

    @property
    def gateways(self) -> list[Node]:
        return self.topology.of_role("gateway")

    def start_gateways(self) -> None:
        """Start every daemon, wait until each answers, then hand the services to the first."""
        for node in self.gateways:
            self.start_daemon(node.name, wait=False)
        for node in self.gateways:
            self.wait_ready(node.name)
        self.apply(self.gateways[0].name, self.directory / "cluster.toml")

    def start_daemon(self, node: str, *, wait: bool = True) -> Process:
        host = self.topology.node(node)
        process = self.start(f"{node}/lbd", host, services.daemon_command(self.directory, host))
        if wait:
            self.wait_ready(node)
        return process

    def daemon(self, node: str) -> Process:
        return self.process(f"{node}/lbd")

    def wait_ready(self, node: str, seconds: float = READY_S) -> None:
        process = self.daemon(node)
        eventually(
            lambda: not process.alive() or self.api(node, "GET", "/v1/status"), seconds, f"daemon of {node} answers"
        )
        if not process.alive():
            log = self.directory / "log" / f"{node}-lbd.log"
            raise LabError(f"the daemon of {node} ended at its start:\n{tail(log)}")

    def apply(self, node: str, path: Path) -> None:
        """Make a declarative file the cluster's configuration, as `lbctl apply` does, without starting a process."""
        toml = {"Content-Type": "application/toml"}
        difference = self.api(node, "POST", "/v1/config/diff", path.read_text(), toml)
        if difference["changes"]:
            match = {"If-Match": f'"{difference["version"]}"'}
            self.api(node, "PUT", "/v1/config", path.read_text(), {**toml, **match})

    def api(self, node: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        """One request to a gateway's API and what its answer says; see `gateway_api.request`."""
        content = gateway_api.request(self.directory / node, method, path, body, headers)
        return json.loads(content) if content else None

    def lbctl(self, node: str, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return self.run(node, ["lbctl", *arguments], check=check)

    def ask(self, node: str, *arguments: str) -> Any:
        """`lbctl … --json` on a gateway."""
        return json.loads(self.lbctl(node, *arguments, "--json").stdout)


class LabCommandError(subprocess.CalledProcessError):
    """A command in a node failed; unlike its base it shows what the command said."""

    def __init__(self, node: str, command: Sequence[str], done: "subprocess.CompletedProcess[str]") -> None:
        super().__init__(done.returncode, list(command), done.stdout, done.stderr)
        self.node = node

    def __str__(self) -> str:
        said = (self.stderr or self.stdout or "").strip()
        return f"{self.node}: {' '.join(self.cmd)} failed with code {self.returncode}: {said[-2000:]}"


def known_topology(name: str) -> Topology:
    try:
        return TOPOLOGIES[name]
    except KeyError:
        raise LabError(f"no topology {name}; there are: {', '.join(TOPOLOGIES)}") from None


def tail(path: Path, lines: int = 20) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return f"({path} does not exist)"
