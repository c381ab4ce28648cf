# SPDX-License-Identifier: Apache-2.0
"""Handlers of the calls that read state or change it through lbd."""

import asyncio
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from lb.api import inventory
from lb.api.doctor import examine
from lb.api.endpoint import Call, media_type
from lb.api.problems import ApiProblem
from lb.control import ControlError


def answer(document: Any, *, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(document, headers={"cache-control": "no-store", **(headers or {})})


def done(result: Any, message: str) -> Response:
    """lbd's own words if it has some."""
    given = result.get("message") if isinstance(result, dict) else None
    return answer({**(result if isinstance(result, dict) else {}), "message": given or message})


async def status(call: Call) -> Response:
    return answer(await call.gateway.ask("status"))


async def nodes(call: Call) -> Response:
    return answer(await inventory.nodes(call.gateway, with_rates=True))


async def vips(call: Call) -> Response:
    return answer(inventory.rows_of(await call.gateway.ask("vips")))


async def services(call: Call) -> Response:
    return answer(await inventory.services(call.gateway, with_rates=True))


async def backends(call: Call) -> Response:
    return answer(await inventory.backends(call.gateway, with_rates=True))


async def counters(call: Call) -> Response:
    return answer((await call.gateway.sampler.sample()).reasons())


async def events(call: Call) -> Response:
    return answer(inventory.rows_of(await call.gateway.ask("events", after=call.query.after, limit=call.query.limit)))


async def connections(call: Call) -> Response:
    names = await inventory.names(call.gateway)
    return answer(await asyncio.to_thread(call.gateway.datapath.connections, call.query, names))


async def connections_top(call: Call) -> Response:
    names = await inventory.names(call.gateway)
    return answer(await asyncio.to_thread(call.gateway.datapath.top, call.query, names))


async def doctor(call: Call) -> Response:
    try:
        vips = inventory.rows_of(await call.gateway.ask("vips"))
    except ControlError:
        vips = []  # the host is to be examined all the more while lbd is away
    return answer(await asyncio.to_thread(examine, call.gateway.settings, vips))


async def stream(call: Call) -> Response:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(await call.gateway.hub.watch(), media_type="text/event-stream", headers=headers)


def etag(version: int) -> str:
    return f'"{version}"'


def version_of(if_match: str | None) -> int:
    """The configuration version of an If-Match header. Raises ApiProblem."""
    if not if_match:
        raise ApiProblem(
            "version_required",
            "a change of the configuration must say which version it was made from",
            field="If-Match",
            remedy='send If-Match: "N" with the version GET /v1/config or POST /v1/config/diff gave',
        )
    text = if_match.strip().removeprefix("W/").strip('"')
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ApiProblem("invalid", f"If-Match {if_match!r} is not a quoted version number", field="If-Match")
    return int(text)


def document_params(call: Call) -> dict[str, Any]:
    kind = "json" if media_type(call.request) == "application/json" else "toml"
    return {"text": call.body, "format": kind, "source": call.request.headers.get("x-source", "request body")[:256]}


async def config(call: Call) -> Response:
    current = await call.gateway.ask("config.get")
    tag = etag(current["version"])
    if call.request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers={"etag": tag})
    return answer(current, headers={"etag": tag})


async def config_diff(call: Call) -> Response:
    found = await call.gateway.ask("config.diff", **document_params(call))
    return answer(found, headers={"etag": etag(found["version"])})


async def config_put(call: Call) -> Response:
    version = version_of(call.request.headers.get("if-match"))
    params = {**document_params(call), "if_version": version}
    applied = await call.gateway.change(call.identity, "config.apply", **params)
    return answer(applied, headers={"etag": etag(applied["version"])})


async def _changed(call: Call, method: str, note: str, **params: Any) -> Response:
    """One change of what the path names, made by the daemon; `note` says what comes of it."""
    return done(await call.gateway.change(call.identity, method, **call.path, **params), note)


async def backend_drain(call: Call) -> Response:
    return await _changed(call, "backend.drain", "no new connections; existing ones stay")


async def backend_undrain(call: Call) -> Response:
    return await _changed(call, "backend.undrain", "takes new connections again")


async def backend_weight(call: Call) -> Response:
    return await _changed(call, "backend.weight", f"weight is {call.body.weight}", weight=call.body.weight)


async def vip_move(call: Call) -> Response:
    return await _changed(call, "vip.move", f"moves to {call.body.node}", node=call.body.node)


async def vip_pin(call: Call) -> Response:
    return await _changed(call, "vip.pin", f"pinned to {call.body.node or 'where it is'}", node=call.body.node)


async def vip_unpin(call: Call) -> Response:
    return await _changed(call, "vip.unpin", "no longer pinned")


async def vip_prefer(call: Call) -> Response:
    note = f"prefers {', '.join(call.body.nodes) or 'nobody'}"
    return await _changed(call, "vip.prefer", note, nodes=call.body.nodes)


async def node_drain(call: Call) -> Response:
    return await _changed(call, "node.drain", "gives its VIPs away and takes no new connections")


async def node_undrain(call: Call) -> Response:
    return await _changed(call, "node.undrain", "takes VIPs and connections again")


async def detach(call: Call) -> Response:
    return await _changed(call, "detach", "the packet path is detached from all interfaces")
