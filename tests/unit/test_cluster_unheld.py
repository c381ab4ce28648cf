# SPDX-License-Identifier: Apache-2.0
"""Why nobody holds an address, in words."""

from typing import Any

import pytest

from lb.cluster.unheld import why_unannounced, why_unheld


def gateway(name: str, state: str = "in_service", reason: str | None = None, *segments: str) -> dict[str, Any]:
    return {"name": name, "state": state, "reason": reason, "segments": list(segments)}


CASES = [
    ("somebody can", [gateway("gw1", "out_of_service", "x", "lan"), gateway("gw2", "joining", "y", "lan")], ""),
    (
        "each lacks something else",
        [
            gateway("gw1", "out_of_service", "required resource failed: uplink", "lan"),
            gateway("gw2", "impaired", "down: eth0", "dmz"),
            gateway("gw3", "gone", "not in the cluster's view"),
        ],
        "no gateway can hold it: gw1 out of service (required resource failed: uplink); "
        "gw2 without a link that is up on segment lan; gw3 gone (not in the cluster's view)",
    ),
    (
        "all lack the same",
        [gateway(name, "out_of_service", "required resource failed: uplink", "lan") for name in ("gw1", "gw2")],
        "no gateway can hold it: gw1, gw2 out of service (required resource failed: uplink)",
    ),
    (
        "a segment that nobody knows",
        [gateway("gw1", "in_service", None, "dmz"), gateway("gw2", "in_service", None, "dmz")],
        "no gateway has a link that is up on segment lan: is it the `segment` of an `[[interface]]`?",
    ),
]


@pytest.mark.parametrize(("what", "gateways", "expected"), CASES, ids=[case[0] for case in CASES])
def test_what_each_gateway_lacks(what: str, gateways: list[dict[str, Any]], expected: str) -> None:
    assert why_unheld("lan", gateways) == expected


def test_what_keeps_gateways_from_announcing() -> None:
    gateways = [gateway("gw1"), gateway("gw2", "draining", "drained by an operator"), gateway("gw3")]
    problems = {"gw3": "cannot: there is no interface dummy9"}
    said = "gw2 draining (drained by an operator); gw3 cannot: there is no interface dummy9"
    assert why_unannounced(gateways, problems) == said
    assert why_unannounced(gateways[:1], {}) == ""
