# SPDX-License-Identifier: Apache-2.0
"""Four gateways with a ring of their own: its links and those of the data cut apart, deaths in a row, parts."""

from collections.abc import Iterator
from functools import partial

import pytest
from netlab import cluster, faults
from netlab.gateway_files import Scalar
from netlab.lab import Lab, LabMaker
from netlab.topology import FAMILIES, HTTP_PORT
from netlab.waiting import eventually

from scenarios.clients import answered, clients
from scenarios.on_the_wire import assert_one_owner_each, mislead, watched

RING = ("ring1", "ring2")
PARTS = (["gw1", "gw2"], ["gw3", "gw4"])
# Longer than the ring needs to miss a silent member, with room for a busy machine.
UNNOTICED_S = 1.0


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("four-gateways-dual-link")
    cluster.settle(made)
    return made


def test_one_ring_link_is_missed_by_nobody(whole: Lab) -> None:
    owner = cluster.owner_of_all(whole)
    before, number = cluster.owners(whole), cluster.view(whole, owner)[0]
    with clients(whole) as traffic:
        for link in RING:
            faults.set_links(whole, owner, up=False, interfaces=[link])
            answered_for(whole, UNNOTICED_S)
            faults.set_links(whole, owner, up=True, interfaces=[link])
            cluster.wait_for_ring_link(whole, owner, link)
    assert (cluster.owners(whole), cluster.view(whole, owner)[0]) == (before, number)
    traffic.assert_unnoticed()
    assert traffic.claims.all_claimants() == {owner}


def answered_for(lab: Lab, seconds: float) -> None:
    """New connections for a while, and none of them fails."""
    options = ["--connections", "0", "--concurrency", "4", "--pause", "0.02", "--seconds", str(seconds)]
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, *options)
    assert report["failed"] == 0, report


def test_a_data_link_is_lost_and_the_ring_goes_on(whole: Lab) -> None:
    """The owner hands its addresses over in order, on both sides, and stays a member."""
    victim = cluster.owner_of_all(whole)
    number = cluster.view(whole, victim)[0]
    with clients(whole) as traffic:
        faults.set_links(whole, victim, up=False, interfaces=["inside"])
        cluster.wait_for_owners(whole, cluster.others(whole, victim))
        assert cluster.view(whole, victim)[0] == number
    traffic.assert_undisturbed()
    assert cluster.state_of(whole, victim, asked=cluster.others(whole, victim)[0]) == "out_of_service"
    traffic.claims.assert_one_owner_at_a_time(cluster.others(whole, victim)[0])


def test_the_successor_dies_as_it_takes_over(whole: Lab) -> None:
    vip = whole.topology.vip(4)
    first = cluster.owner_of_all(whole)
    with clients(whole) as traffic:
        faults.set_links(whole, first, up=False)
        second = eventually(lambda: new_owner(whole, vip, first), 10)
        faults.set_links(whole, second, up=False)
        left = cluster.others(whole, first, second)
        cluster.wait_for_owners(whole, left, but=[first, second])
        assert eventually(lambda: answered(whole, 100), 10)
        cluster.revive(whole)
    traffic.assert_undisturbed()
    traffic.claims.assert_one_owner_at_a_time(left[0])


def new_owner(lab: Lab, vip: str, dead: str) -> str:
    """Whoever has succeeded a dead owner, as soon as anybody says so; empty before."""
    owner = cluster.owner(lab, vip, but=[dead])
    return owner if owner != dead else ""


def test_a_gateway_returns_with_an_old_configuration(whole: Lab) -> None:
    """While it was away the cluster changed: it serves what the cluster serves, not what its disk says."""
    absent, present = "gw4", "gw1"
    old = whole.api(absent, "GET", "/v1/status")["config_version"]
    whole.stop(f"{absent}/lbd")
    cluster.wait_for_members(whole, cluster.others(whole, absent))
    for backend in ("b1", "b2"):
        whole.api(present, "POST", f"/v1/backends/http4/{backend}/drain")
    current = whole.api(present, "GET", "/v1/status")["config_version"]
    assert current > old
    whole.start_daemon(absent)
    cluster.settle(whole)
    eventually(lambda: whole.api(absent, "GET", "/v1/status")["config_version"] == current, 10)
    for segment in ("outside", "inside"):
        whole.lbctl(absent, "vip", "move", whole.topology.vip(4, segment), absent)
    eventually(lambda: cluster.owner(whole, whole.topology.vip(4)) == absent, 10)
    # Answered by the gateway that was away.
    report = whole.measure("http_load", whole.topology.vip(4), HTTP_PORT, "--connections", 60, "--timeout", 5)
    for backend in ("b1", "b2"):
        whole.api(present, "POST", f"/v1/backends/http4/{backend}/undrain")
    assert (report["failed"], set(report["backends"])) == (0, {"b3"}), report


def test_all_gateways_lose_their_links_and_come_back(whole: Lab) -> None:
    """A power cut of the switch: nobody reaches anybody. Connections that clients still have are served on."""
    vip = whole.topology.vip(4)
    with whole.traffic("push_watch", vip, "--count", 20) as pushed:
        for gateway in whole.gateways:
            faults.set_links(whole, gateway.name, up=False)
        for gateway in whole.gateways:
            cluster.wait_for_members(whole, [gateway.name])
        mislead(whole)
        faults.heal(whole)
        cluster.settle(whole)
        assert_one_owner_each(whole)
        assert eventually(lambda: answered(whole, 100), 10)
    assert (pushed.report["failed"], pushed.report["lost_connections"]) == (0, 0), pushed.report


# ---------------------------------------------------------------------------------------------------------------------
# the network falls apart


@pytest.fixture(scope="module", params=["continue", "majority", "critical"])
def parting(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[Lab, str]]:
    """The lab under each partition policy; `critical` is the way out, as a ping of the client shows."""
    way_out = lab.topology.node("client").address("outside", 4)
    uplink: dict[str, Scalar] = {"name": "uplink", "kind": "ping", "address": way_out, "critical": True}
    tries: dict[str, Scalar] = {"required": False, "interval_ms": 200, "timeout_ms": 200, "fall": 2, "rise": 2}
    resources = [{**uplink, **tries}] if request.param == "critical" else []
    cluster.reconfigure(lab, {"partition_policy": request.param}, resources)
    yield lab, request.param
    cluster.revive(lab)


@pytest.fixture
def healed(parting: tuple[Lab, str]) -> Iterator[tuple[Lab, str]]:
    cluster.settle(parting[0])
    yield parting
    cluster.revive(parting[0])


def part(lab: Lab, nodes: list[str], policy: str, *, one_way: bool = False) -> None:
    """No ring between them and the others; under `critical`, no answers from outside either (the link stays up)."""
    if policy == "critical":
        for node in nodes:
            faults.set_loss(lab, node, 100, interfaces=["outside"])
        # Only then: before anybody has missed the way out, both parts would be right to go on.
        for node in nodes:
            eventually(partial(assert_gave_way, lab, node, nodes), 15, f"{node} gave way")
    faults.partition(lab, nodes, segments=RING, one_way=one_way)


def serving(lab: Lab, node: str) -> bool:
    view = lab.api(node, "GET", "/v1/status")["view"]
    return bool(view and view["serving"])


def owners_seen_by(lab: Lab, node: str) -> set[str | None]:
    return set(cluster.owners(lab, but=cluster.others(lab, node)).values())


def test_two_and_two_part_and_come_together_under_load(healed: tuple[Lab, str]) -> None:
    lab, policy = healed
    goes_on = {"continue": [True, True], "majority": [False, False], "critical": [False, True]}[policy]
    with watched(lab) as claims, lab.traffic("push_watch", lab.topology.vip(4), "--count", 20) as pushed:
        part(lab, PARTS[0], policy)
        for members, serves in zip(PARTS, goes_on, strict=True):
            for node in members:
                check = partial(assert_serves if serves else assert_gave_way, lab, node, members)
                eventually(check, 15, f"{node} serves: {serves}")
        if policy == "critical":
            assert eventually(lambda: answered(lab, 100), 10)
        mislead(lab)
        faults.heal(lab)
        cluster.settle(lab)
        assert_one_owner_each(lab)
        assert eventually(lambda: answered(lab, 100), 10)
    assert (pushed.report["failed"], pushed.report["lost_connections"]) == (0, 0), pushed.report
    if policy != "continue":
        claims.assert_one_owner_at_a_time(PARTS[1][0])


def assert_serves(lab: Lab, node: str, members: list[str]) -> bool:
    """A gateway is in a part with exactly these, and they hold every address."""
    assert (cluster.members(lab, node), serving(lab, node)) == (set(members), True)
    assert owners_seen_by(lab, node) <= set(members)
    return True


def assert_gave_way(lab: Lab, node: str, _members: list[str]) -> bool:
    """A gateway neither serves nor has an address."""
    assert (serving(lab, node), holds_any(lab, node)) == (False, False)
    return True


def holds_any(lab: Lab, node: str) -> bool:
    """Whether a gateway would answer for an address: it has one on an interface."""
    lines = lab.run(node, ["ip", "-o", "address", "show"]).stdout
    return any(f" {lab.topology.vip(family)}/" in lines for family in FAMILIES)


def test_one_alone_and_three(healed: tuple[Lab, str]) -> None:
    """The one without a ring still shares the segments with the others: unless it is to `continue`, it gives way.

    Clients are there when it comes back, too.
    """
    lab, policy = healed
    # The second time it hears the others, and they do not hear it.
    for one_way in (False, True) if policy == "majority" else (False,):
        alone = cluster.owner_of_all(lab)
        rest = cluster.others(lab, alone)
        with clients(lab) as traffic:
            part(lab, [alone], policy, one_way=one_way)
            cluster.wait_for_owners(lab, rest, but=[alone])
            if policy == "continue":
                eventually(lambda alone=alone: owners_seen_by(lab, alone) == {alone}, 15)  # type: ignore[misc]
            else:
                eventually(partial(assert_gave_way, lab, alone, [alone]), 15)
            assert eventually(lambda: answered(lab, 100), 10)
            cluster.revive(lab)
        traffic.assert_undisturbed()
        if policy != "continue":
            traffic.claims.assert_one_owner_at_a_time(rest[0])
        assert_one_owner_each(lab)
