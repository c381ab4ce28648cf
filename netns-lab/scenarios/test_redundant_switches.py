# SPDX-License-Identifier: Apache-2.0
"""Four gateways on two switches, one ring link on each: a switch dies, and with it half of the gateways' data links."""

from contextlib import ExitStack
from functools import partial

import pytest
from netlab import cluster, faults
from netlab.lab import Lab, LabMaker
from netlab.waiting import eventually

from scenarios.clients import GAP_MS_MAX, answered
from scenarios.on_the_wire import vips_on, watched

AT = {"sw1": ("gw1", "gw3"), "sw2": ("gw2", "gw4")}
# The clients and the backends are at the other one.
DYING, LEFT = "sw2", "sw1"
# Whose journal is read.
WITNESS = AT[LEFT][0]
# Why an address may move that need not: on a machine busy enough, a gateway that is late for the ring.
FALSE_ALARM = {"owner_left"}
PUSHED_CONNECTIONS = 20


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("redundant-switches")
    cluster.settle(made)
    return made


def test_a_switch_dies_and_nothing_moves_that_need_not(whole: Lab) -> None:
    """Each gateway still has its ring link at the other switch. Those without data links hand over in order, addresses
    and what they had a share of; the others keep theirs, and nobody gets anything back just because it returns."""
    lab, must_move, stay = whole, vips_on(whole, "outside"), vips_on(whole, "inside")
    placed = dict.fromkeys(must_move, AT[DYING][0]) | dict.fromkeys(stay, WITNESS)
    cluster.place(lab, placed)
    # Through both VIPs of a family, by translation; and merely routed, which all four gateways share.
    servers = [*must_move, lab.topology.node("b1").address("inside", 4)]
    with ExitStack() as stack:
        probe = stack.enter_context(lab.traffic("udp_probe", must_move[0]))
        claims = stack.enter_context(watched(lab))
        pushed = [stack.enter_context(lab.traffic("push_watch", to, "--count", PUSHED_CONNECTIONS)) for to in servers]
        expected = len(servers) * PUSHED_CONNECTIONS
        eventually(lambda: lab.established("client") >= expected, what="the connections are open")
        dies = cluster.last_event(lab, WITNESS)
        faults.set_switch(lab, DYING, up=False)
        for name in AT[DYING]:
            eventually(partial(is_out, lab, name), what=f"{name} is out of service")
        cluster.wait_for_owners(lab, AT[LEFT], but=AT[DYING])
        assert eventually(lambda: answered(lab, 60), 10)
        cluster.wait_for_members(lab, [gateway.name for gateway in lab.gateways])
        moved, returns = cluster.moves(lab, WITNESS, dies), cluster.last_event(lab, WITNESS)
        faults.heal(lab)
        cluster.settle(lab)
    assert {vip for vip, _ in moved} >= set(must_move)
    assert {why for vip, why in moved if vip in stay} <= FALSE_ALARM, moved
    assert {why for _, why in cluster.moves(lab, WITNESS, returns)} <= FALSE_ALARM
    for each in pushed:
        assert (each.report["failed"], each.report["lost_connections"]) == (0, 0), each.report
    assert probe.report["answered_at_end"], probe.report
    assert probe.report["gap_ms"] < GAP_MS_MAX, probe.report
    for vip in must_move:
        claimants = claims.claimants("outside", vip)
        assert len(claimants) == len(set(claimants)) > 1, f"{vip} was claimed by {claimants}"


def is_out(lab: Lab, node: str) -> bool:
    return cluster.state_of(lab, node, asked=WITNESS) == "out_of_service"
