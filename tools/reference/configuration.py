# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md, from the classes that the files are read into."""

from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin, get_type_hints

from annotated_types import Ge, Le, Len, Predicate

from lb.configuration.fields import ALLOWED_TEXT, is_address, is_interface_address, is_name, is_network
from lb.configuration.model import ClusterConfig
from lb.configuration.node import SCHEDULING_TEXT, NodeConfig, is_scheduling
from lb.configuration.schema import file_key, nested_class

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `python -m tools.reference`; change lb/configuration/model.py or node.py instead. -->
# Configuration reference

There are two files, both TOML. The **node file** (`/etc/rainlb/node.toml`) says what is local to one gateway and is
read when `lbd` starts. The **cluster file** says what the cluster serves; it is the same for all gateways, is applied
with `lbctl apply -f FILE` on any of them (which shows what would change first), and takes effect without a restart
and without touching live connections. Both are validated as a whole before anything is changed; an unknown key is an
error. `lbd --check --config FILE [--services FILE]` validates and does nothing else. Examples:
[examples/](examples/).

A *name* is 1 to 64 letters, digits, `-`, `_` or `.`, starting with a letter or digit.
"""

SHORT_TYPES = {is_name: "name", is_address: "address", is_interface_address: "address/prefix", is_network: "network"}
ALLOWED = {**ALLOWED_TEXT, is_scheduling: SCHEDULING_TEXT}


def configuration_markdown() -> str:
    """The whole of docs/configuration.md."""
    parts = [HEAD, "## The node file\n", *_tables(NodeConfig, "", set())]
    parts += ["## The cluster file\n", *_tables(ClusterConfig, "", set())]
    return "\n".join(parts).rstrip() + "\n"


def _tables(owner: type[Any], path: str, seen: set[type[Any]]) -> list[str]:
    hints = get_type_hints(owner, include_extras=True)
    shown = [item for item in fields(owner) if not item.metadata.get("internal")]
    plain = [item for item in shown if nested_class(hints[item.name]) is None]
    lines = []
    if path:
        lines += [f"### `{path}`\n", _description(owner), ""]
    if plain:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_row(item, hints[item.name]) for item in plain]
        lines.append("")
    for item in shown:
        inner = nested_class(hints[item.name])
        if inner is not None and inner not in seen:
            seen.add(inner)
            lines += _tables(inner, _header(path, item, hints[item.name]), seen)
    return lines


def _header(path: str, item: Field[Any], hint: Any) -> str:
    name = file_key(item)
    outer = path.strip("[]")
    full = f"{outer}.{name}" if outer else name
    if item.default_factory is dict:
        return f"[{full}.NAME]"
    return f"[[{full}]]" if _is_list(hint) else f"[{full}]"


def _is_list(hint: Any) -> bool:
    bare = get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
    return get_origin(bare) is tuple


def _description(owner: type[Any]) -> str:
    text = " ".join((owner.__doc__ or "").split())
    head, colon, rest = text.partition(": ")
    text = rest if colon and head.startswith("`[") else text
    return text[0].upper() + text[1:]


def _row(item: Field[Any], hint: Any) -> str:
    meaning = item.metadata["description"].replace("|", "\\|")
    return f"| `{file_key(item)}` | {_type(hint)} | {_default(item)} | {meaning} |"


def _default(item: Field[Any]) -> str:
    if item.default_factory is not MISSING:
        return "empty"
    if item.default is MISSING:
        return "**required**"
    if isinstance(item.default, bool):
        return f"`{str(item.default).lower()}`"
    return "empty" if item.default in ("", ()) else f"`{item.default}`"


def _type(hint: Any) -> str:
    if hasattr(hint, "__metadata__"):
        for limit in hint.__metadata__:
            if isinstance(limit, Predicate) and limit.func in SHORT_TYPES:
                return SHORT_TYPES[limit.func]
        return _type(get_args(hint)[0]) + _limits(hint.__metadata__)
    if get_origin(hint) is tuple:
        return f"list of {_type(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return "table"
    literals = [argument for argument in get_args(hint) if isinstance(argument, str)]
    if literals:
        return ", ".join(f"`{literal}`" for literal in literals)
    return {str: "text", int: "number", bool: "`true`, `false`"}.get(hint, getattr(hint, "__name__", str(hint)))


def _limits(metadata: tuple[Any, ...]) -> str:
    lowest = next((limit.ge for limit in metadata if isinstance(limit, Ge)), None)
    highest = next((limit.le for limit in metadata if isinstance(limit, Le)), None)
    if lowest is not None and highest is not None:
        return f" {lowest} to {highest}"
    for limit in metadata:
        if isinstance(limit, Predicate):
            return f": {ALLOWED[limit.func]}"
        if isinstance(limit, Len):
            return f" ({limit.min_length} to {limit.max_length})"
    return ""
