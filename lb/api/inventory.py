# SPDX-License-Identifier: Apache-2.0
"""Answers that join what lbd knows (names, states) with what the maps count."""

from typing import Any

from lb.api.datapath import Names
from lb.api.gateway import Gateway
from lb.api.hub import Hub, Source
from lb.api.sampler import Sample

# lbd says so when another gateway's operators watch.
TRAFFIC_WANTED = "traffic.wanted"


def rows_of(answer: Any) -> list[dict[str, Any]]:
    """lbd answers lists of maps; anything else is a fault of a mismatched version and shows as empty."""
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


async def services(gateway: Gateway, *, with_rates: bool = False) -> list[dict[str, Any]]:
    """As of shapes.Service."""
    rows = rows_of(await gateway.ask("services"))
    sample = await gateway.sampler.sample_or_empty(with_rates=with_rates)
    await _exchange(gateway, sample, with_rates)
    return [_with_traffic(gateway, "services", row, sample.service(row["id"])) for row in rows]


async def backends(gateway: Gateway, *, with_rates: bool = False) -> list[dict[str, Any]]:
    """As of shapes.Backend."""
    rows = rows_of(await gateway.ask("backends"))
    sample = await gateway.sampler.sample_or_empty(with_rates=with_rates)
    await _exchange(gateway, sample, with_rates)
    return [_with_traffic(gateway, "backends", row, sample.backend(row["id"])) for row in rows]


async def _exchange(gateway: Gateway, sample: Sample, with_rates: bool) -> None:
    if with_rates:
        await gateway.everywhere.exchange_now(sample)
    else:
        await gateway.everywhere.exchange(sample, wanted=True)


def _with_traffic(gateway: Gateway, kind: str, row: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return {**row, "traffic": own, "cluster_traffic": gateway.everywhere.of(kind, row["id"], own)}


async def nodes(gateway: Gateway, *, with_rates: bool = False) -> list[dict[str, Any]]:
    """As of shapes.Node; this gateway's own load comes from its maps, the others' from what they told the cluster."""
    rows = rows_of(await gateway.ask("nodes"))
    total = (await gateway.sampler.sample_or_empty(with_rates=with_rates)).total()
    for row in rows:
        if row.get("name") == gateway.settings.node_name:
            row["packets_per_s"] = total["packets_per_s"]
            row["bits_per_s"] = total["bits_per_s"]
            row["connections"] = row.get("connections") or total["connections_active"]
    return rows


async def names(gateway: Gateway) -> Names:
    """Current names of the numbers in the maps; the last known ones while lbd is away."""
    try:
        service_rows = rows_of(await gateway.ask("services"))
        backend_rows = rows_of(await gateway.ask("backends"))
        node_rows = rows_of(await gateway.ask("nodes"))
    except Exception as problem:
        if getattr(problem, "code", "") not in {"unavailable", "timeout"}:
            raise
        return gateway.sampler.names
    gateway.sampler.names = Names(
        services={row["id"]: row["name"] for row in service_rows},
        backends={row["id"]: (row["service"], row["name"]) for row in backend_rows},
        nodes={row["id"]: row["name"] for row in node_rows},
    )
    return gateway.sampler.names


def hub_of(gateway: Gateway) -> Hub:
    """The live stream over everything a console shows."""

    async def counters() -> Any:
        return (await gateway.sampler.sample_or_empty()).reasons()

    async def vips() -> Any:
        return rows_of(await gateway.ask("vips"))

    async def tell_traffic() -> None:
        await gateway.everywhere.exchange(await gateway.sampler.sample_or_empty(with_rates=True), wanted=False)

    sources: dict[str, Source] = {
        "status": lambda: gateway.ask("status"),
        "nodes": lambda: nodes(gateway),
        "vips": vips,
        "services": lambda: services(gateway),
        "backends": lambda: backends(gateway),
        "counters": counters,
    }
    return Hub(gateway.control.events, sources, {TRAFFIC_WANTED: tell_traffic})
