# SPDX-License-Identifier: Apache-2.0
"""schemathesis against the running API: generated requests, valid and not, get documented answers."""

from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ebpf.loader import load_programs
from lb.api.routes import description
from tests.unit.api_support import TOKEN, running_api, tls_listener
from tests.unit.test_api_http import fill_connections

EXAMPLES = 4
# A shared machine may be busy with everything else for a while.
REQUEST_TIMEOUT_S = 60
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
)
# Endless answers: the stream, and captures that run for as long as they are told to.
schema = schemathesis.openapi.from_dict(description()).exclude(path_regex="/v1/stream|/v1/capture|/v1/detach")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of the TLS listener, and the certificate to trust."""
    directory = tmp_path_factory.mktemp("schema")
    port, extra = tls_listener(directory)
    with running_api(directory / "gw", extra) as running:
        fill_connections(running)
        # what `where` runs is the real program
        load_programs(directory / "gw" / "run" / "bpf" / "gw1")
        running.control.emit("node.joined", "gw1 formed a group", node="gw1")
        yield f"https://127.0.0.1:{port}", str(directory / "cert.pem")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """One connection for all: a TLS handshake for each request would be most of the work."""
    with requests.Session() as kept:
        yield kept


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_generated_requests(case: schemathesis.Case, address: tuple[str, str], session: requests.Session) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base, certificate = address
    options = {"headers": headers, "verify": certificate, "timeout": REQUEST_TIMEOUT_S}
    case.call_and_validate(base_url=base, session=session, checks=list(CHECKS), **options)
