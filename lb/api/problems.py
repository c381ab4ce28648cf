# SPDX-License-Identifier: Apache-2.0
"""Errors of the API: one exception, one table from error code to HTTP status, one JSON form."""

from http import HTTPStatus

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


class ApiProblem(Exception):
    """A request that is refused or failed; becomes the JSON answer of shapes.Problem."""

    def __init__(self, code: str, message: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        # A newer lbd may know codes this process does not: they stay visible but count as internal.
        self.status = STATUS_OF_CODE.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
        self.code, self.message, self.field, self.remedy = code, message, field, remedy

    def as_json(self) -> dict[str, str]:
        named = {"code": self.code, "message": self.message, "field": self.field, "remedy": self.remedy}
        return {key: value for key, value in named.items() if value is not None}
