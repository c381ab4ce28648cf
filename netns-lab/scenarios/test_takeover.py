# SPDX-License-Identifier: Apache-2.0
"""A cluster of three gateways: one goes, in every way a gateway can go, and clients see a hiccup, not a reset."""

import time

import pytest
from netlab import cluster, faults
from netlab.lab import Lab
from netlab.topology import FAMILIES
from netlab.waiting import eventually

from scenarios.clients import answered, clients
from scenarios.on_the_wire import assert_believed, assert_one_owner_each, mislead

# An owner says at growing intervals that it has an address: after this time it has just done so, and is silent for the
# next ten seconds unless something happens.
SAID_AGAIN_S = 5.5
BELIEVED_S = 6.0
# Less than a gateway that does not come back is waited for.
RETURN_S = 10.0
REPETITIONS = 3


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
    """And its return, again and again: whatever it has slept through, it does not claim what others have now."""
    victim = cluster.owner_of_all(whole)
    rest, everything = cluster.others(whole, victim), dict.fromkeys(cluster.owners(whole), victim)
    with clients(whole) as traffic:
        for _ in range(REPETITIONS):
            cluster.place(whole, everything)
            fail(whole, victim, fault)
            cluster.wait_for_owners(whole, rest, but=[victim])
            # What the new owners do is to be seen as well.
            eventually(lambda: answered(whole, 100), 10)
            cluster.revive(whole)
    traffic.assert_undisturbed()
    traffic.claims.assert_one_owner_at_a_time(rest[0])


def test_a_drained_gateway_hands_over_without_a_gap(whole: Lab) -> None:
    victim = cluster.owner_of_all(whole)
    with clients(whole) as traffic:
        whole.api(victim, "POST", f"/v1/nodes/{victim}/drain")
        cluster.wait_for_owners(whole, cluster.others(whole, victim))
        assert answered(whole, 100)
    whole.api(victim, "POST", f"/v1/nodes/{victim}/undrain")
    traffic.assert_undisturbed()
    traffic.claims.assert_one_owner_at_a_time(cluster.others(whole, victim)[0])


def test_a_restarted_daemon_keeps_its_vips(whole: Lab) -> None:
    node = cluster.owner_of_all(whole)
    with clients(whole) as traffic:
        whole.stop(f"{node}/lbd")
        whole.start_daemon(node)
        cluster.settle(whole)
    traffic.assert_undisturbed()
    assert set(cluster.owners(whole).values()) == {node}
    assert traffic.claims.all_claimants() == {node}


def test_a_gateway_dies_soon_after_its_restart(whole: Lab) -> None:
    """Others hold addresses, too, and need not say anything for its restart to be over."""
    node = cluster.owner_of_all(whole)
    others = cluster.others(whole, node)
    cluster.place(whole, {whole.topology.vip(family, "inside"): others[0] for family in FAMILIES})
    with clients(whole) as traffic:
        whole.stop(f"{node}/lbd")
        whole.start_daemon(node)
        cluster.settle(whole)
        faults.set_links(whole, node, up=False)
        cluster.wait_for_owners(whole, others, but=[node])
        eventually(lambda: answered(whole, 100), 10)
        cluster.revive(whole)
    traffic.assert_undisturbed()
    traffic.claims.assert_one_owner_at_a_time(others[0])


def test_a_link_is_lost_while_the_daemon_restarts(whole: Lab) -> None:
    """What the gateway had is waited for, but not beyond its return."""
    node = cluster.owner_of_all(whole)
    others = cluster.others(whole, node)
    with clients(whole) as traffic:
        whole.stop(f"{node}/lbd")
        faults.set_links(whole, node, up=False, interfaces=["inside"])
        whole.start_daemon(node)
        cluster.wait_for_owners(whole, others, RETURN_S)
        cluster.revive(whole)
    traffic.assert_nothing_failed()
    traffic.claims.assert_one_owner_at_a_time(others[0])


def test_the_last_gateway_carries_everything_and_the_others_return(whole: Lab) -> None:
    """The others are hosts that lose power, and come back with nothing but their disks."""
    first = cluster.owner_of_all(whole)
    second, last = cluster.others(whole, first)
    with clients(whole) as traffic:
        for name in (first, second):
            faults.power_off(whole, name)
        cluster.wait_for_owners(whole, [last], but=[first, second])
        assert eventually(lambda: answered(whole, 50), 10)
        cluster.revive(whole)
    traffic.assert_undisturbed()
    traffic.claims.assert_one_owner_at_a_time(last)


def test_all_daemons_die_and_come_back(whole: Lab) -> None:
    """Every kernel goes on forwarding: what is connected stays connected."""
    with clients(whole) as traffic:
        for gateway in whole.gateways:
            faults.signal_daemon(whole, gateway.name, "kill")
        cluster.revive(whole)
        assert eventually(lambda: answered(whole, 100), 10)
    traffic.assert_undisturbed()


def test_all_gateways_lose_power_and_come_back(whole: Lab) -> None:
    """What they serve is on their disks."""
    version = whole.api("gw1", "GET", "/v1/status")["config_version"]
    for gateway in whole.gateways:
        faults.power_off(whole, gateway.name)
    cluster.revive(whole)
    assert eventually(lambda: answered(whole, 100), 10)
    assert {whole.api(each.name, "GET", "/v1/status")["config_version"] for each in whole.gateways} == {version}


def test_a_partition_heals_to_one_owner_each(whole: Lab) -> None:
    """Hosts that believe something else by then are told by the keeper, without having asked."""
    keeper = cluster.owner_of_all(whole)
    taken_at = time.monotonic()
    alone, third = cluster.others(whole, keeper)
    faults.partition(whole, [alone])
    cluster.wait_for_members(whole, [alone])
    cluster.wait_for_members(whole, [keeper, third])
    # Inside each part every VIP has its one owner.
    eventually(lambda: owners_seen_by(whole, alone) == {alone})
    assert owners_seen_by(whole, keeper) == {keeper}
    time.sleep(max(0.0, taken_at + SAID_AGAIN_S - time.monotonic()))
    mislead(whole)
    faults.heal(whole)
    cluster.settle(whole)
    eventually(lambda: assert_believed(whole), BELIEVED_S)
    assert_one_owner_each(whole)
    assert eventually(lambda: answered(whole, 100), 10)


def owners_seen_by(lab: Lab, node: str) -> set[str | None]:
    return set(cluster.owners(lab, but=cluster.others(lab, node)).values())


def test_a_one_way_partition_heals_and_nobody_has_noticed(whole: Lab) -> None:
    """Whom nobody hears goes on alone, as the policy is; whichever side a client is with, it keeps its connections."""
    with clients(whole) as traffic:
        faults.partition(whole, ["gw3"], one_way=True)
        cluster.wait_for_owners(whole, ["gw1", "gw2"], but=["gw3"])
        assert eventually(lambda: answered(whole, 100), 10)
        cluster.revive(whole)
        assert_one_owner_each(whole)
    traffic.assert_undisturbed()
