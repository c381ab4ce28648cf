# SPDX-License-Identifier: Apache-2.0
"""A gateway without packets: lbd's control protocol over a real socket, its answers from a small state in memory."""

import asyncio
import contextlib
import hashlib
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netlab.ports import free_ports
from netlab.waiting import PATIENCE_S, eventually

from ebpf.loader import create_maps, mounted_bpffs
from ebpf.maps import Maps
from lb.configuration.document import toml_text
from lb.control.protocol import encode_frame, read_frame
from tools.lbctl.client import Client

ROOT = Path(__file__).resolve().parents[2]
NODES = ("gw1", "gw2", "gw3")


class Refusal(Exception):
    def __init__(self, code: str, message: str, **more: str) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, **more}


class ControlDouble:
    """lbd's side of the control socket, in a thread of its own with a loop of its own."""

    def __init__(self, path: Path, cluster: str = "test") -> None:
        self.path, self.cluster = path, cluster
        self._writers: list[asyncio.StreamWriter] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None
        self.reset()

    def reset(self) -> None:
        """Back to the state every test begins with; connections stay."""
        self.started = time.time()
        self.version = 3
        self.callers: list[tuple[str, dict[str, Any]]] = []
        self.owner: dict[str, str | None] = {"10.0.1.100": "gw1", "2001:db8:1::100": "gw2"}
        self.routed: list[str] = []
        self.pin: dict[str, str | None] = {}
        self.prefer: dict[str, list[str]] = {}
        self.drained: set[str] = set()
        self.gone: set[str] = set()
        self.backend_drain: dict[tuple[str, str], bool] = {("web", "b1"): False, ("web", "b2"): False}
        self.weight: dict[tuple[str, str], int] = {("web", "b1"): 1, ("web", "b2"): 2}
        self.journal: list[dict[str, Any]] = []

    # -- life

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)))
        self._thread.start()
        assert ready.wait(PATIENCE_S)

    def stop(self) -> None:
        if self._loop and self._stop and self._thread:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
            self._thread = None

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_unix_server(self._serve, str(self.path))
        ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                request = await read_frame(reader)
                writer.write(encode_frame(self._answer(request, writer)))
        writer.close()

    def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        method, params = request["method"], request["params"]
        if method == "subscribe":
            self._writers.append(writer)
            return {"id": request["id"], "result": {}}
        self.callers.append((method, request["caller"]))
        handler: Callable[..., Any] | None = getattr(self, "on_" + method.replace(".", "_"), None)
        try:
            if handler is None:
                raise Refusal("not_found", f"no method {method}")
            return {"id": request["id"], "result": handler(**params)}
        except Refusal as refusal:
            return {"id": request["id"], "error": refusal.error}

    def emit(self, kind: str, message: str, **more: Any) -> None:
        """An event, from any thread or from a handler."""
        event = {"id": len(self.journal) + 1, "time": time.time(), "kind": kind, "message": message, **more}
        self.journal.append(event)
        frame = encode_frame({"stream": 0, "event": event})
        assert self._loop
        for writer in self._writers:
            self._loop.call_soon_threadsafe(writer.write, frame)

    # -- what lbd answers

    def on_status(self) -> dict[str, Any]:
        members = [node for node in NODES if node not in self.gone]
        return {
            "cluster": self.cluster, "node": "gw1", "node_id": 1, "version": "0.1.0", "state": "in_service",
            "started_at": self.started, "uptime_s": time.time() - self.started, "config_version": self.version,
            "view": {"number": 70 + len(self.gone), "group": 1, "members": members}, "loop_lag_ms": 0.4,
            "interfaces": [{"name": "lan0", "segment": "inside", "xdp_mode": "generic"}],
            "service_count": 1, "backend_count": 2, "vip_count": 2,
        }  # fmt: skip

    def on_nodes(self) -> list[dict[str, Any]]:
        def state(name: str) -> str:
            return "gone" if name in self.gone else "draining" if name in self.drained else "in_service"

        return [
            {
                "name": name, "id": number, "state": state(name), "in_view": name not in self.gone,
                "view": None if name in self.gone else 70 + len(self.gone),
                "drained": name in self.drained, "version": "0.1.0", "uptime_s": 100.0 * number,
                "reason": "no answer to the token" if name in self.gone else None,
                "config_version": self.version, "loop_lag_ms": 0.5, "token_rate": 20.0, "token_turn_ms": 16.0,
                "packets_per_s": 1000.0 * number, "bits_per_s": 1e6 * number, "connections": 10 * number,
                "vip_count": sum(owner == name for owner in self.owner.values()),
                "resources": [{"name": "uplink", "kind": "link", "required": True, "healthy": True}],
            }
            for number, name in enumerate(NODES, 1)
        ]  # fmt: skip

    def on_vips(self) -> list[dict[str, Any]]:
        return [
            {
                "address": f"{address}/{64 if ':' in address else 24}", "segment": "inside", "owner": owner,
                "announce": "arp", "owners": [owner] if owner else [],
                "since": self.started, "reason": "first in the ring", "lease_ms": 40.0,
                "prefer": self.prefer.get(address, []), "pin": self.pin.get(address), "state": "held",
            }
            for address, owner in self.owner.items()
        ] + [
            {
                "address": f"{address}/32", "announce": "route", "segment": None, "owner": None,
                "owners": [name for name in NODES if name not in self.drained | self.gone],
                "since": None, "reason": "announced as a route", "lease_ms": 40.0, "prefer": [], "pin": None,
                "state": "held",
            }
            for address in self.routed
        ]  # fmt: skip

    def on_services(self) -> list[dict[str, Any]]:
        return [
            {
                "name": "web", "id": 1, "address": "10.0.1.100", "port": 80, "protocol": "tcp", "forward": "nat",
                "scheduler": "maglev", "persistence_s": 0, "replicate": "established", "on_backend_death": "reset",
                "backend_count": 2, "backends_up": 2,
            }
        ]  # fmt: skip

    def on_backends(self) -> list[dict[str, Any]]:
        return [
            {
                "service": service, "name": name, "id": number, "address": f"10.0.2.1{number}", "port": 8080,
                "weight": self.weight[service, name], "connections_max": 0, "drain": drain,
                "state": "draining" if drain else "up",
            }
            for number, ((service, name), drain) in enumerate(self.backend_drain.items(), 1)
        ]  # fmt: skip

    def on_events(self, after: int, limit: int) -> list[dict[str, Any]]:
        return [event for event in self.journal if event["id"] > after][:limit] if after else self.journal[-limit:]

    def on_metrics(self) -> list[dict[str, Any]]:
        return []

    def on_config_get(self) -> dict[str, Any]:
        content = {"vip": [{"address": "10.0.1.100/24", "segment": "inside"}]}
        return {"version": self.version, "document": content, "text": toml_text(content)}

    def on_config_diff(self, text: str, format: str, source: str) -> dict[str, Any]:
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Refusal("invalid", f"{source}: {error}", field="service[0].port") from error
        change: dict[str, Any] = {
            "kind": "add",
            "path": "service[web2]",
            "before": None,
            "after": {},
            "text": "+ service[web2] tcp",
        }
        return {"version": self.version, "changes": [change] if text.strip() else [], "warnings": []}

    def on_config_apply(self, text: str, format: str, source: str, if_version: int) -> dict[str, Any]:
        found = self.on_config_diff(text, format, source)
        if if_version != self.version:
            raise Refusal("version_mismatch", f"it is version {self.version} by now, not {if_version}")
        self.version += 1
        self.emit("config.applied", f"version {self.version}")
        return {**found, "version": self.version}

    def _backend(self, service: str, backend: str) -> tuple[str, str]:
        if (service, backend) not in self.backend_drain:
            raise Refusal("not_found", f"no backend {service}/{backend}", remedy="lbctl backends lists them")
        return service, backend

    def on_backend_drain(self, service: str, backend: str) -> dict[str, Any]:
        self.backend_drain[self._backend(service, backend)] = True
        return {}

    def on_backend_undrain(self, service: str, backend: str) -> dict[str, Any]:
        self.backend_drain[self._backend(service, backend)] = False
        return {}

    def on_backend_weight(self, service: str, backend: str, weight: int) -> dict[str, Any]:
        self.weight[self._backend(service, backend)] = weight
        return {}

    def _vip(self, address: str) -> str:
        if address not in self.owner:
            raise Refusal("not_found", f"no VIP {address}")
        return address

    def _node(self, node: str) -> str:
        if node not in NODES or node in self.gone:
            raise Refusal("not_found", f"no node {node}")
        return node

    def on_vip_move(self, address: str, node: str) -> dict[str, Any]:
        self.owner[self._vip(address)] = self._node(node)
        self.emit("vip.moved", f"{address} moved to {node}", node=node, subject=address)
        return {}

    def on_vip_pin(self, address: str, node: str | None) -> dict[str, Any]:
        known = self._vip(address)
        self.pin[known] = node or self.owner[known]
        return {}

    def on_vip_unpin(self, address: str) -> dict[str, Any]:
        self.pin.pop(self._vip(address), None)
        return {}

    def on_vip_prefer(self, address: str, nodes: list[str]) -> dict[str, Any]:
        self.prefer[self._vip(address)] = [self._node(node) for node in nodes]
        return {}

    def on_node_drain(self, node: str) -> dict[str, Any]:
        self.drained.add(self._node(node))
        return {}

    def on_node_undrain(self, node: str) -> dict[str, Any]:
        self.drained.discard(self._node(node))
        return {}

    def on_capture_start(self, seconds: float, service: int) -> dict[str, Any]:
        return {}

    def on_capture_stop(self) -> dict[str, Any]:
        return {}

    def on_detach(self) -> dict[str, Any]:
        return {}


@contextlib.contextmanager
def control_double(path: Path, cluster: str = "test") -> Iterator[ControlDouble]:
    double = ControlDouble(path, cluster)
    double.start()
    try:
        yield double
    finally:
        double.stop()


@dataclass
class RunningApi:
    """The API process itself, over a control double and real pinned maps."""

    directory: Path
    control: ControlDouble
    maps: Maps
    process: subprocess.Popen[bytes]
    tls_port: int = 0

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "api.sock"

    @property
    def audit_file(self) -> Path:
        return self.directory / "state" / "audit.jsonl"

    def client(self) -> Client:
        return Client(str(self.socket))


MAP_SIZES = {"connections": 1 << 16, "half_open": 1024, "records": 1 << 16, "captures": 1 << 16}


@contextlib.contextmanager
def running_api(
    directory: Path, extra: str = "", sizes: dict[str, int] | None = None, cluster: str = "test"
) -> Iterator[RunningApi]:
    """Everything started; node file, sockets, pins and state below directory."""
    (directory / "run").mkdir(parents=True)
    config = directory / "node.toml"
    config.write_text(
        f'cluster = "{cluster}"\n[node]\nname = "gw1"\nid = 1\n'
        f'run_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
        f'[[interface]]\nname = "lo"\nsegment = "inside"\n{extra}'
    )
    with (
        mounted_bpffs(directory / "run" / "bpf") as mount,
        contextlib.closing(create_maps(mount / "gw1" / "maps", {**MAP_SIZES, **(sizes or {})})) as maps,
        control_double(directory / "run" / "control.sock", cluster) as control,
    ):
        process = subprocess.Popen([sys.executable, "-m", "lb.api", "--config", str(config)], cwd=ROOT)
        api = RunningApi(directory, control, maps, process)
        try:
            eventually(lambda: api.socket.exists() or process.poll() is not None)
            assert process.poll() is None, "the API process ended at once"
            yield api
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


TOKEN = "a-token-for-tests"


def make_certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return certificate, key


def tls_listener(directory: Path, role: str = "configure", allow_origins: Sequence[str] = ()) -> tuple[int, str]:
    """A free port, and the [api] table of a listener there that takes TOKEN for role."""
    (port,) = free_ports(kind=socket.SOCK_STREAM)
    certificate, key = make_certificate(directory)
    tokens = directory / "tokens"
    tokens.write_text(f"{role}:tester:{hashlib.sha256(TOKEN.encode()).hexdigest()}  # made by a test\n")
    tokens.chmod(0o600)
    return port, (
        f'[api]\nlisten = "127.0.0.1:{port}"\ncertificate_file = "{certificate}"\nprivate_key_file = "{key}"\n'
        f'tokens_file = "{tokens}"\nallow_origins = {list(allow_origins)!r}\n'
    )
