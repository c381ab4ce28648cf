# SPDX-License-Identifier: Apache-2.0
"""One description of each call: routing, authorisation, validation and the OpenAPI document all come from it."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lb.api import shapes
from lb.api.access import Identity
from lb.api.problems import ApiProblem
from lb.api.shapes import DOCUMENT_BYTES_MAX, Role

if TYPE_CHECKING:
    from lb.api.gateway import Gateway

BODY_BYTES_MAX = 64 << 10
#: variable part of a path -> what it is, and what it may be
PATH_PARAMETERS: dict[str, tuple[str, TypeAdapter[str]]] = {
    "service": ("name of a service", TypeAdapter(shapes.Name)),
    "backend": ("name of a backend within its service", TypeAdapter(shapes.Name)),
    "node": ("name of a node", TypeAdapter(shapes.Name)),
    "address": ("a VIP's address without prefix length", TypeAdapter(shapes.AddressText)),
}


@dataclass
class Call:
    """One request, authenticated and validated, on its way to its handler."""

    gateway: "Gateway"
    request: Request
    identity: Identity
    path: dict[str, str]
    query: Any = None
    body: Any = None


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Endpoint:
    """method path -> handler, and all that is to be known about it."""

    method: HTTPMethod
    path: str
    handler: Handler
    summary: str
    role: Role = "read"
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    #: (media type -> None) for a body handed to the handler as text
    text_body: tuple[str, ...] = ()
    answer: Any = None
    answer_media: str = "application/json"
    #: a change: goes into the audit log
    audited: bool = False
    problems: tuple[int, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def operation_id(self) -> str:
        words = [word.strip("{}") for word in self.path.removeprefix("/v1/").split("/") if word]
        return "_".join([self.method.lower(), *words]).replace(".", "_") or self.method.lower()


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises ApiProblem(too_large) as soon as it exceeds limit, whatever its declared length."""
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise ApiProblem("too_large", f"the body is over {limit} bytes", remedy="send less at once")
            parts.append(part)
    except ClientDisconnect as error:
        raise ApiProblem("bad_request", "the client went away before its request was complete") from error
    return b"".join(parts)


async def parse_body(endpoint: Endpoint, request: Request) -> Any:
    """The validated body model, the text of a document, or None. Raises ApiProblem."""
    if endpoint.text_body:
        return await _parse_text(endpoint, request)
    if endpoint.body is None:
        if await read_body(request, BODY_BYTES_MAX):
            raise ApiProblem("invalid", "this call takes no body", remedy="send an empty body")
        return None
    if media_type(request) != "application/json":
        raise ApiProblem("unsupported_media_type", "the body must be application/json")
    try:
        document = json.loads(await read_body(request, BODY_BYTES_MAX))
    except (ValueError, RecursionError) as error:
        raise ApiProblem("bad_request", f"the body is not JSON: {error}") from error
    return validate(endpoint.body, document)


async def _parse_text(endpoint: Endpoint, request: Request) -> str:
    if media_type(request) not in endpoint.text_body:
        raise ApiProblem("unsupported_media_type", f"the body must be {' or '.join(endpoint.text_body)}")
    try:
        return (await read_body(request, DOCUMENT_BYTES_MAX)).decode()
    except UnicodeDecodeError as error:
        raise ApiProblem("bad_request", f"the body is not UTF-8: {error}") from error


def parse_path(request: Request) -> dict[str, str]:
    """The validated variable parts of the path. Raises ApiProblem(invalid)."""
    parsed = {}
    for name, value in request.path_params.items():
        try:
            parsed[name] = str(PATH_PARAMETERS[name][1].validate_python(value))
        except ValidationError as error:
            message = f"{name}: {error.errors(include_url=False)[0]['msg']}"
            raise ApiProblem("invalid", message, field=name) from error
    return parsed


def parse_query(endpoint: Endpoint, request: Request) -> Any:
    """The validated query model or None. Raises ApiProblem(invalid), also for unknown and repeated parameters."""
    pairs = request.query_params.multi_items()
    given = dict(pairs)
    if len(given) != len(pairs):
        raise ApiProblem("invalid", "a query parameter is given twice")
    if endpoint.query is None:
        if given:
            raise ApiProblem("invalid", f"this call takes no query parameters (given: {', '.join(sorted(given))})")
        return None
    return validate(endpoint.query, given)


def validate(model: type[BaseModel], document: Any) -> BaseModel:
    """model from document. Raises ApiProblem(invalid) naming the first wrong field, its value and what is allowed."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ApiProblem("invalid", f"{where or 'body'}: {first['msg']}", field=where or None) from error
