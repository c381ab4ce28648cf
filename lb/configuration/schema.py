# SPDX-License-Identifier: Apache-2.0
"""Validates configuration files and says, for each fault, where it is, what was found and what is allowed.

Runs as a short-lived child of the daemon (`python -m lb.configuration.schema`: requests in, msgpack out), because the
validator's memory is not to stay in a daemon that needs it once a month. The API process and the tools may import it.
"""

import difflib
import ipaddress
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

import msgpack
from pydantic import TypeAdapter, ValidationError

from lb.configuration.cross_check import Fault, Path, check_cluster, check_node
from lb.configuration.fields import ALLOWED_TEXT
from lb.configuration.gateway_addresses import clashes
from lb.configuration.model import ClusterConfig
from lb.configuration.node import SCHEDULING_TEXT, NodeConfig, is_scheduling
from lb.configuration.plain import to_plain
from lb.configuration.toml_lines import line_of

Kind = Literal["node", "cluster"]
TEXT_BYTES_MAX = 8 << 20
PROBLEMS_MAX = 100
VALUE_CHARACTERS_MAX = 80
CLASSES: dict[str, type[Any]] = {"node": NodeConfig, "cluster": ClusterConfig}


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a file. `line` is 0 where it is unknown; `text` is the whole message."""

    source: str
    line: int
    path: str
    value: str
    problem: str
    allowed: str

    @property
    def text(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        found = f" = {self.value}" if self.value else ""
        allowed = f"; allowed: {self.allowed}" if self.allowed else ""
        return f"{where}: {self.path}{found}: {self.problem}{allowed}"


class Invalid(ValueError):
    """A file that cannot be used."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(problem.text for problem in problems))


def parse(
    kind: Kind,
    text: str,
    source: str,
    *,
    form: Literal["toml", "json"] = "toml",
    gateway_addresses: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """The NodeConfig or ClusterConfig in `text`; `source` names the file in messages. `gateway_addresses` (→ whose, in
    words) are not to be VIPs. Raises Invalid with all faults."""
    raw = _read(text, source, form)
    lines = text if form == "toml" else ""
    faults = list(_unwritable(raw, CLASSES[kind], ()))
    if not faults:
        value, faults = _validate(kind, raw)
        if not faults:
            normal = normalise(value)
            faults = check_node(normal) if kind == "node" else check_cluster(normal)
            if kind == "cluster":
                faults += clashes(normal, gateway_addresses)
            if not faults:
                return normal
    raise Invalid([_problem(fault, source, lines) for fault in faults[:PROBLEMS_MAX]])


def _read(text: str, source: str, form: str) -> dict[str, Any]:
    if len(text) > TEXT_BYTES_MAX:
        raise Invalid([Problem(source, 0, "file", f"{len(text)} characters", "is too long", f"{TEXT_BYTES_MAX}")])
    try:
        raw = tomllib.loads(text) if form == "toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found.group(1)) if found else 0
        raise Invalid([Problem(source, line, "syntax", "", f"{error}", f"{form.upper()}")]) from None
    if not isinstance(raw, dict):
        raise Invalid([Problem(source, 0, "file", type(raw).__name__, "is not a table", "an object")])
    return raw


def _validate(kind: Kind, raw: dict[str, Any]) -> tuple[Any, list[Fault]]:
    renamed = _to_field_names(raw, CLASSES[kind])
    try:
        # Through JSON, because strict validation takes JSON's lists for tuples and still tells 1 from true and "1".
        return _adapter(kind).validate_json(json.dumps(renamed, default=str)), []
    except ValidationError as error:
        return None, [_translate(item, CLASSES[kind]) for item in error.errors(include_url=False)]


@cache
def _adapter(kind: Kind) -> TypeAdapter[Any]:
    return TypeAdapter(CLASSES[kind])


# --- between the names in the file and those of the fields -----------------------------------------------------------


def file_key(item: Any) -> str:
    """The name of a dataclass field in the file."""
    return item.metadata.get("key") or item.name  # type: ignore[no-any-return]


def nested_class(hint: Any) -> type[Any] | None:
    """The dataclass that a field's type is, or contains."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    return next((found for argument in get_args(hint) if (found := nested_class(argument))), None)


_fields_by_class: dict[type[Any], dict[str, tuple[Any, type[Any] | None]]] = {}


def _fields_by_key(owner: type[Any]) -> dict[str, tuple[Any, type[Any] | None]]:
    known = _fields_by_class.get(owner)
    if known is None:
        hints = get_type_hints(owner, include_extras=True)
        known = {file_key(item): (item, nested_class(hints[item.name])) for item in fields(owner)}
        _fields_by_class[owner] = known
    return known


def allowed_keys(owner: type[Any]) -> list[str]:
    return [key for key, (item, _) in _fields_by_key(owner).items() if not item.metadata.get("internal")]


def _is_map(raw: Any, item: Any) -> bool:
    return isinstance(raw, dict) and item.default_factory is dict


def _to_field_names(raw: Any, owner: type[Any]) -> Any:
    if isinstance(raw, list):
        return [_to_field_names(item, owner) for item in raw]
    if not isinstance(raw, dict):
        return raw
    renamed = {}
    for key, value in raw.items():
        item, nested = _fields_by_key(owner)[key]
        if nested is not None and _is_map(value, item):
            value = {name: _to_field_names(entry, nested) for name, entry in value.items()}
        elif nested is not None:
            value = _to_field_names(value, nested)
        elif key == "port" and value == "any":
            value = 0
        renamed[item.name] = value
    return renamed


def _unwritable(raw: Any, owner: type[Any], path: Path) -> Iterator[Fault]:
    """Keys that the file must not have: unknown ones and the daemon's own."""
    if isinstance(raw, list):
        for index, entry in enumerate(raw):
            yield from _unwritable(entry, owner, (*path, index))
    if not isinstance(raw, dict):
        return
    known = _fields_by_key(owner)
    for key, value in raw.items():
        item, nested = known.get(key, (None, None))
        if item is None or item.metadata.get("internal"):
            yield Fault((*path, key), value, f"unknown key{_suggestion(key, owner)}", ", ".join(allowed_keys(owner)))
        elif nested is not None and _is_map(value, item):
            for name, entry in value.items():
                yield from _unwritable(entry, nested, (*path, key, name))
        elif nested is not None:
            yield from _unwritable(value, nested, (*path, key))


def _suggestion(key: str, owner: type[Any]) -> str:
    close = difflib.get_close_matches(key, allowed_keys(owner), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


# --- the validator's findings in an operator's words -----------------------------------------------------------------

ALLOWED_BY_NAME = {
    predicate.__name__: text for predicate, text in {**ALLOWED_TEXT, is_scheduling: SCHEDULING_TEXT}.items()
}


def _translate(item: Any, owner: type[Any]) -> Fault:
    kind, context = item["type"], item.get("ctx", {})
    problem, allowed = item["msg"], ""
    if kind == "missing":
        problem, allowed = "is missing", "a value"
    elif kind == "predicate_failed":
        name = next((name for name in ALLOWED_BY_NAME if name in item["msg"]), "")
        problem, allowed = "is not usable", ALLOWED_BY_NAME.get(name, "")
    elif kind == "literal_error":
        problem, allowed = "is unknown", str(context["expected"]).replace("'", "").replace(" or ", ", ")
    elif kind in ("greater_than_equal", "less_than_equal"):
        problem = "is out of range"
        allowed = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
    elif kind in ("too_short", "too_long"):
        counted = context.get("min_length", context.get("max_length"))
        problem = f"has {context.get('actual_length')} entries"
        allowed = f"{'at least' if kind == 'too_short' else 'at most'} {counted}"
    elif kind.endswith("_type"):
        problem, allowed = "has the wrong type", kind.removesuffix("_type").replace("_", " ").replace("tuple", "list")
    return Fault(_file_path(item["loc"], owner), "" if kind == "missing" else item["input"], problem, allowed)


def _file_path(location: tuple[Any, ...], owner: type[Any] | None) -> Path:
    path: list[str | int] = []
    for part in location:
        match = next(((i, n) for i, n in _fields_by_key(owner).values() if i.name == part), None) if owner else None
        if match:
            path.append(file_key(match[0]))
            owner = match[1]
        else:
            path.append(part)
    return tuple(path)


def _problem(fault: Fault, source: str, lines: str) -> Problem:
    shown = "" if fault.value == "" else json.dumps(fault.value, default=str, ensure_ascii=False)
    if len(shown) > VALUE_CHARACTERS_MAX:
        shown = shown[:VALUE_CHARACTERS_MAX] + "…"
    return Problem(source, line_of(lines, fault.path), path_text(fault.path), shown, fault.problem, fault.allowed)


def path_text(path: Path) -> str:
    """`service[0].backend[1].port`; entries count from 0, as in the API."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# --- one spelling for each address -----------------------------------------------------------------------------------


def normalise(value: Any) -> Any:
    """Addresses in their canonical spelling, so that equal means the same."""
    if isinstance(value, tuple):
        return tuple(normalise(item) for item in value)
    if isinstance(value, dict):
        return {key: normalise(item) for key, item in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {item.name: normalise(getattr(value, item.name)) for item in fields(value)}
    if isinstance(changed.get("address"), str) and changed["address"]:
        changed["address"] = _canonical(changed["address"])
    return type(value)(**changed)


def _canonical(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text)) if "/" in text else str(ipaddress.ip_address(text))
    except ValueError:
        return text


# --- the child's side ------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`{kind, text, source, form, gateway_addresses}` → `{value}` or `{problems}`, plain."""
    options = {name: request[name] for name in ("form", "gateway_addresses") if name in request}
    try:
        value = parse(request["kind"], request["text"], request["source"], **options)
    except Invalid as error:
        return {"problems": [{**asdict(problem), "text": problem.text} for problem in error.problems]}
    return {"value": to_plain(value)}


def main() -> int:
    requests = msgpack.unpackb(sys.stdin.buffer.read())
    sys.stdout.buffer.write(msgpack.packb([answer(request) for request in requests]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
