# SPDX-License-Identifier: Apache-2.0
"""What goes over the HTTP API: one pydantic model per request body and per answer.

The OpenAPI document is generated from these models and the tests hold live answers against them. Answers may carry
more keys than listed (a newer lbd with an older API process); requests may not.

Units are last in the names. Times of day are Unix seconds (float); durations name their unit.
"""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

ROW_LIMIT_MAX = 10_000
TOP_LIMIT_MAX = 1_000
NAME_LENGTH_MAX = 128
DOCUMENT_BYTES_MAX = 4 << 20
CAPTURE_PACKETS_MAX = 1_000_000
CAPTURE_SECONDS_MAX = 3_600

Name = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX, pattern=r"^[^\x00-\x1f\x7f/]+$")]


def _is_address(text: str) -> str:
    return str(ipaddress.ip_address(text))


def _is_network(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))


_IP_SCHEMA = [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]
AddressText = Annotated[str, AfterValidator(_is_address), WithJsonSchema({"anyOf": _IP_SCHEMA})]
NetworkText = Annotated[
    str,
    AfterValidator(_is_network),
    WithJsonSchema({"anyOf": _IP_SCHEMA, "description": "an address, or a network as address/length"}),
]
Port = Annotated[int, Field(ge=0, le=65535)]
Protocol = Literal["tcp", "udp"]
Role = Literal["read", "operate", "configure"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Problem(Answer):
    """Every answer that is not a success."""

    code: str = Field(description="stable, for programs", examples=["not_found"])
    message: str = Field(description="what happened, for people")
    field: str | None = Field(None, description="path of the offending field, if one is to blame")
    remedy: str | None = Field(None, description="what to do about it")


class View(Answer):
    number: int = Field(description="number of the committed view")
    group: int = Field(description="group id: the lowest node id in it")
    members: list[str] = Field(description="node names in ring order")


class Interface(Answer):
    name: str
    segment: str
    xdp_mode: str | None = Field(None, description="native, generic, or null while nothing is attached")


class Status(Answer):
    cluster: str
    node: str
    node_id: int
    version: str
    state: str = Field(description="joining, in_service, draining or out_of_service")
    reason: str | None = Field(None, description="why, when not in service")
    started_at: float
    uptime_s: float
    config_version: int
    view: View | None = None
    loop_lag_ms: float | None = Field(None, description="recent worst delay of lbd's loop")
    interfaces: list[Interface] = []
    service_count: int
    backend_count: int
    vip_count: int


class Resource(Answer):
    name: str
    kind: str
    required: bool
    healthy: bool
    detail: str | None = None


class Node(Answer):
    name: str
    id: int
    state: str = Field(description="in_service, joining, draining, out_of_service or gone")
    reason: str | None = Field(None, description="why it is out")
    in_view: bool = Field(description="whether it is a member of the view of the gateway asked")
    view: int | None = Field(None, description="the number of that view")
    drained: bool = False
    version: str | None = None
    uptime_s: float | None = None
    config_version: int | None = None
    loop_lag_ms: float | None = None
    token_rate: float | None = Field(None, description="token visits per second")
    token_turn_ms: float | None = Field(
        None, description="longest time between two visits of the token in the last ten seconds"
    )
    packets_per_s: float | None = None
    bits_per_s: float | None = None
    connections: int | None = None
    cpu_percent: float | None = None
    clock_offset_s: float | None = Field(None, description="its wall clock less that of the gateway asked")
    vip_count: int = 0
    resources: list[Resource] = []


class Vip(Answer):
    address: str = Field(description="with prefix length", examples=["10.0.1.100/24"])
    announce: str = Field("arp", description="arp: one node at a time holds it; route: every node in service")
    segment: str | None = Field(None, description="null if it is announced as a route")
    owner: str | None = Field(
        None, description="the one node that answers for it; null while nobody does, and for a route"
    )
    owners: list[str] = Field([], description="all nodes that hold it; for arp one at most")
    since: float | None = Field(None, description="when the owner took it")
    reason: str | None = Field(None, description="why it is where it is")
    lease_ms: float | None = Field(
        None,
        description="rest of the owner's kernel lease: now if asked there, else as it told last (once a second); of a "
        "route the shortest of its owners'",
    )
    packets_per_s: float | None = Field(None, description="to its services, on all gateways together, averaged")
    prefer: list[str] = []
    pin: str | None = None
    state: str | None = None


class Traffic(Answer):
    """Counters since the data path was loaded; the rates are over the last second.

    connections_active: open connections that this gateway handles; refused: connections that backends refused at once
    (`nat`); unreachable: ICMP errors that said so about backends (`nat`, `tunnel`).
    """

    packets: int = 0
    bytes: int = 0
    connections_new: int = 0
    connections_active: int = 0
    refused: int = 0
    unreachable: int = 0
    packets_per_s: float | None = None
    bits_per_s: float | None = None
    connections_new_per_s: float | None = None


class ClusterTraffic(Traffic):
    """The same for all gateways together that told lately; gateways: how many those are."""

    gateways: int = 1


class Service(Answer):
    name: str
    id: int
    address: str
    port: int | Literal["any"]
    protocol: str
    forward: str
    scheduler: str
    persistence_s: float = 0
    replicate: str = "established"
    on_backend_death: str = "reset"
    backend_count: int
    backends_up: int
    traffic: Traffic = Traffic()
    cluster_traffic: ClusterTraffic = ClusterTraffic()


class Backend(Answer):
    service: str
    name: str
    id: int
    address: str
    port: int | Literal["any"] | None = None
    weight: int
    connections_max: int = 0
    state: str = Field(description="up, down, draining, unresolved or unknown")
    reason: str | None = None
    drain: bool = False
    traffic: Traffic = Traffic()
    cluster_traffic: ClusterTraffic = ClusterTraffic()


class Connection(Answer):
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    service: str | None
    backend: str | None
    target_id: int
    owner: str | None = Field(description="node whose connection it is")
    origin: str | None = Field(description="node that accepted it; another one than the owner after a takeover")
    state: str
    idle_s: int
    age_s: int


class ConnectionPage(Answer):
    connections: list[Connection]
    cursor: str | None = Field(description="pass it to go on; null at the end")
    scanned: int = Field(description="entries looked at for this page")


class TopRow(Answer):
    key: dict[str, str | int | None]
    connections: int


class ConnectionTop(Answer):
    by: list[str]
    rows: list[TopRow]
    matched: int
    scanned: int


class Counter(Answer):
    reason: str
    kind: str = Field(description="pass, sent, drop (normal in small numbers), alarm (look into it) or note")
    meaning: str
    alarming: bool
    packets: int
    bytes: int
    packets_per_s: float | None = None


class Event(Answer):
    id: int = Field(description="grows; ask for what came after it")
    time: float
    kind: str = Field(examples=["vip.moved"])
    node: str | None = None
    subject: str | None = None
    message: str
    severity: Literal["info", "warning", "error"] = "info"
    who: str | None = None


class Change(Answer):
    kind: Literal["add", "remove", "change"]
    path: str = Field(examples=["service[web].backend[b1].weight"])
    before: object | None = None
    after: object | None = None
    text: str


class Configuration(Answer):
    version: int
    document: dict[str, object]
    text: str = Field(description="the same as TOML")


class Difference(Answer):
    version: int = Field(description="the version it was compared with; use it in If-Match")
    changes: list[Change]
    warnings: list[str] = []


class Applied(Difference):
    """version is the new one."""


class Done(Answer):
    message: str


class Check(Answer):
    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str | None = None


class Doctor(Answer):
    ok: bool
    checks: list[Check]


class Query(BaseModel):
    """Query parameters: text on the wire, so numbers are parsed."""

    model_config = ConfigDict(extra="forbid")


ConnectionState = Literal["syn", "udp_once", "established", "udp", "fin_client", "fin_server", "closing", "reset"]


class ConnectionFilter(Query):
    """All given conditions must hold."""

    protocol: Protocol | None = None
    source: NetworkText | None = None
    source_port: Port | None = None
    destination: NetworkText | None = None
    destination_port: Port | None = None
    service: Name | None = None
    backend: Name | None = Field(None, description="name within its service")
    owner: Name | None = Field(None, description="node name")
    origin: Name | None = Field(None, description="node name")
    state: ConnectionState | None = None
    idle_min_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    idle_max_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class ConnectionQuery(ConnectionFilter):
    limit: Annotated[int, Field(ge=1, le=ROW_LIMIT_MAX)] = 100
    cursor: Annotated[str, Field(max_length=128, pattern=r"^[0-9a-f]+(\.[0-9]+)?$")] | None = None


class TopQuery(ConnectionFilter):
    by: str = Field("source", description="fields to group by, separated by commas", max_length=256)
    limit: Annotated[int, Field(ge=1, le=TOP_LIMIT_MAX)] = 10


class EventQuery(Query):
    after: Annotated[int, Field(ge=0, le=1 << 62)] = Field(0, description="the first with a greater id; 0: the newest")
    limit: Annotated[int, Field(ge=1, le=ROW_LIMIT_MAX)] = 100


class WeightRequest(Request):
    weight: Annotated[int, Field(ge=0, le=65535)]


class MoveRequest(Request):
    node: Name


class PinRequest(Request):
    node: Name | None = Field(None, description="null pins it where it is now")


class PreferRequest(Request):
    nodes: Annotated[list[Name], Field(max_length=255)]


class WhereRequest(Request):
    source: AddressText
    source_port: Port
    destination: AddressText
    destination_port: Port
    protocol: Protocol = "tcp"
    flags: Annotated[list[Literal["syn", "ack", "fin", "rst"]], Field(max_length=4)] = ["syn"]
    interface: Name | None = Field(None, description="arrives here; the first interface if not given")


class Where(Answer):
    verdict: str = Field(description="XDP action", examples=["tx"])
    reason: str
    meaning: str
    service: str | None = None
    backend: str | None = None
    because: str = Field(description="in words")
    packet_in: str
    packet_out: str | None = None
    packet_out_hex: str | None = None


class CaptureRequest(Request):
    packets: Annotated[int, Field(ge=1, le=CAPTURE_PACKETS_MAX)] = 10_000
    seconds: Annotated[float, Field(gt=0, le=CAPTURE_SECONDS_MAX, strict=False)] = 10.0
    snap_bytes: Annotated[int, Field(ge=64, le=65535)] = 256
    address: AddressText | None = Field(None, description="only packets from or to it")
    port: Port | None = None
    reason: Name | None = Field(None, description="only packets with this verdict reason")
    service: Name | None = Field(None, description="only packets of this service")


class DetachRequest(Request):
    confirm: Literal[True] = Field(description="the data path stops; must be true")
