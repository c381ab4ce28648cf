# SPDX-License-Identifier: Apache-2.0
"""Commands that change something: drain, undrain, weight, apply, vip …, node …, detach."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.lbctl.client import CHANGE_TIMEOUT_S, ApiError, segment
from tools.lbctl.exits import Exit
from tools.lbctl.output import console, escaped, print_json
from tools.lbctl.session import BackendName, Json, NodeName, VipAddress, Yes, backend_path, client, complete_node

STYLE_OF_CHANGE = {"add": "green", "remove": "red", "change": "yellow"}

vip = typer.Typer(help="Move and hold VIPs.", no_args_is_help=True)
node = typer.Typer(help="Take gateways out of service and back.", no_args_is_help=True)


def _say(subject: str, answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        console().print(f"{escaped(subject)}: {escaped(answer['message'])}")


def drain(backend: BackendName, as_json: Json = False) -> None:
    """No new connections to a backend; existing ones stay."""
    _say(backend, client().post(backend_path(backend) + "/drain"), as_json)


def undrain(backend: BackendName, as_json: Json = False) -> None:
    """New connections to a backend again."""
    _say(backend, client().post(backend_path(backend) + "/undrain"), as_json)


def weight(
    backend: BackendName,
    value: Annotated[int, typer.Argument(metavar="WEIGHT", min=0, max=65535)],
    as_json: Json = False,
) -> None:
    """Change a backend's share of new connections; 0: no new ones."""
    _say(backend, client().post(backend_path(backend) + "/weight", {"weight": value}), as_json)


@vip.command()
def move(address: VipAddress, to: NodeName, as_json: Json = False) -> None:
    """Move a VIP to another node; connections go on there."""
    _say(address, client().post(f"/v1/vips/{segment(address)}/move", {"node": to}), as_json)


@vip.command()
def pin(
    address: VipAddress,
    to: Annotated[str | None, typer.Argument(metavar="[NODE]", autocompletion=complete_node)] = None,
    as_json: Json = False,
) -> None:
    """Keep a VIP on a node (default: where it is) whenever that node can serve."""
    _say(address, client().post(f"/v1/vips/{segment(address)}/pin", {"node": to}), as_json)


@vip.command()
def unpin(address: VipAddress, as_json: Json = False) -> None:
    """Let a VIP move again."""
    _say(address, client().post(f"/v1/vips/{segment(address)}/unpin"), as_json)


@vip.command()
def prefer(
    address: VipAddress,
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODE]...", autocompletion=complete_node)] = None,
    as_json: Json = False,
) -> None:
    """Nodes a VIP should be on, best first; none: no preference."""
    _say(address, client().post(f"/v1/vips/{segment(address)}/prefer", {"nodes": nodes or []}), as_json)


@node.command("drain")
def node_drain(name: NodeName, as_json: Json = False) -> None:
    """Take a node out of service in order: its VIPs move, its connections go on elsewhere."""
    _say(name, client().post(f"/v1/nodes/{segment(name)}/drain"), as_json)


@node.command("undrain")
def node_undrain(name: NodeName, as_json: Json = False) -> None:
    """Put a node into service again."""
    _say(name, client().post(f"/v1/nodes/{segment(name)}/undrain"), as_json)


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="Declarative file (TOML or .json); - for standard input.")],
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the difference.")] = False,
    as_json: Json = False,
) -> None:
    """Make the cluster serve what a file says: shows the difference first, then asks.

    All or nothing, on all gateways; live connections are left alone.
    """
    text, headers = _read_document(file)
    difference, _ = client().request("POST", "/v1/config/diff", text=text, headers=headers, timeout=CHANGE_TIMEOUT_S)
    if not as_json:
        _show_difference(difference)
    if dry_run or not difference["changes"]:
        if as_json:
            print_json(difference)
        return
    if not yes and not _confirmed(f"Apply {len(difference['changes'])} changes to the cluster?"):
        raise typer.Exit(Exit.ABORTED)
    conditional = {**headers, "if-match": f'"{difference["version"]}"'}
    applied, _ = client().request("PUT", "/v1/config", text=text, headers=conditional, timeout=CHANGE_TIMEOUT_S)
    if as_json:
        print_json(applied)
    else:
        console().print(f"applied: the configuration is version {applied['version']} now")


def _read_document(file: Path) -> tuple[str, dict[str, str]]:
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError("invalid", f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    media = "application/json" if file.suffix == ".json" else "application/toml"
    return text or "\n", {"content-type": media, "x-source": str(file).encode("ascii", "replace").decode()}


def _show_difference(difference: dict[str, Any]) -> None:
    out = console()
    for warning in difference.get("warnings", []):
        out.print(f"[yellow]warning:[/] {escaped(warning)}")
    for change in difference["changes"]:
        out.print(f"[{STYLE_OF_CHANGE.get(change['kind'], 'bold')}]{escaped(change['text'])}[/]")
    if not difference["changes"]:
        out.print(f"no difference: version {difference['version']} already says so")


def _confirmed(question: str) -> bool:
    """Asks on the terminal; without one the answer is no."""
    if not sys.stdin.isatty():
        console(to_stderr=True).print("not confirmed: there is no terminal to ask on; use --yes")
        return False
    return typer.confirm(question)


def detach(yes: Yes = False, as_json: Json = False) -> None:
    """Remove the packet path from this gateway's interfaces. Its connections are forgotten.

    Through lbd if it runs; otherwise the pins below --run-dir are removed directly (lbctl doctor shows them).
    """
    if not yes and not _confirmed("This gateway stops balancing at once. Detach?"):
        raise typer.Exit(Exit.ABORTED)
    try:
        _say("packet path", client().post("/v1/detach", {"confirm": True}), as_json)
    except ApiError as error:
        if error.code != "unavailable":
            raise
        from tools.lbctl.support import detach_without_daemon

        _say("packet path", detach_without_daemon(), as_json)
