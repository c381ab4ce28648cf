# SPDX-License-Identifier: Apache-2.0
"""A cluster of three gateways: one goes, in every way a gateway can go, and clients see a hiccup, not a reset."""

import pytest
from netlab import build, cluster, faults
from netlab.lab import Lab
from netlab.topology import FAMILIES
from netlab.waiting import eventually

from scenarios.clients import answered, assert_one_owner_each, clients, others


def fail(lab: Lab, node: str, fault: str) -> None:
    match fault:
        case "kill" | "stop":
            faults.signal_daemon(lab, node, fault)
        case "host death":
            faults.set_links(lab, node, up=False)
        case "outside link":
            faults.set_links(lab, node, up=False, interfaces=["outside"])


@pytest.mark.parametrize("fault", ["kill", "stop", "host death", "outside link"])
def test_clients_survive_the_loss_of_the_owner(whole: Lab, fault: str) -> None:
    vip = whole.topology.vip(4)
    victim = cluster.owner(whole, vip)
    with clients(whole) as traffic:
        fail(whole, victim, fault)
        cluster.wait_for_owners(whole, others(whole, victim), but=[victim])
        # What the new owners do is to be seen as well.
        eventually(lambda: answered(whole, 100), 10)
    traffic.assert_undisturbed()
    for family in FAMILIES:
        traffic.assert_one_owner_at_a_time(whole.topology.vip(family))


def test_a_drained_gateway_hands_over_without_a_gap(whole: Lab) -> None:
    victim = cluster.owner(whole, whole.topology.vip(4))
    with clients(whole) as traffic:
        whole.api(victim, "POST", f"/v1/nodes/{victim}/drain")
        cluster.wait_for_owners(whole, others(whole, victim))
        assert answered(whole, 100)
    whole.api(victim, "POST", f"/v1/nodes/{victim}/undrain")
    traffic.assert_undisturbed()


def test_a_restarted_daemon_keeps_its_vips(whole: Lab) -> None:
    vip = whole.topology.vip(4)
    node = cluster.owner(whole, vip)
    with clients(whole) as traffic:
        whole.stop(f"{node}/lbd")
        whole.start_daemon(node)
        cluster.settle(whole)
    traffic.assert_undisturbed()
    assert cluster.owner(whole, vip) == node
    assert {run["mac"] for run in traffic.claims.report[vip]} == {build.mac_address(node, "eth0")}


def test_the_last_gateway_carries_everything_and_the_others_return(whole: Lab) -> None:
    first, second, _ = (gateway.name for gateway in whole.gateways)
    with clients(whole) as traffic:
        faults.signal_daemon(whole, first, "kill")
        faults.signal_daemon(whole, second, "kill")
        cluster.wait_for_owners(whole, others(whole, first, second), but=[first, second])
        assert eventually(lambda: answered(whole, 50), 10)
        for name in (first, second):
            whole.start_daemon(name)
        cluster.settle(whole)
    for name in ("pushed", "held", "downloads"):
        report = getattr(traffic, name).report
        assert report["failed"] == 0, f"{name}: {report}"


def test_all_gateways_die_and_come_back(whole: Lab) -> None:
    for gateway in whole.gateways:
        faults.signal_daemon(whole, gateway.name, "kill")
    for gateway in whole.gateways:
        whole.start_daemon(gateway.name, wait=False)
    for gateway in whole.gateways:
        whole.wait_ready(gateway.name)
    cluster.settle(whole)
    assert eventually(lambda: answered(whole, 100), 10)


def test_a_partition_heals_to_one_owner_each(whole: Lab) -> None:
    alone = "gw1"
    faults.partition(whole, [alone])
    cluster.wait_for_members(whole, [alone])
    cluster.wait_for_members(whole, others(whole, alone))
    # Inside each part every VIP has its one owner.
    eventually(lambda: set(cluster.owners(whole, but=others(whole, alone)).values()) == {alone})
    cluster.wait_for_owners(whole, others(whole, alone), but=[alone])
    faults.heal(whole)
    cluster.settle(whole)
    assert eventually(lambda: answered(whole, 100), 10)
    assert_one_owner_each(whole)


def test_a_one_way_partition_neither_splits_for_good_nor_doubles_a_vip(whole: Lab) -> None:
    with clients(whole) as traffic:
        faults.partition(whole, ["gw3"], one_way=True)
        cluster.wait_for_owners(whole, ["gw1", "gw2"], but=["gw3"])
    faults.heal(whole)
    cluster.settle(whole)
    assert eventually(lambda: answered(whole, 100), 10)
    assert traffic.held.report["lost_connections"] == 0, traffic.held.report
