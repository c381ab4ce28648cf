# SPDX-License-Identifier: Apache-2.0
"""Live views: `watch` prints what happens line by line, `top` redraws the whole picture."""

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tools.lbctl.client import ApiError
from tools.lbctl.columns import BACKEND_COLUMNS, NODE_COLUMNS, SERVICE_COLUMNS, VIP_COLUMNS
from tools.lbctl.output import STYLES, clock, console, escaped, scaled, table
from tools.lbctl.session import Json, client

if TYPE_CHECKING:
    from rich.console import Group

RECONNECT_S = 1.0
EVENTS_SHOWN = 8
SHOWN = {"status", "nodes", "vips", "services", "backends", "counters"}
# field whose change is worth a line, by topic
WATCHED = {"nodes": "state", "vips": "owner", "backends": "state"}


def _forever() -> Iterator[tuple[str, Any]]:
    """The stream, opened again when the API was restarted; the gap is reported as ("lost", error)."""
    first = True
    while True:
        try:
            for kind, data in client().stream():
                first = False
                yield kind, data
        except ApiError as error:
            if first:
                raise
            yield "lost", {"message": error.message}
            time.sleep(RECONNECT_S)


def _subject(topic: str, row: dict[str, Any]) -> str:
    if topic == "backends":
        return f"backend {row['service']}/{row['name']}"
    return f"VIP {row['address']}" if topic == "vips" else f"node {row['name']}"


def _watched(topic: str, row: dict[str, Any]) -> Any:
    return (", ".join(row["owners"]) or "nobody") if topic == "vips" else row.get(WATCHED[topic])


def differences(topic: str, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """What changed between two states of a topic, in words."""
    field = WATCHED[topic]
    old = {_subject(topic, row): _watched(topic, row) for row in before}
    new = {_subject(topic, row): _watched(topic, row) for row in now}
    lines = [f"{name} is gone from the list" for name in old.keys() - new.keys()]
    lines += [f"{name} is new: {field} {value}" for name, value in new.items() if name not in old]
    lines += [f"{n}: {field} {old[n]} → {v}" for n, v in new.items() if n in old and old[n] != v]
    return lines


def watch(as_json: Json = False) -> None:
    """Everything that happens, line by line, until Ctrl-C: events, and state that changed."""
    known: dict[str, list[dict[str, Any]]] = {}
    for kind, data in _forever():
        lines: list[dict[str, Any]] = []
        if kind == "event":
            lines = [data]
        elif kind == "lost":
            lines = [{"time": time.time(), "kind": "stream.lost", "message": data.get("message", "events were lost")}]
        elif kind == "link" and not data["lbd"]:
            lines = [{"time": time.time(), "kind": "lbd.away", "message": data["message"]}]
        elif kind in WATCHED:
            changed = differences(kind, known[kind], data) if kind in known else []
            known[kind] = data
            lines = [{"time": time.time(), "kind": f"{kind}.changed", "message": text} for text in changed]
        for line in lines:
            _print_event(line, as_json)


def follow_events(*, as_json: bool) -> None:
    """New events until Ctrl-C."""
    for kind, data in _forever():
        if kind == "event":
            _print_event(data, as_json)


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    style = STYLES.get(event.get("severity", ""), "")
    message = escaped(event["message"])
    who = f"  [dim]by {escaped(event['who'])}[/]" if event.get("who") else ""
    text = f"[{style}]{message}[/]" if style else message
    console().print(f"[dim]{clock()(event)}[/]  [bold]{event['kind']:<20}[/] {text}{who}")


def picture(state: dict[str, Any]) -> "Group":
    """The whole screen of `top` from the last state of each topic."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text.from_markup(headline(state)), Text()]
    for topic, title, columns in (
        ("nodes", "Nodes", NODE_COLUMNS),
        ("vips", "VIPs", VIP_COLUMNS),
        ("services", "Services", SERVICE_COLUMNS),
        ("backends", "Backends", BACKEND_COLUMNS),
    ):
        if rows := state.get(topic):
            parts += [table(rows, columns, title=title), Text()]
    alarms = [row for row in state.get("counters", []) if row["alarming"] and row["packets_per_s"]]
    for row in alarms:
        parts.append(Text.from_markup(f"[red]{row['reason']}[/] {scaled(row['packets_per_s'])}/s: {row['meaning']}"))
    parts += [Text.from_markup(f"[dim]{clock()(row)}[/] {escaped(row['message'])}") for row in state.get("events", [])]
    return Group(*parts)


def headline(state: dict[str, Any]) -> str:
    status = state.get("status")
    if not state.get("link", {"lbd": True})["lbd"]:
        return f"[red]lbd does not answer:[/] {escaped(state['link'].get('message', ''))}"
    if not status:
        return "waiting for the first state …"
    view = status.get("view") or {"number": 0, "members": [status["node"]]}
    return (
        f"[bold]{escaped(status['cluster'])}[/] seen from [bold]{escaped(status['node'])}[/] · view {view['number']}: "
        f"{', '.join(view['members'])} · configuration {status['config_version']} · {time.strftime('%H:%M:%S')}"
    )


def top() -> None:
    """Live view of nodes, VIPs, services and backends, until Ctrl-C; into a pipe: one picture."""
    screen = console()
    if not screen.is_terminal:
        screen.print(picture(next(state for state in _states() if state.keys() >= SHOWN)))
        return
    from rich.live import Live

    with Live(console=screen, screen=True, auto_refresh=False) as live:
        for state in _states():
            live.update(picture(state), refresh=True)


def _states() -> Iterator[dict[str, Any]]:
    """The last state of each topic and the last few events, after each change."""
    state: dict[str, Any] = {"events": []}
    for kind, data in _forever():
        if kind == "event":
            state["events"] = [*state["events"][1 - EVENTS_SHOWN :], data]
        else:
            state[kind] = data
        yield state
