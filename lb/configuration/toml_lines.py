# SPDX-License-Identifier: Apache-2.0
"""Finds the line of a value in a TOML text, for error messages.

The standard parser keeps no positions. This scanner knows table headers and the first key of a line, which is how
people write configuration files; what it cannot place (inside inline tables and arrays) gets the line of what
surrounds it.
"""

import re
from collections.abc import Iterator

Path = tuple[str | int, ...]

HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
KEY = re.compile(
    r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=(.*)$"""
)
PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'')


def line_of(text: str, path: Path) -> int:
    """The line (from 1) of `path`, or of the nearest thing around it; 0 if there is none."""
    best, best_length = 0, 0
    for found, line in _positions(text):
        length = len(found)
        if length > best_length and found == path[:length]:
            best, best_length = line, length
        elif best_length < len(path) and found[: len(path)] == path:
            best, best_length = line, len(path)
    return best


def _positions(text: str) -> Iterator[tuple[Path, int]]:
    counts: dict[Path, int] = {}
    table: Path = ()
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        header = HEADER.match(line) if depth == 0 else None
        key = KEY.match(line) if depth == 0 and not header else None
        if header:
            table = _enter(_parts(header.group(2)), header.group(1) == "[[", counts)
            yield table, number
        elif key:
            yield (*table, *_parts(key.group(1))), number
        if not header:
            bare = STRING.sub("", line).split("#")[0]
            depth = max(0, depth + bare.count("[") + bare.count("{") - bare.count("]") - bare.count("}"))


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in PART.findall(dotted)]


def _enter(parts: list[str], is_array: bool, counts: dict[Path, int]) -> Path:
    """The path of a header; every table array on the way stands at its latest entry."""
    path: Path = ()
    for index, part in enumerate(parts):
        path = (*path, part)
        if is_array and index == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path
