# SPDX-License-Identifier: Apache-2.0
"""Four gateways on two switches, one ring link on each: a switch dies, and with it half of the gateways' data links."""

import pytest
from netlab import cluster, faults
from netlab.lab import Lab, LabMaker
from netlab.topology import FAMILIES
from netlab.waiting import eventually

from scenarios.clients import GAP_MS_MAX, answered, asking, assert_one_owner_each

AT = {"sw1": ("gw1", "gw3"), "sw2": ("gw2", "gw4")}
# The clients and the backends are at the other one.
DYING = "sw2"
PUSHED_CONNECTIONS = 20
# The rest of the lab has the processors too; a gateway that did not move misses next to nothing.
UNDISTURBED_MS = 500.0


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("redundant-switches")
    cluster.settle(made)
    return made


def at(lab: Lab, switch: str) -> dict[str, str]:
    """The VIPs of the outside at one gateway of a switch, those of the inside at the other one: VIP → gateway."""
    sides = zip(("outside", "inside"), AT[switch], strict=True)
    return {lab.topology.vip(family, segment): gateway for segment, gateway in sides for family in FAMILIES}


@pytest.mark.parametrize("switch", AT)
def test_a_switch_dies_and_nothing_moves_that_need_not(whole: Lab, switch: str) -> None:
    """No gateway leaves the ring: the link at the other switch is left. Those that lost their data links hand over."""
    lab, vips = whole, [whole.topology.vip(family) for family in FAMILIES]
    before, must_move = at(lab, switch), switch == DYING
    cluster.place(lab, before)
    with (
        lab.traffic("push_watch", vips[0], "--count", PUSHED_CONNECTIONS) as pushed4,
        lab.traffic("push_watch", vips[1], "--count", PUSHED_CONNECTIONS) as pushed6,
        lab.traffic("udp_probe", vips[0]) as probe,
        lab.traffic("claims", "eth0", *vips, *asking(lab)) as claims,
    ):
        eventually(lambda: lab.established("client") >= 2 * PUSHED_CONNECTIONS, what="the connections are open")
        faults.set_switch(lab, DYING, up=False)
        for name in AT[DYING]:
            out = f"{name} is out of service"
            eventually(lambda name=name: cluster.state_of(lab, name, "gw1") == "out_of_service", what=out)  # type: ignore[misc]
        cluster.wait_for_owners(lab, AT["sw1"], but=AT[DYING])
        assert eventually(lambda: answered(lab, 60), 10)
        after = cluster.owners(lab, but=AT[DYING])
        assert all(cluster.members(lab, gateway.name) == {"gw1", "gw2", "gw3", "gw4"} for gateway in lab.gateways)
        faults.heal(lab)
        cluster.settle(lab)
    assert (after == before) is not must_move, f"{before} became {after}"
    assert cluster.owners(lab) == after, "who returns takes nothing away"
    for pushed in (pushed4, pushed6):
        assert (pushed.report["failed"], pushed.report["lost_connections"]) == (0, 0), pushed.report
    assert probe.report["gap_ms"] < (GAP_MS_MAX if must_move else UNDISTURBED_MS), probe.report
    for vip in vips:
        assert len(claims.report[vip]) == 1 + must_move, claims.report[vip]
    assert_one_owner_each(lab)
