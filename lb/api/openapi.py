# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document, generated from the table of endpoints and the models of lb.api.shapes."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lb.api import shapes
from lb.api.endpoint import PATH_PARAMETERS, Endpoint

API_VERSION = "1"
_REFERENCE = "#/components/schemas/{model}"

# What any call may answer besides its success.
COMMON_PROBLEMS = (400, 401, 403, 413, 422, 429, 500, 503, 504)


def _is_model(answer: Any) -> bool:
    return isinstance(answer, type) and issubclass(answer, BaseModel)


def _models(endpoints: Sequence[Endpoint]) -> list[type[BaseModel]]:
    answers = [endpoint.answer for endpoint in endpoints]
    plain = [answer for answer in answers if _is_model(answer)]
    items = [answer.__args__[0] for answer in answers if getattr(answer, "__origin__", None) is list]
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body]
    return list(dict.fromkeys([shapes.Problem, *plain, *items, *bodies]))


def _schema_of(answer: Any) -> dict[str, Any]:
    if _is_model(answer):
        return {"$ref": _REFERENCE.format(model=answer.__name__)}
    if getattr(answer, "__origin__", None) is list:
        return {"type": "array", "items": _schema_of(answer.__args__[0])}
    return {"type": "object" if answer is dict else "string"}


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    found = re.findall(r"{(\w+)}", endpoint.path)
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name][0],
            "schema": PATH_PARAMETERS[name][1].json_schema(),
        }
        for name in found
    ]


def _query_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    if endpoint.query is None:
        return []
    properties = endpoint.query.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": _without_null(schema)}
        for name, schema in properties.items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not given is absent, never null."""
    kept = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if not kept:
        return schema
    rest = {key: value for key, value in schema.items() if key not in {"anyOf", "default"}}
    return {**rest, **kept[0]} if len(kept) == 1 else {**rest, "anyOf": kept}


def _header_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in endpoint.headers.items()
    ]


def _request_body(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.text_body:
        content = {
            media: {"schema": {"type": "object"} if media == "application/json" else {"type": "string"}}
            for media in endpoint.text_body
        }
        return {"requestBody": {"required": True, "content": content}}
    if endpoint.body is None:
        return {}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema_of(endpoint.body)}}}}


def _problem(status: int) -> dict[str, Any]:
    reference = {"$ref": _REFERENCE.format(model="Problem")}
    return {"description": HTTPStatus(status).phrase, "content": {"application/json": {"schema": reference}}}


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    success = {"description": "OK", "content": {endpoint.answer_media: {"schema": _schema_of(endpoint.answer)}}}
    missing = {404} if "{" in endpoint.path else set()
    problems = {*COMMON_PROBLEMS, *endpoint.problems, *missing}
    if endpoint.body or endpoint.text_body:
        problems.add(415)
    if endpoint.audited:
        problems.add(409)
    return {"200": success} | {str(status): _problem(status) for status in sorted(problems)}


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "operationId": endpoint.operation_id,
        "summary": endpoint.summary,
        "description": f"Needs the role `{endpoint.role}`.",
        "parameters": [
            *_path_parameters(endpoint),
            *_query_parameters(endpoint),
            *_header_parameters(endpoint),
        ],
        **_request_body(endpoint),
        "responses": _responses(endpoint),
    }


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The whole document of a table of calls."""
    _, schemas = models_json_schema([(model, "validation") for model in _models(endpoints)], ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "rainlb",
            "version": API_VERSION,
            "description": "One gateway of a rainlb cluster, and through it the whole cluster.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
