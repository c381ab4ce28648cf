# SPDX-License-Identifier: Apache-2.0
"""The connection table is on every gateway: the proof is what happens to clients where it is not."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from netlab import cluster, faults, gateway_files
from netlab.lab import Argument, Lab, LabMaker
from netlab.topology import FAMILIES, HTTP_PORT, Family
from netlab.waiting import eventually

# Of each family.
HELD_CONNECTIONS = 60


@pytest.fixture(scope="module", params=["established", "none"])
def lab(request: pytest.FixtureRequest, make_lab: LabMaker) -> Iterator[tuple[Lab, bool]]:
    """Three gateways that replicate connections, or do not."""
    made: Lab = make_lab("three-gateways")
    options = {"replicate": request.param}
    services = tuple(replace(service, options=options) for service in made.topology.services)
    path = made.directory / "cluster.toml"
    path.write_text(gateway_files.cluster_file(replace(made.topology, services=services)))
    made.apply("gw1", path)
    cluster.settle(made)
    yield made, request.param == "established"
    made.down()


def test_a_backend_set_changes_and_then_the_gateway_dies(lab: tuple[Lab, bool]) -> None:
    """Connections that today's table would send elsewhere stay on their backends, thanks to the replicated one."""
    three, replicated = lab
    victim = cluster.owner_of_all(three)
    survivors = cluster.others(three, victim)
    options: list[Argument] = ["--connections", HELD_CONNECTIONS, "--concurrency", HELD_CONNECTIONS, "--requests", 0]
    with ExitStack() as stack:
        held = {
            family: stack.enter_context(
                three.traffic("http_load", three.topology.vip(family), HTTP_PORT, *options, "--interval", 0.1)
            )
            for family in FAMILIES
        }
        eventually(lambda: three.established("client", f"dport = :{HTTP_PORT}") >= len(FAMILIES) * HELD_CONNECTIONS)
        on_drained = eventually(lambda: three.established("b1", f"sport = :{HTTP_PORT}"))
        for family in FAMILIES:
            three.api(survivors[0], "POST", f"/v1/backends/http{family}/b1/drain")
        faults.set_links(three, victim, up=False)
        cluster.wait_for_owners(three, survivors, but=[victim])
        assert eventually(lambda: all(serves(three, family) for family in FAMILIES), 10)
    for family in FAMILIES:
        report = held[family].report
        assert report["connections"] == HELD_CONNECTIONS
        if replicated:
            assert (report["failed"], report["lost_connections"]) == (0, 0), f"IPv{family}: {report}"
    if not replicated:
        # A gateway still knows its own: what breaks is the dead one's share, about a third.
        lost = sum(traffic.report["lost_connections"] for traffic in held.values())
        assert lost >= on_drained // 8, f"nothing broke without replication: {[each.report for each in held.values()]}"


def serves(lab: Lab, family: Family) -> bool:
    report = lab.measure("http_load", lab.topology.vip(family), HTTP_PORT, "--connections", 100, "--timeout", 5)
    return bool(report["failed"] == 0 and "b1" not in report["backends"])
