# SPDX-License-Identifier: Apache-2.0
"""Errors of the API: refusals like lbd's, and the table from error code to HTTP status."""

from http import HTTPStatus
from typing import cast

from lb.control.protocol import Code, ControlError

STATUS_OF_CODE = {
    "bad_request": HTTPStatus.BAD_REQUEST,
    "unauthenticated": HTTPStatus.UNAUTHORIZED,
    "denied": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "conflict": HTTPStatus.CONFLICT,
    "version_mismatch": HTTPStatus.PRECONDITION_FAILED,
    "version_required": HTTPStatus.PRECONDITION_REQUIRED,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unsupported_media_type": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "invalid": HTTPStatus.UNPROCESSABLE_ENTITY,
    "too_many": HTTPStatus.TOO_MANY_REQUESTS,
    "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
    "unsupported": HTTPStatus.NOT_IMPLEMENTED,
    "unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "timeout": HTTPStatus.GATEWAY_TIMEOUT,
}


class ApiProblem(ControlError):
    """A request that the API refuses, or that failed. Becomes shapes.Problem, as a refusal of lbd's does."""

    def __init__(self, code: str, message: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(cast(Code, code), message, field=field, remedy=remedy)


def status_of(problem: ControlError) -> HTTPStatus:
    """A newer lbd may know codes that this process does not: they stay visible but count as internal."""
    return STATUS_OF_CODE.get(problem.code, HTTPStatus.INTERNAL_SERVER_ERROR)
