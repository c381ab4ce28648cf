# SPDX-License-Identifier: Apache-2.0
"""docs/lbctl.md and the manual page of lbctl, from its commands."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from tools.lbctl.exits import MEANING
from tools.lbctl.main import app
from tools.reference.roff import escaped

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `python -m tools.reference`; change the commands, not this file. -->
# lbctl

Looks at and operates a gateway and, through it, the whole cluster. Every command is one call of the
[HTTP API](api.md), except `doctor`, `key`, `token` and a `detach` without daemon, which work on this machine.

Where the API is: `--socket` or `LBCTL_SOCKET` (default `/run/lb/api.sock`), or for a remote gateway `--url` or
`LBCTL_URL` with `--token-file` or `LBCTL_TOKEN_FILE`. `--json` prints the API's answer instead of a table. Into a
pipe, tables are not cut to the terminal's width. `lbctl --install-completion` completes commands, and the live names of
services, backends, VIPs and nodes.
"""


def lbctl_markdown() -> str:
    """The whole of docs/lbctl.md."""
    root = get_command(app)
    parts = [HEAD, "## Exit codes\n", "| code | meaning |\n|---|---|"]
    parts += [f"| {code.value} | {text} |" for code, text in MEANING.items()]
    parts.append("")
    for path, command in _commands(root, ("lbctl",)):
        parts.append(_command_markdown(path, command))
    return "\n".join(parts).rstrip() + "\n"


def _commands(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its path. (typer brings a click of its own, whose types are not those of the package.)"""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def _usage(path: tuple[str, ...], command: Any) -> str:
    arguments = [_metavar(each) for each in command.params if each.param_type_name == "argument"]
    return " ".join([*path, "[OPTIONS]", *arguments])


def _metavar(argument: Any) -> str:
    name = str(argument.metavar or (argument.name or "").upper())
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _options(command: Any) -> Iterator[tuple[str, str]]:
    for each in command.params:
        if each.param_type_name == "option" and "--help" not in each.opts:
            value = "" if each.is_flag else f" {each.metavar or _kind(each)}"
            shown = each.default not in (None, False, (), []) and not callable(each.default)
            default = f" Default: {each.default}." if shown else ""
            yield f"{', '.join(each.opts)}{value}", f"{(each.help or '').strip()}{default}"


def _kind(option: Any) -> str:
    annotation = getattr(getattr(option, "type_descriptor", None), "annotation", None)
    return {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "FILE"}.get(annotation, "VALUE")  # type: ignore[arg-type]


def _command_markdown(path: tuple[str, ...], command: Any) -> str:
    lines = [f"## {' '.join(path)}\n", f"```\n{_usage(path, command)}\n```\n", (command.help or "").strip() + "\n"]
    rows = [f"| `{name}` | {text} |" for name, text in _options(command)]
    return "\n".join([*lines, *(["| option | |\n|---|---|", *rows, ""] if rows else [])])


def lbctl_page() -> str:
    """lbctl(8) in man(7) macros."""
    root = get_command(app)
    lines = ['.\\" SPDX-License-Identifier: Apache-2.0', '.TH LBCTL 8 "" rainlb "rainlb"', ".SH NAME"]
    lines += ["lbctl \\- look at and operate a rainlb gateway and its cluster", ".SH SYNOPSIS"]
    lines += ["\\fBlbctl\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]", ".SH OPTIONS"]
    lines += [line for name, text in _options(root) for line in (".TP", f"\\fB{escaped(name)}\\fR", escaped(text))]
    lines.append(".SH COMMANDS")
    for path, command in _commands(root, ("lbctl",)):
        lines += [
            ".TP",
            f"\\fB{escaped(_usage(path[1:], command))}\\fR",
            escaped(" ".join((command.help or "").split())),
        ]
        lines += [f".br\n\\fB{escaped(name)}\\fR: {escaped(text)}" for name, text in _options(command)]
    lines.append(".SH EXIT STATUS")
    lines += [line for code, text in MEANING.items() for line in (".TP", f"\\fB{code.value}\\fR", escaped(text))]
    lines += [".SH ENVIRONMENT", ".TP", "\\fBLBCTL_SOCKET\\fR, \\fBLBCTL_URL\\fR, \\fBLBCTL_TOKEN_FILE\\fR"]
    lines += ["where the API is, and the token for a remote one", ".SH FILES", ".TP", "\\fI/run/lb/api.sock\\fR"]
    lines += ["the API of the gateway on this machine", ".SH SEE ALSO", "\\fBlbd\\fR(8)"]
    return "\n".join(lines) + "\n"
