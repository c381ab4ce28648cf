# SPDX-License-Identifier: Apache-2.0
"""Traffic routed through the cluster: both directions of a connection pass the same gateway, a firewall proves it."""

import json
from functools import partial

import pytest
from netlab import build, cluster, connections, faults, services
from netlab.lab import Argument, Lab, LabMaker
from netlab.topology import FAMILIES, HTTP_PORT, LOCAL_HTTP_PORT, Family
from netlab.waiting import eventually

from scenarios.firewall import PORT, drop_firewalls, moving, opened, raise_firewalls

CONNECTIONS = 600
SHARE_MIN = 0.2


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("three-gateways")
    raise_firewalls(made)
    cluster.settle(made)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_every_connection_passes_a_stateful_firewall_and_all_gateways_share(lab: Lab, family: Family) -> None:
    before = opened(lab)
    backend = lab.topology.node("b1").address("inside", family)
    report = lab.measure("http_load", backend, PORT, "--connections", CONNECTIONS, "--concurrency", 32)
    assert (report["failed"], report["requests"]) == (0, CONNECTIONS), report
    begun = {name: count - before[name] for name, count in opened(lab).items()}
    assert sum(begun.values()) == CONNECTIONS, f"connections began on more than one gateway: {begun}"
    assert min(begun.values()) > SHARE_MIN * CONNECTIONS, begun


def test_a_download_through_the_cluster_survives_leave_and_join(lab: Lab) -> None:
    """Without the firewall's own state on the other gateways: it is taken off for this one."""
    drop_firewalls(lab)
    backend = lab.topology.node("b2").address("inside", 4)
    with lab.traffic("downloads", backend, PORT, *download_options(lab, "8m", 8 << 20)) as downloads:
        eventually(lambda: moving(lab, 8))
        faults.set_links(lab, "gw2", up=False)
        cluster.wait_for_owners(lab, ["gw1", "gw3"], but=["gw2"])
        faults.heal(lab)
        cluster.settle(lab)
        report = downloads.wait()
    assert (report["complete"], report["failed"]) == (8, 0), report


def download_options(lab: Lab, name: str, size: int) -> list[Argument]:
    digest = services.make_content(lab.directory, name, size)
    return ["--path", f"/file/{name}", "--rate", 1 << 20, "--count", 8, "--sha256", digest]


def all_share(lab: Lab, node: str) -> bool:
    return connections.sharing(lab, node) == {gateway.name for gateway in lab.gateways}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_service_is_served_by_all_and_its_connections_stay_when_the_address_moves(
    lab: Lab, family: Family
) -> None:
    vip = lab.topology.vip(family)
    for gateway in lab.gateways:
        eventually(partial(all_share, lab, gateway.name), what="all get new connections")
    with lab.traffic("claims", "eth0", vip) as claims:
        report = lab.measure("http_load", vip, LOCAL_HTTP_PORT, "--connections", CONNECTIONS)
        assert (report["failed"], set(report["backends"])) == (0, {"gw1", "gw2", "gw3"}), report
        assert min(report["backends"].values()) > SHARE_MIN * CONNECTIONS, report
        with lab.traffic("downloads", vip, LOCAL_HTTP_PORT, *download_options(lab, "2m", 2 << 20)) as downloads:
            eventually(lambda: moving(lab, 8, LOCAL_HTTP_PORT))
            before = cluster.owner(lab, vip)
            after = cluster.others(lab, before)[0]
            lab.api("gw1", "POST", f"/v1/vips/{vip}/move", {"node": after})
            eventually(lambda: cluster.owner(lab, vip) == after)
            downloaded = downloads.wait()
    assert (downloaded["complete"], downloaded["failed"]) == (8, 0), downloaded
    # Gateways that serve without holding the address do not ask for neighbours in its name either.
    claimants = {run["mac"] for run in claims.report[vip]}
    assert claimants <= {build.mac_address(name, "eth0") for name in (before, after)}


def test_a_gateway_that_holds_both_sides_answers_clients_it_has_never_heard_of(lab: Lab) -> None:
    """After a takeover clients send at once, without the question by which the new owner would know them."""
    owner = "gw3"
    vips = [lab.topology.vip(4, segment) for segment in ("outside", "inside")]
    for vip in vips:
        if cluster.owner(lab, vip) != owner:
            lab.api("gw1", "POST", f"/v1/vips/{vip}/move", {"node": owner})
    eventually(lambda: {cluster.owners(lab)[vip] for vip in vips} == {owner})
    known = json.loads(lab.run(owner, ["ip", "-j", "neighbour", "show", "dev", "eth0"]).stdout)
    client = lab.topology.node("client").address("outside", 4)
    if client in [entry["dst"] for entry in known]:
        lab.run(owner, ["ip", "neighbour", "delete", client, "dev", "eth0"])
    report = lab.measure("http_load", vips[0], HTTP_PORT, "--connections", 20, "--timeout", 2)
    assert (report["failed"], report["requests"]) == (0, 20), report
