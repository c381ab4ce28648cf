# SPDX-License-Identifier: Apache-2.0
"""The connection table is on every gateway: the proof is what happens to clients where it is not."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from netlab import cluster, faults, gateway_files
from netlab.lab import Argument, Lab, LabMaker
from netlab.topology import HTTP_PORT
from netlab.waiting import eventually

HELD_CONNECTIONS = 120


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
    vip = three.topology.vip(4)
    victim = cluster.owner(three, vip)
    survivors = [gateway.name for gateway in three.gateways if gateway.name != victim]
    options: list[Argument] = ["--connections", HELD_CONNECTIONS, "--concurrency", HELD_CONNECTIONS, "--requests", 0]
    with three.traffic("http_load", vip, HTTP_PORT, *options, "--interval", 0.1) as held:
        eventually(lambda: open_connections(three, "b1") + open_connections(three, "b2") >= HELD_CONNECTIONS // 3)
        on_drained = eventually(lambda: open_connections(three, "b1"))
        three.api(survivors[0], "POST", "/v1/backends/http4/b1/drain")
        faults.set_links(three, victim, up=False)
        cluster.wait_for_owners(three, survivors, but=[victim])
        assert eventually(lambda: serves(three), 10)
    report = held.report
    assert report["connections"] == HELD_CONNECTIONS
    if replicated:
        assert (report["failed"], report["lost_connections"]) == (0, 0), report
    else:
        # A gateway still knows its own: what breaks is the dead one's share, about a third.
        assert report["lost_connections"] >= on_drained // 8, f"nothing broke without replication: {report}"


def serves(lab: Lab) -> bool:
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", 100, "--timeout", 5)
    return bool(report["failed"] == 0 and "b1" not in report["backends"])


def open_connections(lab: Lab, backend: str) -> int:
    return lab.established(backend, f"sport = :{HTTP_PORT}")
