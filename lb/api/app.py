# SPDX-License-Identifier: Apache-2.0
"""The ASGI application: authenticate, authorise, validate, call the handler; every failure becomes one JSON form."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from lb.api.access import Identity, Peer, identify_peer, identify_token, require
from lb.api.endpoint import Call, Endpoint, parse_body, parse_path, parse_query
from lb.api.gateway import Gateway
from lb.api.problems import ApiProblem, status_of
from lb.api.routes import ENDPOINTS
from lb.control import ControlError

PAGE = Path(__file__).resolve().parents[1] / "page"
# The page loads only its own files and talks only to gateways it was told of; nothing may frame it.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self' https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CODE_OF_HTTP = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}

log = logging.getLogger("lb.api")


def identity_of(gateway: Gateway, request: Request) -> Identity:
    """Who is asking. Raises ApiProblem(unauthenticated)."""
    peer: Peer | None = request.scope.get("peer")
    if peer is not None:
        settings = gateway.settings.api
        return identify_peer(peer, settings.access, settings.group)
    origin = request.client.host if request.client else "unknown"
    return identify_token(request.headers.get("authorization", ""), gateway.tokens, origin)


def _refused(problem: ControlError) -> Response:
    headers = {"www-authenticate": "Bearer"} if problem.code == "unauthenticated" else {}
    return JSONResponse(problem.as_plain(), status_code=status_of(problem), headers=headers)


async def _serve(gateway: Gateway, request: Request, endpoint: Endpoint) -> Response:
    identity = identity_of(gateway, request)
    try:
        require(identity, endpoint.role)
    except ApiProblem as problem:
        if endpoint.audited:
            await gateway.record(identity, endpoint.operation_id, request.path_params, problem.code, 0.0)
        raise
    call = Call(gateway, request, identity, parse_path(request))
    call.query = parse_query(endpoint, request)
    call.body = await parse_body(endpoint, request)
    return await endpoint.handler(call)


def _handler(gateway: Gateway, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            return await _serve(gateway, request, endpoint)
        except ControlError as problem:
            return _refused(problem)
        except Exception:
            log.exception("%s %s failed", endpoint.method, endpoint.path)
            text = "the API process failed at this request"
            return _refused(ApiProblem("internal", text, remedy="see 'journalctl -u lb-api'; please report it"))

    return handle


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODE_OF_HTTP.get(error.status_code, "bad_request")
    body = {"code": code, "message": str(error.detail), "remedy": "GET /openapi.json lists all calls"}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def _by_path() -> dict[str, list[Endpoint]]:
    paths: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, []).append(endpoint)
    return paths


def _route(gateway: Gateway, path: str, endpoints: list[Endpoint]) -> Route:
    """One route per path: so that a wrong method is answered 405 with all the right ones in Allow."""
    handlers = {endpoint.method: _handler(gateway, endpoint) for endpoint in endpoints}

    by_name = {method.value: handler for method, handler in handlers.items()}

    async def dispatch(request: Request) -> Response:
        handler = by_name.get(request.method)
        if handler is None:
            raise HTTPException(405, "this path has other methods", {"allow": ", ".join(by_name)})
        return await handler(request)

    route = Route(path, dispatch)
    # Every method matches: what matches in part only would fall through to the page's files.
    route.methods = None
    return route


class Page(StaticFiles):
    """The console's files, with the headers that keep a browser strict about them."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["content-security-policy"] = PAGE_POLICY
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["referrer-policy"] = "no-referrer"
        response.headers["cache-control"] = "no-cache"
        return response


def build(gateway: Gateway) -> Starlette:
    """The application around a gateway; whoever runs it starts and stops the gateway's parts."""
    routes: list[BaseRoute] = [_route(gateway, path, endpoints) for path, endpoints in _by_path().items()]
    routes.append(Mount("/", app=Page(directory=PAGE, html=True, check_dir=False)))
    cors = Middleware(
        CORSMiddleware,
        allow_origins=gateway.settings.api.allow_origins,
        allow_methods=["GET", "POST", "PUT"],
        allow_headers=["authorization", "content-type", "if-match", "x-source"],
        expose_headers=["etag"],
    )
    return Starlette(
        routes=routes,
        middleware=[cors] if gateway.settings.api.allow_origins else [],
        exception_handlers={HTTPException: _http_error},
    )
