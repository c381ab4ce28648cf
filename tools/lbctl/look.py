# SPDX-License-Identifier: Apache-2.0
"""Commands that show state: status, nodes, vips, services, backends, conns, counters, where, events, config."""

import time
from typing import Annotated, Any

import typer

from tools.lbctl.client import ApiError
from tools.lbctl.columns import (
    BACKEND_COLUMNS,
    CONNECTION_COLUMNS,
    COUNTER_COLUMNS,
    EVENT_COLUMNS,
    NODE_COLUMNS,
    SERVICE_COLUMNS,
    VIP_COLUMNS,
)
from tools.lbctl.output import (
    DASH,
    Column,
    console,
    duration,
    escaped,
    plain,
    print_json,
    show,
    state,
    whole,
    within,
)
from tools.lbctl.session import Json, client, complete_node, complete_service
from tools.lbctl.trouble import troubles

PAGE_ROWS = 10_000


def status(as_json: Json = False) -> None:
    """This gateway at a glance, and what is wrong in the cluster."""
    found = client().get("/v1/status")
    if as_json:
        print_json(found)
        return
    view = found.get("view")
    interfaces = ", ".join(
        f"{row['name']} ({row['segment']}, {row.get('xdp_mode') or '[red]nothing attached[/]'})"
        for row in found.get("interfaces", [])
    )
    lines = [
        (
            "gateway",
            f"{found['node']} (id {found['node_id']}) of cluster {found['cluster']}, rainlb {found['version']}",
        ),
        ("state", state()(found) + (f": {escaped(found['reason'])}" if found.get("reason") else "")),
        ("up", duration(found["uptime_s"])),
        ("view", f"{view['number']}: {', '.join(view['members'])}" if view else "alone, no ring"),
        ("serves", f"{found['service_count']} services, {found['backend_count']} backends, {found['vip_count']} VIPs"),
        ("configuration", f"version {found['config_version']}"),
        ("interfaces", interfaces or DASH),
        ("loop lag", DASH if found.get("loop_lag_ms") is None else f"{found['loop_lag_ms']:.1f} ms"),
    ]
    out = console()
    for name, text in lines:
        out.print(f"[bold]{name:>13}[/]  {text}")
    rows = [client().get(f"/v1/{kind}") for kind in ("nodes", "vips", "services", "backends")]
    for text in [f"[yellow]{escaped(each)}[/]" for each in troubles(*rows)] or ["[green]none[/]"]:
        out.print(f"[bold]{'trouble':>13}[/]  {text}")


def nodes(as_json: Json = False) -> None:
    """The gateways of the cluster."""
    show(client().get("/v1/nodes"), NODE_COLUMNS, as_json=as_json, empty="no nodes")


def vips(as_json: Json = False) -> None:
    """The cluster's VIPs: owner, since when, why."""
    show(client().get("/v1/vips"), VIP_COLUMNS, as_json=as_json, empty="no VIPs; add them with: lbctl apply -f FILE")


def services(as_json: Json = False) -> None:
    """Services with their traffic on all gateways together."""
    hint = "no services; add them with: lbctl apply -f FILE"
    show(client().get("/v1/services"), SERVICE_COLUMNS, as_json=as_json, empty=hint)


def backends(
    service: Annotated[str | None, typer.Argument(autocompletion=complete_service, help="Only this service's.")] = None,
    as_json: Json = False,
) -> None:
    """Backends with their traffic on all gateways together."""
    rows = [row for row in client().get("/v1/backends") if service in (None, row["service"])]
    if service is not None and not rows:
        raise ApiError("not_found", f"no service '{service}' with backends", remedy="lbctl services lists them")
    show(rows, BACKEND_COLUMNS, as_json=as_json, empty="no backends")


def conns(
    protocol: Annotated[str | None, typer.Option(help="tcp or udp.")] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="Client address or network.")] = None,
    source_port: Annotated[int | None, typer.Option(help="Client port.")] = None,
    destination: Annotated[str | None, typer.Option("--destination", "-d", help="VIP or network.")] = None,
    destination_port: Annotated[int | None, typer.Option(help="Port of the service.")] = None,
    service: Annotated[str | None, typer.Option(autocompletion=complete_service, help="Service name.")] = None,
    backend: Annotated[str | None, typer.Option(help="Backend name within its service.")] = None,
    owner: Annotated[str | None, typer.Option(autocompletion=complete_node, help="Node that handles it.")] = None,
    origin: Annotated[str | None, typer.Option(autocompletion=complete_node, help="Node that accepted it.")] = None,
    state: Annotated[str | None, typer.Option(help="syn, established, udp, fin_client, closing, …")] = None,
    idle_min: Annotated[float | None, typer.Option(help="Silent for at least so many seconds.")] = None,
    idle_max: Annotated[float | None, typer.Option(help="Silent for at most so many seconds.")] = None,
    top: Annotated[str | None, typer.Option(help="Count by fields instead: --top source,service.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Rows at most.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="All rows, however many.")] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Connections this gateway knows, filtered by any field.

    Works with a million entries and stalls nothing: the table is read piece by piece beside the traffic.
    """
    query = {
        "protocol": protocol, "source": source, "source_port": source_port, "destination": destination,
        "destination_port": destination_port, "service": service, "backend": backend, "owner": owner, "origin": origin,
        "state": state,
        "idle_min_s": idle_min, "idle_max_s": idle_max,
    }  # fmt: skip
    if top is not None:
        _show_top(client().get("/v1/connections/top", by=top, limit=min(limit, 1000), **query), as_json)
        return
    rows, more = _connection_rows(query, None if everything else limit)
    show(rows, CONNECTION_COLUMNS, as_json=as_json, empty="no such connection")
    if more:
        console(to_stderr=True).print(f"[dim]… and more: --limit N, --all, or a filter ({len(rows)} shown)[/]")


def _connection_rows(query: dict[str, Any], limit: int | None) -> tuple[list[dict[str, Any]], bool]:
    """Up to limit rows, page by page, and whether there are more."""
    rows: list[dict[str, Any]] = []
    cursor = None
    while True:
        size = PAGE_ROWS if limit is None else min(limit - len(rows), PAGE_ROWS)
        page = client().get("/v1/connections", limit=size, cursor=cursor, **query)
        rows += page["connections"]
        cursor = page["cursor"]
        if cursor is None or len(rows) == limit:
            return rows, cursor is not None


def _show_top(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    columns = [Column(name.upper(), within("key", plain(name))) for name in found["by"]]
    columns.append(Column("CONNECTIONS", whole("connections"), right=True))
    columns.append(Column("SHARE", lambda row: f"{row['connections'] / max(found['matched'], 1):.1%}", right=True))
    show(found["rows"], columns, as_json=False, empty="no such connection")
    console().print(f"[dim]{found['matched']:,} of {found['scanned']:,} connections[/]")


def counters(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are zero.")] = False, as_json: Json = False
) -> None:
    """Packets by what the packet path did with them, and why."""
    rows = client().get("/v1/counters")
    if not as_json and any(row["packets_per_s"] is None for row in rows):
        time.sleep(1.0)
        rows = client().get("/v1/counters")
    chosen = rows if everything or as_json else [row for row in rows if row["packets"]]
    show(chosen, COUNTER_COLUMNS, as_json=as_json, empty="no packet seen yet")


def split_endpoint(text: str) -> tuple[str, int]:
    """Address and port of ADDRESS:PORT or [V6]:PORT. Raises typer.BadParameter."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isdigit() or (":" in bare and not host.startswith("[")):
        raise typer.BadParameter(f"'{text}' is not ADDRESS:PORT (IPv6: [ADDRESS]:PORT)")
    return bare, int(port)


def where(
    source: Annotated[str, typer.Argument(metavar="SRC:PORT")],
    destination: Annotated[str, typer.Argument(metavar="DST:PORT")],
    protocol: Annotated[str, typer.Argument(metavar="tcp|udp")] = "tcp",
    flags: Annotated[str, typer.Option(help="TCP flags of the packet, separated by commas.")] = "syn",
    interface: Annotated[str | None, typer.Option(help="It arrives here; default: the first interface.")] = None,
    as_json: Json = False,
) -> None:
    """Ask the live program what it does with a packet: which backend, why, and how it leaves.

    Nothing is counted and no connection is opened by asking.
    """
    source_address, source_port = split_endpoint(source)
    destination_address, destination_port = split_endpoint(destination)
    body = {
        "source": source_address, "source_port": source_port, "destination": destination_address,
        "destination_port": destination_port, "protocol": protocol, "interface": interface,
        "flags": [flag for flag in flags.lower().split(",") if flag],
    }  # fmt: skip
    found = client().post("/v1/where", body)
    if as_json:
        print_json(found)
        return
    target = f"{found['service'] or DASH}/{found['backend']}" if found["backend"] else found["service"] or DASH
    out = console()
    for name, text in (
        ("verdict", f"[bold]{found['verdict']}[/]: {escaped(found['reason'])}, {escaped(found['meaning'])}"),
        ("backend", escaped(target)),
        ("because", escaped(found["because"])),
        ("comes", escaped(found["packet_in"])),
        ("leaves", escaped(found["packet_out"] or "unchanged")),
    ):
        out.print(f"[bold]{name:>8}[/]  {text}")


def events(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones as they happen.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="The last so many.")] = 50,
    as_json: Json = False,
) -> None:
    """What happened in the cluster: who moved what, when, why. Kept across restarts."""
    rows = client().get("/v1/events", limit=limit)
    show(rows, EVENT_COLUMNS, as_json=as_json and not follow, empty="nothing happened yet")
    if follow:
        from tools.lbctl.live import follow_events

        follow_events(as_json=as_json)


def metrics() -> None:
    """The gateway's metrics, as Prometheus scrapes them."""
    typer.echo(client().get("/metrics"), nl=False)


def config(as_json: Json = False) -> None:
    """The cluster-wide configuration in force, as the file `lbctl apply` takes."""
    found = client().get("/v1/config")
    if as_json:
        print_json(found)
        return
    typer.echo(f"# version {found['version']}")
    typer.echo(found["text"])
