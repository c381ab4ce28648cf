# SPDX-License-Identifier: Apache-2.0
"""What `lbctl status` says is wrong: rows in, sentences out."""

from typing import Any

import pytest

from tools.lbctl.trouble import LINES_MAX, troubles

NODE: dict[str, Any] = {"name": "gw1", "state": "in_service", "reason": None}
VIP: dict[str, Any] = {"address": "10.0.1.100/24", "owners": ["gw1"], "reason": "nobody had it"}
SERVICE = {"name": "web", "backend_count": 2, "backends_up": 2}
BACKEND = {"service": "web", "name": "b1", "state": "up", "reason": "status 200"}
DOWN = BACKEND | {"state": "down", "reason": "no answer within 400 ms"}

CASES: list[tuple[dict[str, dict[str, Any]], list[str]]] = [
    ({}, []),
    (
        {"vip": VIP | {"owners": [], "reason": "no gateway may hold it"}},
        ["VIP 10.0.1.100/24 is held by nobody: no gateway may hold it (lbctl vips)"],
    ),
    (
        {"node": NODE | {"state": "out_of_service", "reason": "required resource failed: eth0-link"}},
        ["gateway gw1 is out of service: required resource failed: eth0-link (lbctl nodes)"],
    ),
    (
        {"node": NODE | {"clock_offset_s": -7 * 86400.0}},
        ["the clock of gateway gw1 is 7d behind this one's: set the wrong one"],
    ),
    ({"node": NODE | {"clock_offset_s": 0.3}}, []),
    ({"backend": DOWN}, ["backend web/b1 is down: no answer within 400 ms (lbctl backends)"]),
    (
        {"backend": DOWN, "service": SERVICE | {"backends_up": 0}},
        ["service web has no backend that is up: no answer within 400 ms (lbctl backends web)"],
    ),
    ({"service": SERVICE | {"backend_count": 0, "backends_up": 0}}, []),
    ({"backend": BACKEND | {"state": "draining", "reason": "drained"}}, []),
]


@pytest.mark.parametrize(("changed", "sentences"), CASES)
def test_sentences(changed: dict[str, dict[str, Any]], sentences: list[str]) -> None:
    rows: dict[str, dict[str, Any]] = {"node": NODE, "vip": VIP, "service": SERVICE, "backend": BACKEND} | changed
    assert troubles([rows["node"]], [rows["vip"]], [rows["service"]], [rows["backend"]]) == sentences


def test_vips_that_nobody_holds_for_one_reason_are_one_trouble() -> None:
    vips = [VIP | {"address": f"10.0.1.{host}/24", "owners": [], "reason": "no link"} for host in (1, 2)]
    assert troubles([NODE], vips, [], []) == ["VIPs 10.0.1.1/24, 10.0.1.2/24 are held by nobody: no link (lbctl vips)"]


def test_the_worst_comes_first_and_the_list_has_an_end() -> None:
    backends = [DOWN | {"name": f"b{number}"} for number in range(20)]
    found = troubles([NODE | {"state": "gone"}], [VIP | {"owners": []}], [SERVICE], backends)
    assert found[0].startswith("VIP")
    assert found[1].startswith("gateway")
    assert len(found) == LINES_MAX + 1
    assert found[-1] == "and 14 more"
