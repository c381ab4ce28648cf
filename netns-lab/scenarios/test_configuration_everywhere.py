# SPDX-License-Identifier: Apache-2.0
"""From a changed configuration to the packet paths of all gateways: no client is to arrive in between."""

from dataclasses import replace

import pytest
from netlab import cluster, faults, gateway_files
from netlab.lab import Lab
from netlab.topology import Service
from netlab.waiting import eventually

# Their tables keep a gateway busy for a while before its packet path has the last of them.
ADDED_SERVICES = 20
FIRST_ADDED_PORT = 20_000
LAST_ADDED_PORT = FIRST_ADDED_PORT + ADDED_SERVICES - 1


@pytest.fixture
def many(whole: Lab) -> Lab:
    """The lab's services, and those to be added, as the file `many.toml`; only the former are there."""
    plain = next(each for each in whole.topology.services if each.name == "http4")
    services = (*whole.topology.services, *(added(plain, number) for number in range(ADDED_SERVICES)))
    text = gateway_files.cluster_file(replace(whole.topology, services=services))
    (whole.directory / "many.toml").write_text(text)
    whole.apply("gw1", whole.directory / "cluster.toml")
    return whole


def added(service: Service, number: int) -> Service:
    """Only the last one has backends that answer: what shares a backend's port is looked for one after the other."""
    port = FIRST_ADDED_PORT + number
    targets = tuple(target if port == LAST_ADDED_PORT else replace(target, port=port) for target in service.targets)
    return replace(service, name=f"added-{number}", port=port, targets=targets)


def test_what_is_applied_is_in_force_on_every_gateway(many: Lab) -> None:
    """Whichever gateway is asked for the change, and whichever has the address."""
    vip = many.topology.vip(4)
    cluster.place(many, {vip: "gw3"})
    many.apply("gw1", many.directory / "many.toml")
    report = many.measure("http_load", vip, LAST_ADDED_PORT, "--connections", 50)
    assert report["failed"] == 0, report


def test_a_gateway_returns_to_services_that_it_does_not_know(many: Lab) -> None:
    """It was away when they were added: its address comes back to it when its packet path has them."""
    vip = many.topology.vip(4)
    cluster.place(many, {vip: "gw3"})
    faults.power_off(many, "gw3")
    cluster.wait_for_owners(many, ["gw1", "gw2"], but=["gw3"])
    many.apply("gw1", many.directory / "many.toml")
    many.api("gw1", "POST", f"/v1/vips/{vip}/pin", {"node": "gw3"})
    load = ("--connections", 0, "--concurrency", 4, "--pause", 0.01)
    with many.traffic("http_load", vip, LAST_ADDED_PORT, *load) as fresh:
        cluster.revive(many)
        eventually(lambda: cluster.owner(many, vip) == "gw3", what=f"{vip} is back at gw3")
        assert many.measure("http_load", vip, LAST_ADDED_PORT, "--connections", 50)["failed"] == 0
    assert fresh.report["failed"] == 0, fresh.report
    many.api("gw3", "POST", f"/v1/vips/{vip}/unpin")
