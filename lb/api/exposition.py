# SPDX-License-Identifier: Apache-2.0
"""The text Prometheus scrapes: what lbd counts (lb.metrics), what the packet path counts, what the cluster knows."""

import resource
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from lb.api import inventory
from lb.control import ControlError

if TYPE_CHECKING:
    from lb.api.gateway import Gateway

NODE_STATES = ("in_service", "joining", "draining", "out_of_service", "gone")
BACKEND_STATES = ("up", "down", "draining", "unresolved", "unknown")
#: our name, field of Traffic, its text
TRAFFIC_COUNTERS = (
    ("packets", "packets", "Packets forwarded"),
    ("bytes", "bytes", "Bytes forwarded"),
    ("connections", "connections_new", "Connections accepted"),
    ("refused", "refused", "Connections that a backend refused at once (nat)"),
    ("unreachable", "unreachable", "ICMP errors that said unreachable about a backend (nat, tunnel)"),
)


class Families:
    """A collector that yields what was gathered before; prometheus_client asks it synchronously."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


async def exposition(gateway: "Gateway") -> bytes:
    """The whole page. While lbd is away the packet path's counters are still there, and rainlb_up is 0."""
    families: list[Metric] = []
    up = 1.0
    try:
        families += from_lbd(await gateway.ask("metrics"))
        families += status_families(await gateway.ask("status"))
        families += node_families(await inventory.nodes(gateway))
        families += vip_families(inventory.rows_of(await gateway.ask("vips")))
        families += traffic_families("service", await inventory.services(gateway))
        families += backend_families(await inventory.backends(gateway))
    except ControlError:
        up = 0.0
    families += reason_families((await gateway.sampler.sample_or_empty()).reasons())
    families += own_families(gateway)
    families.append(GaugeMetricFamily("rainlb_up", "1 while lbd answers", value=up))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Families(families))
    return generate_latest(registry)


def from_lbd(plain: Any) -> list[Metric]:
    """lbd's own registry (lb.metrics.Registry.as_plain)."""
    makers = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
    families: list[Metric] = []
    for row in inventory.rows_of(plain):
        if row["kind"] == "histogram":
            families.append(_histogram(row))
            continue
        family = makers[row["kind"]](row["name"], row["text"], labels=row["labels"])
        for values, value in row["series"]:
            family.add_metric(values, value)
        families.append(family)
    return families


def _histogram(row: dict[str, Any]) -> Metric:
    family = HistogramMetricFamily(row["name"], row["text"], labels=row["labels"])
    bounds = [*(f"{bound:g}" for bound in row["bounds"]), "+Inf"]
    for values, cells in row["series"]:
        buckets = list(zip(bounds, (float(count) for count in accumulate(cells[:-1])), strict=True))
        family.add_metric(values, buckets, cells[-1])
    return family


def status_families(status: dict[str, Any]) -> list[Metric]:
    info = GaugeMetricFamily("rainlb_build_info", "Version that runs", labels=["version", "cluster", "node"])
    info.add_metric([str(status["version"]), str(status["cluster"]), str(status["node"])], 1)
    started = GaugeMetricFamily("rainlb_start_time_seconds", "When lbd started", value=status["started_at"])
    version = GaugeMetricFamily(
        "rainlb_config_version", "Version of the cluster-wide configuration in force", value=status["config_version"]
    )
    families: list[Metric] = [info, started, version]
    view = status.get("view")
    if view:
        families.append(GaugeMetricFamily("rainlb_view_number", "Number of the committed view", value=view["number"]))
        families.append(
            GaugeMetricFamily("rainlb_view_members", "Gateways in the committed view", value=len(view["members"]))
        )
    return families


def node_families(nodes: list[dict[str, Any]]) -> list[Metric]:
    state = GaugeMetricFamily("rainlb_node_state", "1 for the state a gateway is in", labels=["node", "state"])
    resource_up = GaugeMetricFamily(
        "rainlb_resource_healthy", "1 if the resource works", labels=["node", "resource", "required"]
    )
    for row in nodes:
        for name in NODE_STATES:
            state.add_metric([row["name"], name], float(row["state"] == name))
        for item in row.get("resources") or []:
            labels = [row["name"], item["name"], "yes" if item["required"] else "no"]
            resource_up.add_metric(labels, float(item["healthy"]))
    return [state, resource_up]


def vip_families(vips: list[dict[str, Any]]) -> list[Metric]:
    owner = GaugeMetricFamily("rainlb_vip_owner", "1 for each gateway that owns the VIP", labels=["vip", "node"])
    owned = GaugeMetricFamily("rainlb_vip_owned", "1 if any gateway owns the VIP", labels=["vip"])
    for row in vips:
        owned.add_metric([row["address"]], float(bool(row["owners"])))
        for name in row["owners"]:
            owner.add_metric([row["address"], name], 1)
    return [owner, owned]


def traffic_families(subject: str, rows: list[dict[str, Any]]) -> list[Metric]:
    """Counters per service or backend of this gateway; rows as of shapes.Service or shapes.Backend."""
    labels = ["service"] if subject == "service" else ["service", "backend"]
    families: list[Metric] = []
    for name, field, text in TRAFFIC_COUNTERS:
        family = CounterMetricFamily(f"rainlb_{subject}_{name}", f"{text} on this gateway", labels=labels)
        for row in rows:
            family.add_metric(_traffic_labels(subject, row), row["traffic"][field])
        families.append(family)
    active = GaugeMetricFamily(
        f"rainlb_{subject}_connections_active", "Connections open on this gateway", labels=labels
    )
    for row in rows:
        active.add_metric(_traffic_labels(subject, row), row["traffic"]["connections_active"])
    return [*families, active]


def _traffic_labels(subject: str, row: dict[str, Any]) -> list[str]:
    return [row["name"]] if subject == "service" else [row["service"], row["name"]]


def backend_families(backends: list[dict[str, Any]]) -> list[Metric]:
    labels = ["service", "backend", "state"]
    state = GaugeMetricFamily("rainlb_backend_state", "1 for the state a backend is in", labels=labels)
    weight = GaugeMetricFamily("rainlb_backend_weight", "Share of new connections", labels=labels[:2])
    for row in backends:
        weight.add_metric([row["service"], row["name"]], row["weight"])
        for name in BACKEND_STATES:
            state.add_metric([row["service"], row["name"], name], float(row["state"] == name))
    return [*traffic_families("backend", backends), state, weight]


def reason_families(reasons: list[dict[str, Any]]) -> list[Metric]:
    text = "Packets by the reason of their verdict"
    family = CounterMetricFamily("rainlb_packets", text, labels=["reason", "kind"])
    for row in reasons:
        family.add_metric([row["reason"], row["kind"]], row["packets"])
    return [family]


def own_families(gateway: "Gateway") -> list[Metric]:
    """The API process about itself."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return [
        CounterMetricFamily(
            "rainlb_api_cpu_seconds", "CPU the API process used", value=usage.ru_utime + usage.ru_stime
        ),
        GaugeMetricFamily(
            "rainlb_api_memory_peak_bytes", "Peak memory of the API process", value=usage.ru_maxrss * 1024
        ),
        GaugeMetricFamily(
            "rainlb_api_uptime_seconds", "Age of the API process", value=time.monotonic() - gateway.started
        ),
        GaugeMetricFamily("rainlb_api_watchers", "Clients of the live stream", value=gateway.hub.watcher_count),
        CounterMetricFamily("rainlb_api_events", "Events received from lbd", value=gateway.hub.events_total),
    ]
