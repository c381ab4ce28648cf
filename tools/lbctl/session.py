# SPDX-License-Identifier: Apache-2.0
"""What all commands share: where the API is, the options that say so, and names for completion."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.lbctl.client import DEFAULT_SOCKET, ApiError, Client, segment

COMPLETION_TIMEOUT_S = 0.5

Json = Annotated[bool, typer.Option("--json", help="JSON for scripts instead of a table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_chosen: dict[str, str | None] = {}


def choose(socket: str | None, url: str | None, token_file: str | None, ca_file: str | None) -> None:
    """Remember the global options."""
    _chosen.update(place=url or socket, token_file=token_file, ca_file=ca_file)


def place() -> str:
    """Socket or URL: the option, then LBCTL_URL, LBCTL_SOCKET, then the default."""
    return _chosen.get("place") or os.environ.get("LBCTL_URL") or os.environ.get("LBCTL_SOCKET") or DEFAULT_SOCKET


def client() -> Client:
    """The API as the options and the environment (LBCTL_*) say."""
    token_file = _chosen.get("token_file") or os.environ.get("LBCTL_TOKEN_FILE")
    ca_file = _chosen.get("ca_file")
    try:
        token = Path(token_file).read_text().strip() if token_file else None
    except OSError as error:
        raise ApiError("denied", f"cannot read the token file {token_file}: {error.strerror}") from error
    return Client(place(), token, Path(ca_file) if ca_file else None)


def backend_path(name: str) -> str:
    """The API path of a backend given as SERVICE/BACKEND. Raises typer.BadParameter."""
    service, slash, backend = name.partition("/")
    if not (service and slash and backend):
        raise typer.BadParameter(f"'{name}' is not SERVICE/BACKEND, for example web/b1 (lbctl backends lists them)")
    return f"/v1/backends/{segment(service)}/{segment(backend)}"


def _live(path: str) -> list[dict[str, Any]]:
    """Rows for completion; none rather than an error or a long wait."""
    try:
        return list(client().request("GET", path, timeout=COMPLETION_TIMEOUT_S)[0])
    except (ApiError, TypeError):
        return []


def complete_backend(incomplete: str) -> list[str]:
    names = (f"{row['service']}/{row['name']}" for row in _live("/v1/backends"))
    return [name for name in names if name.startswith(incomplete)]


def complete_service(incomplete: str) -> list[str]:
    return [row["name"] for row in _live("/v1/services") if row["name"].startswith(incomplete)]


def complete_node(incomplete: str) -> list[str]:
    return [row["name"] for row in _live("/v1/nodes") if row["name"].startswith(incomplete)]


def complete_vip(incomplete: str) -> list[str]:
    addresses = (row["address"].partition("/")[0] for row in _live("/v1/vips"))
    return [address for address in addresses if address.startswith(incomplete)]


BackendName = Annotated[str, typer.Argument(metavar="SERVICE/BACKEND", autocompletion=complete_backend)]
NodeName = Annotated[str, typer.Argument(metavar="NODE", autocompletion=complete_node)]
VipAddress = Annotated[str, typer.Argument(metavar="ADDRESS", autocompletion=complete_vip)]
