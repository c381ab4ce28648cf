# SPDX-License-Identifier: Apache-2.0
"""Writes docs/lbctl.md, docs/api.md and the man page from the commands and the API's own description.

    python -m tools.lbctl.reference [--check]

A test runs the check, so the documents cannot fall behind.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from tools.lbctl.exits import MEANING
from tools.lbctl.main import app

ROOT = Path(__file__).resolve().parents[2]
SPDX = "<!-- SPDX-License-Identifier: Apache-2.0 -->"
GENERATED = "<!-- Written by `python -m tools.lbctl.reference`; change the commands, not this file. -->"

LBCTL_HEAD = """# lbctl

Looks at and operates a gateway and, through it, the whole cluster. Every command is one call of the
[HTTP API](api.md), except `doctor`, `key`, `token` and a `detach` without daemon, which work on this machine.

Where the API is: `--socket` or `LBCTL_SOCKET` (default `/run/lb/api.sock`), or for a remote gateway `--url` or
`LBCTL_URL` with `--token-file` or `LBCTL_TOKEN_FILE`. `--json` prints the API's answer instead of a table. Into a
pipe, tables are not cut to the terminal's width. `lbctl --install-completion` completes commands, and the live names of
services, backends, VIPs and nodes.
"""

API_HEAD = """# HTTP API

JSON over HTTP on the Unix socket `<run_dir>/api.sock` (mode 0660, group `lb`), served by the process `lb-api`. It
joins what lbd knows with what it reads itself from the packet path's maps, and goes on answering from the maps while
lbd is away. The machine-readable description is at `/openapi.json`; `lbctl` and the page use nothing else.

```sh
curl --unix-socket /run/lb/api.sock http://lb/v1/status
curl --unix-socket /run/lb/api.sock -N http://lb/v1/stream
curl --unix-socket /run/lb/api.sock http://lb/metrics
```

## Who may do what

Three roles, each containing the one before: `read`, `operate` (drain, move, where, capture), `configure` (apply,
detach). On the socket the kernel tells who asks: root configures, the socket's group operates, and `[api]` in the node
file says otherwise:

```toml
[api]
group = "lb"                                  # may open the socket
access = [
  { user = "deploy", role = "configure" },
  { group = "monitoring", role = "read" },
]
listen = "192.0.2.1:8443"                     # off unless set; needs the three files
certificate_file = "/etc/rainlb/api.pem"
private_key_file = "/etc/rainlb/api.key"
tokens_file = "/etc/rainlb/tokens"            # lbctl token new /etc/rainlb/tokens --name NAME --role ROLE
allow_origins = ["https://gw1.other.example:8443"]  # pages of other clusters that may watch this one
```

Every change, and every refused one, is a line in `<state_dir>/audit.jsonl`: who, from where, what, with which outcome.

## Prometheus

`/metrics` on the TLS listener, with a token of the role `read`; one job per cluster:

```yaml
scrape_configs:
  - job_name: my-cluster
    scheme: https
    authorization: {credentials_file: /etc/prometheus/rainlb.token}
    static_configs: [{targets: ["gw1.example:8443", "gw2.example:8443", "gw3.example:8443"]}]
rule_files: [rainlb.rules.yml]   # docs/alerts/rainlb.rules.yml
```

The dashboard is `docs/grafana/rainlb.json`.

## Changing the configuration

`GET /v1/config` gives the version as ETag; `PUT /v1/config` must name it in `If-Match`. If somebody else was faster the
answer is 412 `version_mismatch` and nothing is changed. `POST /v1/config/diff` tells what would change.

## Live stream

`GET /v1/stream` sends server-sent events. `status`, `nodes`, `vips`, `services`, `backends` and `counters` carry the
whole state of their kind, at first and whenever it changes (at most about once a second, at once after an event);
`event` is an entry of the event journal; `link` says whether lbd answers; `lost` says how many events a client that
reads too slowly has missed.

## Errors

Every answer that is no success is `{"code", "message", "field"?, "remedy"?}`. `code` is for programs:

| code | HTTP status |
|---|---|
"""


def lbctl_markdown() -> str:
    """The whole of docs/lbctl.md."""
    root = get_command(app)
    parts = [SPDX, GENERATED, LBCTL_HEAD, "## Exit codes\n", "| code | meaning |\n|---|---|"]
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


def man_page() -> str:
    """lbctl(8) in man(7) macros."""
    root = get_command(app)
    lines = ['.\\" SPDX-License-Identifier: Apache-2.0', '.TH LBCTL 8 "" rainlb "rainlb"', ".SH NAME"]
    lines += ["lbctl \\- look at and operate a rainlb gateway and its cluster", ".SH SYNOPSIS"]
    lines += ["\\fBlbctl\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]", ".SH OPTIONS"]
    lines += [line for name, text in _options(root) for line in (".TP", f"\\fB{_roff(name)}\\fR", _roff(text))]
    lines.append(".SH COMMANDS")
    for path, command in _commands(root, ("lbctl",)):
        lines += [".TP", f"\\fB{_roff(_usage(path[1:], command))}\\fR", _roff(" ".join((command.help or "").split()))]
        lines += [f".br\n\\fB{_roff(name)}\\fR: {_roff(text)}" for name, text in _options(command)]
    lines.append(".SH EXIT STATUS")
    lines += [line for code, text in MEANING.items() for line in (".TP", f"\\fB{code.value}\\fR", _roff(text))]
    lines += [".SH ENVIRONMENT", ".TP", "\\fBLBCTL_SOCKET\\fR, \\fBLBCTL_URL\\fR, \\fBLBCTL_TOKEN_FILE\\fR"]
    lines += ["where the API is, and the token for a remote one", ".SH FILES", ".TP", "\\fI/run/lb/api.sock\\fR"]
    lines += ["the API of the gateway on this machine", ".SH SEE ALSO", "\\fBlbd\\fR(8)"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def api_markdown() -> str:
    """The whole of docs/api.md."""
    from lb.api.problems import STATUS_OF_CODE
    from lb.api.routes import description

    described = description()
    parts = [SPDX, GENERATED, API_HEAD.rstrip()]
    parts += [f"| `{code}` | {status.value} |" for code, status in STATUS_OF_CODE.items()]
    parts.append("\n## Calls\n")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation_markdown(method, path, operation))
    parts.append("## Answers and bodies\n")
    parts += [_schema_markdown(name, schema) for name, schema in sorted(described["components"]["schemas"].items())]
    return "\n".join(parts).rstrip() + "\n"


def _operation_markdown(method: str, path: str, operation: dict[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}\n", f"{operation['summary']}. {operation['description']}\n"]
    rows = [
        f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {_text(each)} |"
        for each in operation["parameters"]
    ]
    if rows:
        lines += ["| parameter | in | type | |\n|---|---|---|---|", *rows, ""]
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        lines.append("Body: " + ", ".join(f"`{media}` {_type(each['schema'])}" for media, each in body.items()) + ".")
    for media, each in operation["responses"]["200"]["content"].items():
        lines.append(f"Answer: `{media}` {_type(each['schema'])}.\n")
    return "\n".join(lines)


def _text(thing: dict[str, Any]) -> str:
    text = thing.get("description") or thing["schema"].get("description", "")
    default = thing["schema"].get("default")
    return text if default is None else f"{text} Default: `{default}`.".strip()


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        return " \\| ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type", "anything"))


def _schema_markdown(name: str, schema: dict[str, Any]) -> str:
    lines = [f"### {name}\n"]
    if schema.get("description"):
        lines.append(schema["description"] + "\n")
    needed = set(schema.get("required", []))
    rows = [
        f"| `{field}`{'' if field in needed else ' (optional)'} | {_type(each)} | {each.get('description', '')} |"
        for field, each in schema.get("properties", {}).items()
    ]
    return "\n".join([*lines, "| field | type | |\n|---|---|---|", *rows, ""])


DOCUMENTS = {"docs/lbctl.md": lbctl_markdown, "docs/api.md": api_markdown, "docs/man/lbctl.8": man_page}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the documents are up to date")
    check = parser.parse_args().check
    stale = [name for name, make in DOCUMENTS.items() if _content(ROOT / name) != make()]
    for name in stale:
        if check:
            print(f"{name} is out of date: python -m tools.lbctl.reference", file=sys.stderr)
        else:
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(DOCUMENTS[name]())
            print(f"{name} written")
    sys.exit(1 if check and stale else 0)


def _content(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    main()
