# SPDX-License-Identifier: Apache-2.0
"""How lbctl shows things: tables for people, JSON for scripts, numbers and times as people read them."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH_OF_A_PIPE = 250
DASH = "–"

STYLES = {
    "in_service": "green", "up": "green", "ok": "green", "normal": "green",
    "joining": "yellow", "draining": "yellow", "unresolved": "yellow", "unknown": "yellow",
    "out_of_service": "red", "down": "red", "gone": "red", "missing": "red", "alarming": "red",
    "warning": "yellow", "error": "red",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table: its header, and how a row's cell becomes text."""

    header: str
    cell: Callable[[dict[str, Any]], str]
    right: bool = False


def console(*, to_stderr: bool = False) -> "Console":
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    # Into a pipe nothing is cut or wrapped: grep and awk want whole lines.
    width = None if stream.isatty() else WIDTH_OF_A_PIPE
    # No pictures for what stands between colons: fd00:2::100 is an address.
    return Console(file=stream, width=width, highlight=False, markup=True, emoji=False, soft_wrap=False)


def print_json(document: Any) -> None:
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def table(rows: Iterable[dict[str, Any]], columns: Sequence[Column], title: str | None = None) -> "Table":
    from rich.table import Table

    result = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")
    for column in columns:
        result.add_column(column.header, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        result.add_row(*(column.cell(row) for column in columns))
    return result


def show(document: Any, columns: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """A list of rows, as wanted."""
    if as_json:
        print_json(document)
    elif not document:
        console().print(empty)
    else:
        console().print(table(document, columns))


def plain(name: str, default: str = DASH) -> Callable[[dict[str, Any]], str]:
    """The field as it is; nothing is shown as a dash. Brackets are data here, not markup."""

    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        return default if value is None or value in ("", []) else escaped(value)

    return cell


def escaped(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("[", "\\[")


def state(name: str = "state") -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        value = str(row.get(name) or DASH)
        style = STYLES.get(value)
        words = value.replace("_", " ")
        return f"[{style}]{words}[/]" if style else words

    return cell


def number(name: str, unit: str = "") -> Callable[[dict[str, Any]], str]:
    """With SI prefixes: 12.3 k."""

    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        return DASH if value is None else scaled(value) + unit

    return cell


def whole(name: str) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        return DASH if value is None else f"{value:,}"

    return cell


def fixed(name: str, digits: int = 1) -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        return DASH if value is None else f"{value:.{digits}f}"

    return cell


def within(name: str, inner: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    """A cell of a nested map, such as traffic."""
    return lambda row: inner(row.get(name) or {})


def scaled(value: float) -> str:
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            size = value / (1e3 if prefix == "k" else limit)
            return f"{size:.3g} {prefix}" if size < 1000 else f"{size:.0f} {prefix}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """90061 -> 1d 1h."""
    if seconds is None:
        return DASH
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    parts = []
    rest = int(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        if rest >= size:
            parts.append(f"{rest // size}{unit}")
            rest %= size
    return " ".join(parts[:2])


def age(name: str) -> Callable[[dict[str, Any]], str]:
    """How long ago a time of day was."""

    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        return DASH if value is None else duration(max(time.time() - value, 0))

    return cell


def lasting(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: duration(row.get(name))


def clock(name: str = "time") -> Callable[[dict[str, Any]], str]:
    def cell(row: dict[str, Any]) -> str:
        value = row.get(name)
        if value is None:
            return DASH
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) + f".{int(value % 1 * 1000):03d}"

    return cell


def endpoint(address: str, port: int | str | None) -> str:
    """address:port, an IPv6 address in brackets; any port as *."""
    host = f"[{address}]" if ":" in address else address
    return escaped(f"{host}:{'*' if port in (None, 0, 'any') else port}")
