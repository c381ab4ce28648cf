# SPDX-License-Identifier: Apache-2.0
"""A configuration as its file would say it: as a document (for JSON) and as TOML text."""

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any


def document(value: Any) -> dict[str, Any]:
    """The fields under their names in the file. The daemon's own fields and those that have their default are left
    out."""
    result: dict[str, Any] = {}
    for item in fields(value):
        content = getattr(value, item.name)
        if item.metadata.get("internal") or content == _default(item):
            continue
        result[item.metadata.get("key") or item.name] = _plain(content)
    return result


def _default(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return item.default


def _plain(content: Any) -> Any:
    if is_dataclass(content):
        return document(content)
    if isinstance(content, (list, tuple)):
        return [_plain(item) for item in content]
    if isinstance(content, dict):
        return {key: _plain(item) for key, item in content.items()}
    return content


def toml_text(content: dict[str, Any]) -> str:
    """A document as TOML: plain values first, then tables, then arrays of tables."""
    return "\n".join(_toml_table(content, "")).strip() + "\n"


def _toml_table(content: dict[str, Any], path: str) -> list[str]:
    lines = [f"{_key(key)} = {_value(value)}" for key, value in content.items() if not _is_nested(value)]
    for key, value in content.items():
        below = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, dict):
            lines += ["", f"[{below}]", *_toml_table(value, below)]
        elif _is_nested(value):
            for entry in value:
                lines += ["", f"[[{below}]]", *_toml_table(entry, below)]
    return lines


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _quoted(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return str(value)


def _quoted(text: str) -> str:
    # A JSON string is a TOML basic string, except that TOML forbids a raw DEL and escaped surrogates.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
