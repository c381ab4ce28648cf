# SPDX-License-Identifier: Apache-2.0
"""The columns of every table."""

from typing import Any

from tools.lbctl.output import (
    DASH,
    Column,
    age,
    clock,
    endpoint,
    escaped,
    fixed,
    lasting,
    number,
    plain,
    state,
    whole,
    within,
)


def backends_up(row: dict[str, Any]) -> str:
    up, count = row["backends_up"], row["backend_count"]
    if not count:
        return "the gateways" if row["forward"] == "local" else "none"
    style = "green" if up == count else "red" if up == 0 else "yellow"
    return f"[{style}]{up}[/] of {count}"


NODE_COLUMNS = (
    Column("NODE", plain("name")),
    Column("ID", plain("id"), right=True),
    Column("STATE", state()),
    Column("VIEW", plain("view"), right=True),
    Column("VIPS", plain("vip_count"), right=True),
    Column("PACKETS/S", number("packets_per_s"), right=True),
    Column("BIT/S", number("bits_per_s"), right=True),
    Column("CONNECTIONS", whole("connections"), right=True),
    Column("TOKEN/S", fixed("token_rate"), right=True),
    Column("LOOP LAG MS", fixed("loop_lag_ms"), right=True),
    Column("CONFIG", plain("config_version"), right=True),
    Column("UP", lasting("uptime_s")),
    Column("WHY", plain("reason")),
)
VIP_COLUMNS = (
    Column("VIP", plain("address")),
    Column("SEGMENT", plain("segment")),
    Column("OWNER", plain("owners", "[red]nobody[/]")),
    Column("SINCE", age("since")),
    Column("LEASE MS", fixed("lease_ms", 0), right=True),
    Column("PACKETS/S", number("packets_per_s"), right=True),
    Column("PIN", plain("pin")),
    Column("PREFER", plain("prefer")),
    Column("WHY", plain("reason")),
)


def _refused(traffic: dict[str, Any]) -> str:
    return f"{traffic.get('refused', 0) + traffic.get('unreachable', 0):,}"


TRAFFIC_COLUMNS = (
    Column("PACKETS/S", within("cluster_traffic", number("packets_per_s")), right=True),
    Column("BIT/S", within("cluster_traffic", number("bits_per_s")), right=True),
    Column("NEW/S", within("cluster_traffic", number("connections_new_per_s")), right=True),
    Column("ACTIVE", within("cluster_traffic", whole("connections_active")), right=True),
    # Since the data path was loaded: at once by the backend (nat), or by an ICMP error about it.
    Column("REFUSED", within("cluster_traffic", _refused), right=True),
)
SERVICE_COLUMNS = (
    Column("SERVICE", plain("name")),
    Column("ADDRESS", lambda row: endpoint(row["address"], row["port"])),
    Column("PROTO", plain("protocol")),
    Column("FORWARD", plain("forward")),
    Column("SCHEDULER", plain("scheduler")),
    Column("BACKENDS UP", backends_up),
    *TRAFFIC_COLUMNS,
)
BACKEND_COLUMNS = (
    Column("BACKEND", lambda row: escaped(f"{row['service']}/{row['name']}")),
    Column("ADDRESS", lambda row: endpoint(row["address"], row.get("port"))),
    Column("STATE", state()),
    Column("WEIGHT", plain("weight"), right=True),
    *TRAFFIC_COLUMNS,
    Column("WHY", plain("reason")),
)
CONNECTION_COLUMNS = (
    Column("PROTO", plain("protocol")),
    Column("CLIENT", lambda row: endpoint(row["source"], row["source_port"])),
    Column("DESTINATION", lambda row: endpoint(row["destination"], row["destination_port"])),
    Column("BACKEND", lambda row: escaped(f"{row['service'] or DASH}/{row['backend'] or row['target_id']}")),
    Column("STATE", plain("state")),
    Column("IDLE", lasting("idle_s"), right=True),
    Column("AGE", lasting("age_s"), right=True),
    Column("OWNER", plain("owner")),
    Column("ORIGIN", plain("origin")),
)
COUNTER_COLUMNS = (
    Column("REASON", plain("reason")),
    Column("KIND", lambda row: "[red]alarm[/]" if row["alarming"] else row["kind"]),
    Column("PACKETS", whole("packets"), right=True),
    Column("PACKETS/S", number("packets_per_s"), right=True),
    Column("MEANING", plain("meaning")),
)
EVENT_COLUMNS = (
    Column("TIME", clock()),
    Column("NODE", plain("node")),
    Column("EVENT", plain("kind")),
    Column("MESSAGE", plain("message")),
    Column("BY", plain("who")),
)
