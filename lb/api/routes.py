# SPDX-License-Identifier: Apache-2.0
"""The table of all calls of the API."""

import functools
import json
from http import HTTPMethod
from typing import Any

from starlette.responses import Response

from lb.api import calls, observe, shapes
from lb.api.endpoint import Call, Endpoint, Handler
from lb.api.openapi import document

GET, POST, PUT = HTTPMethod.GET, HTTPMethod.POST, HTTPMethod.PUT
CONFIG_MEDIA = ("application/toml", "application/json")
SOURCE_HEADER = {"X-Source": "name of the file, for error messages"}


def _operate(path: str, handler: Handler, summary: str, body: type[shapes.Request] | None = None) -> Endpoint:
    return Endpoint(POST, path, handler, summary, role="operate", body=body, answer=shapes.Done, audited=True)


async def _description(_call: Call) -> Response:
    return Response(json.dumps(description(), indent=1), media_type="application/json")


ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(GET, "/v1/status", calls.status, "This gateway at a glance", answer=shapes.Status),
    Endpoint(GET, "/v1/nodes", calls.nodes, "The gateways of the cluster", answer=list[shapes.Node]),
    Endpoint(GET, "/v1/vips", calls.vips, "VIPs and who owns them", answer=list[shapes.Vip]),
    Endpoint(GET, "/v1/services", calls.services, "Services with their traffic here", answer=list[shapes.Service]),
    Endpoint(GET, "/v1/backends", calls.backends, "Backends with their traffic here", answer=list[shapes.Backend]),
    Endpoint(
        GET,
        "/v1/connections",
        calls.connections,
        "Connections this gateway knows, filtered, page by page. A page is a look at a changing table: an entry that "
        "lives through the whole walk is seen once, one that comes or goes meanwhile may be missed.",
        query=shapes.ConnectionQuery,
        answer=shapes.ConnectionPage,
        problems=(404,),
    ),
    Endpoint(
        GET,
        "/v1/connections/top",
        calls.connections_top,
        "Connections counted by any fields, the biggest groups first",
        query=shapes.TopQuery,
        answer=shapes.ConnectionTop,
        problems=(404,),
    ),
    Endpoint(GET, "/v1/counters", calls.counters, "Packets by verdict of the packet path", answer=list[shapes.Counter]),
    Endpoint(
        GET,
        "/v1/events",
        calls.events,
        "What happened in the cluster, oldest first",
        query=shapes.EventQuery,
        answer=list[shapes.Event],
    ),
    Endpoint(
        GET,
        "/v1/config",
        calls.config,
        "The cluster-wide configuration; its version is the ETag",
        answer=shapes.Configuration,
    ),
    Endpoint(
        POST,
        "/v1/config/diff",
        calls.config_diff,
        "What applying this configuration would change; changes nothing",
        text_body=CONFIG_MEDIA,
        answer=shapes.Difference,
        headers=SOURCE_HEADER,
    ),
    Endpoint(
        PUT,
        "/v1/config",
        calls.config_put,
        "Apply a configuration to the whole cluster",
        role="configure",
        text_body=CONFIG_MEDIA,
        answer=shapes.Applied,
        audited=True,
        problems=(412, 428),
        headers={"If-Match": 'the version it was made from, quoted: "7"', **SOURCE_HEADER},
    ),
    _operate("/v1/backends/{service}/{backend}/drain", calls.backend_drain, "No new connections to a backend"),
    _operate("/v1/backends/{service}/{backend}/undrain", calls.backend_undrain, "New connections to a backend again"),
    _operate(
        "/v1/backends/{service}/{backend}/weight",
        calls.backend_weight,
        "Change a backend's share of new connections",
        shapes.WeightRequest,
    ),
    _operate("/v1/vips/{address}/move", calls.vip_move, "Move a VIP to another node", shapes.MoveRequest),
    _operate("/v1/vips/{address}/pin", calls.vip_pin, "Keep a VIP on one node only", shapes.PinRequest),
    _operate("/v1/vips/{address}/unpin", calls.vip_unpin, "Let a VIP move again"),
    _operate("/v1/vips/{address}/prefer", calls.vip_prefer, "Nodes a VIP should be on", shapes.PreferRequest),
    _operate("/v1/nodes/{node}/drain", calls.node_drain, "Take a node out of service in order"),
    _operate("/v1/nodes/{node}/undrain", calls.node_undrain, "Put a node into service again"),
    Endpoint(
        POST,
        "/v1/where",
        observe.where,
        "What the live packet path does with a packet, and why",
        role="operate",
        body=shapes.WhereRequest,
        answer=shapes.Where,
        problems=(404,),
    ),
    Endpoint(
        POST,
        "/v1/capture",
        observe.capture,
        "Mirror packets with their verdicts into a pcapng file",
        role="operate",
        body=shapes.CaptureRequest,
        answer=bytes,
        answer_media=observe.CAPTURE_MEDIA,
        audited=True,
        problems=(404,),
    ),
    Endpoint(
        POST,
        "/v1/detach",
        calls.detach,
        "Remove the packet path from all interfaces of this gateway",
        role="configure",
        body=shapes.DetachRequest,
        answer=shapes.Done,
        audited=True,
    ),
    Endpoint(GET, "/v1/doctor", calls.doctor, "What this host can do and what it lacks", answer=shapes.Doctor),
    Endpoint(
        GET,
        "/v1/stream",
        calls.stream,
        "Changes as they happen (server-sent events: link, status, nodes, vips, services, backends, counters, event)",
        answer=str,
        answer_media="text/event-stream",
    ),
    Endpoint(GET, "/metrics", observe.metrics, "Metrics for Prometheus", answer=str, answer_media="text/plain"),
    Endpoint(GET, "/openapi.json", _description, "This description", answer=dict),
)


@functools.cache
def description() -> dict[str, Any]:
    """The OpenAPI document of all calls."""
    return document(ENDPOINTS)
