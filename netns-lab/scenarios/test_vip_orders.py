# SPDX-License-Identifier: Apache-2.0
"""What operators say about where addresses are to be: pins, preferences, and the policies that move them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import cluster
from netlab.lab import Lab
from netlab.state import LabError
from netlab.waiting import eventually


@pytest.fixture
def ordered(whole: Lab) -> Iterator[tuple[Lab, Path]]:
    """The lab and a copy of its cluster file; the right one is applied again after the test."""
    right, changed = whole.directory / "cluster.toml", whole.directory / "ordered.toml"
    changed.write_text(right.read_text())
    yield whole, changed
    whole.apply("gw1", right)


def order(lab: Lab, vip: str, what: str, **body: object) -> str:
    """Tell the cluster, through whichever gateway: what it answers."""
    return str(lab.api("gw2", "POST", f"/v1/vips/{vip}/{what}", None if what == "unpin" else body)["message"])


def row(lab: Lab, vip: str) -> dict[str, Any]:
    found: dict[str, Any] = next(r for r in lab.api("gw1", "GET", "/v1/vips") if r["address"].startswith(f"{vip}/"))
    return found


def is_at(lab: Lab, vip: str, node: str) -> bool:
    return cluster.owners(lab)[vip] == node


def test_a_pinned_address_is_there_whenever_that_gateway_can_hold_it(ordered: tuple[Lab, Path]) -> None:
    lab, vip = ordered[0], ordered[0].topology.vip(4)
    start = cluster.owner(lab, vip)
    assert order(lab, vip, "pin") == f"{vip} is pinned to {start}"
    there = "gw3" if start != "gw3" else "gw1"
    assert order(lab, vip, "pin", node=there) == f"{vip} is pinned to {there}"
    eventually(lambda: is_at(lab, vip, there), 10)
    assert (row(lab, vip)["pin"], row(lab, vip)["reason"]) == (there, "pinned")
    with pytest.raises(LabError, match=f"is pinned to {there}"):
        order(lab, vip, "move", node=start)
    lab.api("gw2", "POST", f"/v1/nodes/{there}/drain")
    eventually(lambda: not is_at(lab, vip, there), 10, "it fails over all the same")
    lab.api("gw2", "POST", f"/v1/nodes/{there}/undrain")
    eventually(lambda: is_at(lab, vip, there), 10, "it returns")
    assert order(lab, vip, "unpin") == f"{vip} is not pinned"
    assert row(lab, vip)["pin"] is None
    order(lab, vip, "move", node=start)
    eventually(lambda: is_at(lab, vip, start), 10)


def test_a_preferred_gateway_gets_the_address_back_under_failback_alone(ordered: tuple[Lab, Path]) -> None:
    lab, path = ordered
    vip = lab.topology.vip(4)
    order(lab, vip, "move", node="gw1")
    eventually(lambda: is_at(lab, vip, "gw1"), 10)
    assert order(lab, vip, "prefer", nodes=["gw3", "gw2"]) == f"{vip} prefers gw3, gw2"
    assert row(lab, vip)["prefer"] == ["gw3", "gw2"]
    assert is_at(lab, vip, "gw1"), "a preference alone moves nothing"
    path.write_text(lab.api("gw1", "GET", "/v1/config")["text"] + "\n[policy]\nfailback = true\n")
    lab.apply("gw1", path)
    eventually(lambda: is_at(lab, vip, "gw3"), 10)
    assert row(lab, vip)["reason"] == "a preferred gateway is back"
    with pytest.raises(LabError, match=r"prefers gw3 and policy\.failback would bring it back"):
        order(lab, vip, "move", node="gw1")
    assert order(lab, vip, "prefer", nodes=[]) == f"{vip} prefers nobody"
    order(lab, vip, "move", node="gw1")
    eventually(lambda: is_at(lab, vip, "gw1"), 10)


def test_rebalance_spreads_what_is_at_one_gateway(ordered: tuple[Lab, Path]) -> None:
    lab, path = ordered
    for vip in cluster.owners(lab):
        order(lab, vip, "move", node="gw1")
    eventually(lambda: set(cluster.owners(lab).values()) == {"gw1"}, 10)
    path.write_text(path.read_text() + '\n[policy]\nrebalance = "count"\nhold_after_move_s = 0\n')
    lab.apply("gw1", path)

    def is_even() -> bool:
        counts = Counter(cluster.owners(lab).values())
        return len(counts) == len(lab.gateways) and max(counts.values()) - min(counts.values()) <= 1

    eventually(is_even, 20, "each gateway has its share")
    reasons = [row(lab, vip)["reason"] for vip, owner in cluster.owners(lab).items() if owner != "gw1"]
    assert set(reasons) == {"to even out the load"}
