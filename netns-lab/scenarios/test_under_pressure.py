# SPDX-License-Identifier: Apache-2.0
"""What happens to a cluster while much is asked of it: a join among 100,000 connections, floods during a takeover."""

import time
from contextlib import ExitStack

import pytest
from netlab import build, cluster, connections, faults
from netlab.lab import Argument, Lab
from netlab.topology import HTTP_PORT, RING_PORT
from netlab.waiting import eventually

from scenarios.clients import answered, drop_flood, others

CONNECTIONS = 100_000
HELD_CONNECTIONS = 100
FLOOD_SYNS = 1_000_000
# Each, from its own address and from a member's; by the segment: the ring runs over both.
FORGERS = {"client": "outside", "b1": "inside"}
FORGED_PER_S = 2_500
JOIN_S_MAX = 40.0


def losses(lab: Lab, node: str, since: float) -> list[str]:
    """What a gateway has noted of members that left, since an instant (Unix seconds)."""
    events = lab.api(node, "GET", "/v1/events?limit=500")
    return [
        event["message"]
        for event in events
        if event["kind"] == "view.changed" and event["time"] >= since and "left:" in event["message"]
    ]


def joined_at(lab: Lab, node: str, member: str, since: float) -> float:
    """When a member came into the ring, as a gateway has noted it (Unix seconds)."""
    return min(
        float(event["time"])
        for event in lab.api(node, "GET", "/v1/events?limit=500")
        if event["kind"] == "view.changed"
        and event["time"] >= since
        and member in event["message"].partition("joined:")[2]
    )


def test_a_gateway_joins_among_a_hundred_thousand_connections(whole: Lab) -> None:
    joiner, vip = "gw3", whole.topology.vip(4)
    present = others(whole, joiner)
    faults.signal_daemon(whole, joiner, "kill")
    whole.run(joiner, ["lbd", "--config", str(whole.directory / joiner / "node.toml"), "--remove"])
    cluster.wait_for_members(whole, present)
    cluster.wait_for_owners(whole, present, but=[joiner])
    connections.make(whole, present, CONNECTIONS, vip, HTTP_PORT)
    began, samples = time.time(), 0
    whole.start_daemon(joiner, wait=False)
    while (seen := cluster.state_of(whole, joiner, present[0])) != "in_service":
        # Neither an address nor a share of new connections before its table is complete.
        entitled = set(cluster.owners(whole, but=[joiner]).values()) | connections.sharing(whole, present[0])
        if cluster.state_of(whole, joiner, present[0]) == seen:
            assert joiner not in entitled, seen
        samples += 1
        assert time.time() < began + JOIN_S_MAX, f"{joiner} is still {seen}"
    assert samples
    cluster.settle(whole)
    eventually(lambda: joiner in connections.sharing(whole, present[0]), 10, "the joiner has its share")
    assert connections.digest(whole, present[0])[0] >= CONNECTIONS
    eventually(lambda: connections.digest(whole, joiner) == connections.digest(whole, present[0]), 15)
    # Nobody was taken for dead while the table travelled. (`tools.bench join` says how long the token's turns are then:
    # here other tests share the processors.)
    assert losses(whole, present[0], joined_at(whole, present[0], joiner, began)) == []


@pytest.mark.timeout(300)
def test_floods_during_a_takeover_change_nothing(whole: Lab) -> None:
    """A million SYNs to those who take over, forged datagrams on both links of the ring, and the owner dies."""
    vip = whole.topology.vip(4)
    victim = cluster.owner(whole, vip)
    survivors = others(whole, victim)
    for backend in whole.topology.of_role("backend"):
        whole.inside(backend.name, drop_flood)
    options: list[Argument] = ["--connections", HELD_CONNECTIONS, "--concurrency", HELD_CONNECTIONS, "--requests", 0]
    began = time.time()
    with ExitStack() as stack:
        held = stack.enter_context(whole.traffic("http_load", vip, HTTP_PORT, *options, "--interval", 0.2))
        eventually(lambda: open_connections(whole) >= HELD_CONNECTIONS, what="the held connections are open")
        forgers = [
            stack.enter_context(whole.traffic("forged", *forged(whole, segment), *source, node=node))
            for node, segment in FORGERS.items()
            # From an address of its own, and as if a member had written them.
            for source in ((), ("--source", ring_addresses(whole, segment)[0], "--seed", 2))
        ]
        floods = [
            stack.enter_context(
                whole.traffic(
                    "syn_flood", "eth0", build.mac_address(name, "eth0"), vip, HTTP_PORT, "--count", FLOOD_SYNS // 2
                )
            )
            for name in survivors
        ]
        faults.signal_daemon(whole, victim, "kill")
        cluster.wait_for_owners(whole, survivors, but=[victim])
        for flood in floods:
            flood.wait(240)
        assert eventually(lambda: answered(whole, 100), 10)
        assert all(len(losses(whole, name, began)) == 1 for name in survivors), "more than the dead one was excluded"
    assert (held.report["failed"], held.report["lost_connections"]) == (0, 0), held.report
    assert sum(flood.report["sent"] for flood in floods) == FLOOD_SYNS
    assert min(forger.report["sent"] for forger in forgers) > FORGED_PER_S
    for name in survivors:
        assert cluster.members(whole, name) == set(survivors)


def ring_addresses(lab: Lab, segment: str) -> list[str]:
    return [f"{gateway.address(segment, 4)}:{RING_PORT}" for gateway in lab.gateways]


def forged(lab: Lab, segment: str) -> list[Argument]:
    return [*ring_addresses(lab, segment), "--cluster", lab.name, "--per-second", FORGED_PER_S]


def open_connections(lab: Lab) -> int:
    command = ["ss", "-Htn", "state", "established", f"dport = :{HTTP_PORT}"]
    return len(lab.run("client", command).stdout.splitlines())
