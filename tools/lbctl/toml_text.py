# SPDX-License-Identifier: Apache-2.0
"""A configuration as TOML text: tables, arrays of tables, scalars and lists of scalars are all it ever holds."""

import json
from typing import Any


def as_toml(document: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """The document as TOML 1.0; None values are left out, as TOML knows none."""
    scalars = {name: value for name, value in document.items() if not _is_table(value) and value is not None}
    lines = [f"{_key(name)} = {_value(value)}" for name, value in scalars.items()]
    for name, value in document.items():
        inner = (*path, name)
        header = ".".join(map(_key, inner))
        if isinstance(value, dict):
            lines += ["", f"[{header}]", as_toml(value, inner)]
        elif _is_table(value):
            for item in value:
                lines += ["", f"[[{header}]]", as_toml(item, inner)]
    return "\n".join(lines).strip("\n") + ("\n" if not path else "")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _key(name: str) -> str:
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value if item is not None)}]"
    # JSON's strings and numbers are valid TOML, except that DEL must be escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
