# SPDX-License-Identifier: Apache-2.0
"""A short, seeded slice of wrong requests to a real daemon and a real API; `make fuzz` runs the long one."""

from pathlib import Path

from tests.fuzz import requests
from tests.unit.api_support import running_api
from tests.unit.cluster_namespaces import pair
from tests.unit.lb_process import lbd_in


def test_the_daemon_answers_or_refuses_any_frame_and_serves_the_next(tmp_path: Path) -> None:
    with pair() as wire, lbd_in(tmp_path, wire.left) as lbd:
        lbd.start()
        outcomes = requests.control(tmp_path / "run" / "control.sock", count=600, seed=2026)
    assert outcomes["answered"] > 100
    assert outcomes["refused"] > 200


def test_the_api_answers_or_refuses_any_request_and_serves_the_next(tmp_path: Path) -> None:
    with running_api(tmp_path / "api") as running:
        outcomes = requests.api(running.socket, count=600, seed=2026)
    assert outcomes["200"] > 80
    assert outcomes["422"] > 150
    assert outcomes["closed"] < 20
