# SPDX-License-Identifier: Apache-2.0
"""Commands around trouble: doctor, capture, report; and detaching when no daemon is left to ask."""

import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.lbctl.client import DEFAULT_SOCKET, ApiError
from tools.lbctl.exits import Exit
from tools.lbctl.output import Column, console, escaped, plain, print_json, table
from tools.lbctl.session import Json, client, complete_service, place
from tools.lbctl.trouble import troubles

REPORT_PATHS = (
    "status", "nodes", "vips", "services", "backends", "counters", "events?limit=10000", "config", "doctor",
    "connections?limit=100", "connections/top?by=service,state&limit=100",
)  # fmt: skip
REPORT_COMMANDS = (
    ("uname", "-a"),
    ("ip", "address"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "neighbour"),
    ("ip", "-s", "-d", "link"),
    ("journalctl", "-u", "lbd", "-u", "lb-api", "-n", "5000", "--no-pager"),
    ("systemctl", "status", "lbd", "lb-api", "--no-pager"),
)
COMMAND_TIMEOUT_S = 10
ROUTING_CHECK = "routing daemon"
SECRET_NAME = re.compile(r"secret|password|token|private|(^|_)key$|credential|authorization", re.IGNORECASE)
SECRET_LINE = re.compile(r"(?i)\b((?:authorization|password|secret|token|bearer)\b\s*[:= ]\s*)(?:bearer\s+)?\S+")
CHECK_COLUMNS = (
    Column("", lambda row: "[green]✓[/]" if row["ok"] else "[red]✗[/]" if row["required"] else "[yellow]–[/]"),
    Column("WHAT", plain("name")),
    Column("FOUND", plain("detail")),
    Column("REMEDY", lambda row: "" if row["ok"] else escaped(row.get("remedy") or "")),
)


def run_directory() -> Path:
    """Where the daemon's sockets and pins are, as far as the chosen socket tells."""
    return Path(DEFAULT_SOCKET if place().startswith("http") else place()).parent


def host_checks(interfaces: list[str]) -> list[dict[str, Any]]:
    """What this host can do, found out in this process: no daemon is asked."""
    from ebpf.probe import probe

    return [asdict(check) for check in probe(interfaces)]


def process_checks() -> list[dict[str, Any]]:
    """Whether daemon and API answer."""
    checks = []
    for name, file in (("lbd", "control.sock"), ("API", "api.sock")):
        path = run_directory() / file
        answers = _accepts(path)
        remedy = None if answers else "systemctl status lbd lb-api; journalctl -u lbd -u lb-api -n 50"
        detail = f"answers on {path}" if answers else f"nobody answers on {path}"
        checks.append({"name": name, "ok": answers, "required": False, "detail": detail, "remedy": remedy})
    return checks


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def pin_checks() -> list[dict[str, Any]]:
    """What the packet path has pinned here, and on which interfaces it runs."""
    from ebpf import loader

    checks = []
    for directory in pinned_nodes():
        programs = loader.current_programs(directory)
        detail = f"{directory.name}: {programs.name if programs else 'maps only'} in {directory}"
        checks.append({"name": "packet path", "ok": programs is not None, "required": False, "detail": detail})
    return checks


def pinned_nodes() -> list[Path]:
    """Directories of nodes that have pins below the run directory."""
    root = run_directory() / "bpf"
    return sorted(path for path in root.iterdir() if (path / "maps").is_dir()) if root.is_dir() else []


def cluster_checks() -> list[dict[str, Any]]:
    """What is wrong in the cluster, in the eyes of this gateway; nothing where no daemon can be asked."""
    try:
        found = troubles(*(client().get(f"/v1/{kind}") for kind in ("nodes", "vips", "services", "backends")))
    except ApiError:
        return []
    told = found or ["nothing is wrong"]
    return [{"name": "cluster", "ok": not found, "required": False, "detail": text} for text in told]


def routing_checks() -> list[dict[str, Any]]:
    """What only a running gateway can tell: whether it needs a routing daemon, and has one."""
    try:
        checks = client().get("/v1/doctor")["checks"]
    except ApiError:
        return []
    return [check for check in checks if check["name"] == ROUTING_CHECK]


def doctor(
    interface: Annotated[list[str] | None, typer.Option("--interface", "-i", help="Interfaces to look at.")] = None,
    as_json: Json = False,
) -> None:
    """What this host can do for rainlb, what is missing, and how to get it. Needs no daemon; with one, also what is
    wrong in the cluster."""
    checks = host_checks(interface or network_interfaces()) + process_checks() + pin_checks()
    checks += routing_checks() + cluster_checks()
    sound = all(check["ok"] or not check["required"] for check in checks)
    if as_json:
        print_json({"ok": sound, "checks": checks})
    else:
        out = console()
        out.print(table(checks, CHECK_COLUMNS))
        verdict = "[green]this host can run rainlb[/]" if sound else "[red]something required is missing[/], see above"
        out.print(f"\n{verdict}")
    if not sound:
        raise typer.Exit(Exit.LACKING)


def network_interfaces() -> list[str]:
    """Of this network namespace: /sys may show another one's."""
    return sorted(name for _, name in socket.if_nameindex() if name != "lo")


def detach_without_daemon() -> dict[str, Any]:
    """Takes our program off every interface of this network namespace and removes the pins. Raises ApiError."""
    from ebpf import loader, probe_path

    if os.geteuid() != 0:
        raise ApiError("denied", "detaching without the daemon needs root", remedy="sudo lbctl detach")
    nodes = pinned_nodes()
    if not nodes:
        raise ApiError(
            "not_found", f"nothing is pinned below {run_directory() / 'bpf'}", remedy="name it with --socket"
        )
    freed = []
    for directory in nodes:
        freed += [name for name in network_interfaces() if loader.detach(name, directory)]
        probe_path.detach(network_interfaces(), directory)
        loader.remove(directory)
    text = f"detached from {', '.join(freed)}" if freed else "was attached to no interface here"
    return {"message": f"{text}; pins removed", "interfaces": freed}


def capture(
    file: Annotated[Path, typer.Option("--write", "-w", help="pcapng file to write; - for standard output.")],
    packets: Annotated[int, typer.Option("--packets", "-c", min=1, help="Stop after so many.")] = 10_000,
    seconds: Annotated[float, typer.Option("--seconds", "-t", min=0.1, help="Stop after this time.")] = 10.0,
    address: Annotated[str | None, typer.Option(help="Only packets from or to it.")] = None,
    port: Annotated[int | None, typer.Option(help="Only packets from or to it.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this verdict (lbctl counters --all lists them).")] = None,
    service: Annotated[str | None, typer.Option(autocompletion=complete_service, help="Only of this service.")] = None,
) -> None:
    """Mirror packets as they leave the packet path, each with its verdict as a comment, into a pcapng file."""
    body = {
        "packets": packets, "seconds": seconds, "address": address, "port": port, "reason": reason, "service": service,
    }  # fmt: skip
    pieces = client().download("/v1/capture", body, timeout=seconds + 15)
    size = 0
    with open("/dev/stdout" if str(file) == "-" else file, "wb") as out:
        for piece in pieces:
            size += out.write(piece)
            out.flush()
    if str(file) != "-":
        console(to_stderr=True).print(f"{size:,} bytes in {escaped(file)}")


def without_secrets(value: Any) -> Any:
    """A copy of a JSON value with everything that is called like a secret removed."""
    if isinstance(value, dict):
        return {
            name: "(removed)"
            if SECRET_NAME.search(name) and not isinstance(item, (dict, list))
            else without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return SECRET_LINE.sub(r"\1(removed)", value) if isinstance(value, str) else value


def report(
    file: Annotated[Path | None, typer.Option("--output", "-o", help="Default: rainlb-report-HOST-TIME.tar.gz")] = None,
) -> None:
    """One archive for support: state, configuration, events, metrics, logs of this gateway; secrets removed.

    Works as far as it can when daemon or API are down; what could not be had is noted in the archive.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S")
    target = file or Path(f"rainlb-report-{platform.node()}-{stamp}.tar.gz")
    with tarfile.open(target, "w:gz") as archive:
        for name, content in report_files():
            data = content.encode()
            entry = tarfile.TarInfo(f"rainlb-report/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
    target.chmod(0o600)
    console().print(f"{escaped(target)} written; read it before you send it")


def report_files() -> Iterator[tuple[str, str]]:
    """(name, text) of everything that goes into the archive."""
    for path in REPORT_PATHS:
        name = re.sub(r"[/?].*", "", path) + ("-top" if "/top" in path else "")
        yield f"api/{name}.json", _api_text(f"/v1/{path}")
    yield "metrics.txt", _api_text("/metrics")
    yield "doctor.json", json.dumps(host_checks(network_interfaces()) + process_checks(), indent=1)
    for command in REPORT_COMMANDS:
        yield f"host/{'-'.join(command[:2]).replace('--', '-')}.txt", _command_text(command)


def _api_text(path: str) -> str:
    try:
        answer, _ = client().request("GET", path)
    except ApiError as error:
        return f"not available: {error.message}\n"
    return answer if isinstance(answer, str) else json.dumps(without_secrets(answer), indent=1, ensure_ascii=False)


def _command_text(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return f"not available: no {command[0]} on this host\n"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, errors="replace")
    except subprocess.TimeoutExpired:
        return f"not available: took over {COMMAND_TIMEOUT_S} s\n"
    return SECRET_LINE.sub(r"\1(removed)", done.stdout + done.stderr)
