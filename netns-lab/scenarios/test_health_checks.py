# SPDX-License-Identifier: Apache-2.0
"""Checks of direct-return and tunnel backends reach the VIP on the backend, whatever its own address says."""

from dataclasses import replace

import pytest
from netlab import cluster, gateway_files
from netlab.commands import load_nft
from netlab.lab import Lab, LabMaker
from netlab.topologies import TOPOLOGIES
from netlab.topology import ECHO_PORT, FAMILIES, HTTP_PORT, Family, Service
from netlab.waiting import eventually

QUICK: dict[str, str | int | bool] = {"interval_ms": 200, "timeout_ms": 200, "fall": 2, "rise": 2}
CHECKS = {"http": {"kind": "http"}, "echo": {"kind": "udp", "send": "alive?"}, "push": {"kind": "icmp"}}
# On a busy machine even a check each 200 ms takes its time.
HEALTH_S = 40


def checked(service: Service) -> Service:
    kind = CHECKS.get(service.name.rstrip("46"))
    return replace(service, health={**QUICK, **kind}) if kind else service


@pytest.fixture(scope="module", params=["one-gateway", "tunnel"])
def lab(request: pytest.FixtureRequest, make_lab: LabMaker) -> Lab:
    """One gateway whose HTTP, UDP echo and push services are checked by HTTP, UDP and ICMP, over both families."""
    made: Lab = make_lab(request.param)
    topology = TOPOLOGIES[request.param]
    path = made.directory / "checked.toml"
    services = tuple(checked(service) for service in topology.services)
    path.write_text(gateway_files.cluster_file(replace(topology, services=services)))
    made.apply("gw1", path)
    return made


def states(lab: Lab, backend: str, family: Family) -> dict[str, tuple[str, str]]:
    """What is known of a backend's services of one family: name → state and its reason."""
    rows = lab.api("gw1", "GET", "/v1/backends")
    names = {f"{kind}{family}": kind for kind in CHECKS}
    return {
        names[row["service"]]: (row["state"], row["reason"])
        for row in rows
        if row["name"] == backend and row["service"] in names
    }


def all_are(lab: Lab, backend: str, family: Family, state: str) -> bool:
    found = states(lab, backend, family)
    assert {name for name, (present, _) in found.items() if present != state} == set(), found
    return all(reason != "not checked" for _, reason in found.values())


def settled(lab: Lab, backend: str, family: Family, state: str) -> None:
    eventually(lambda: all_are(lab, backend, family, state), HEALTH_S, f"{backend}'s IPv{family} services are {state}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_without_the_vip_is_down_although_its_own_address_answers(lab: Lab, family: Family) -> None:
    for backend in ("b1", "b2", "b3"):
        settled(lab, backend, family, "up")
    vip = f"{lab.topology.vip(family)}/{32 if family == 4 else 128}"
    lab.run("b2", ["ip", "address", "del", vip, "dev", "lo"])
    try:
        settled(lab, "b2", family, "down")
        lab.run("gw1", ["curl", "-gsSf", "-m", "5", "-o", "/dev/null", own_url(lab, "b2", family)])
        report = lab.measure("http_load", lab.topology.vip(family), HTTP_PORT, "--connections", 60, "--timeout", 5)
        assert (report["failed"], set(report["backends"])) == (0, {"b1", "b3"}), report
    finally:
        lab.run("b2", ["ip", "address", "add", vip, "dev", "lo"])
    settled(lab, "b2", family, "up")


def own_url(lab: Lab, backend: str, family: Family) -> str:
    segment = lab.topology.node(backend).interfaces[0].segment.name
    address = lab.topology.node(backend).address(segment, family)
    return f"http://{f'[{address}]' if family == 6 else address}/"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_that_serves_the_vip_alone_is_up(lab: Lab, family: Family) -> None:
    """A firewall on the backend closes its own address: clients do not care, so neither does the check."""
    address = "ip" if family == 4 else "ip6"
    vip = lab.topology.vip(family)
    ports = f"{{ {HTTP_PORT}, {ECHO_PORT} }}"
    rules = (
        "table inet closed { chain input { type filter hook input priority 0; "
        f"{address} daddr != {vip} meta l4proto {{ tcp, udp }} th dport {ports} counter drop; }}; }}"
    )

    eventually(lambda: all_are(lab, "b3", family, "up"), what="b3 is up")
    lab.inside("b3", load_nft, rules)
    try:
        with pytest.raises(AssertionError):
            eventually(lambda: not all_are(lab, "b3", family, "up"), 2, "b3 is no longer up")
        assert lab.run("gw1", ["curl", "-gsf", "-m", "0.5", own_url(lab, "b3", family)], check=False).returncode != 0
    finally:
        lab.run("b3", ["nft", "delete", "table", "inet", "closed"])
    assert all_are(lab, "b3", family, "up")


def test_what_is_attached_for_it_goes_with_the_last_check(lab: Lab) -> None:
    """Nothing on the interfaces that no check needs; run last, it takes the checks out of the configuration."""

    def programs() -> str:
        return "".join(
            lab.run("gw1", ["tc", "filter", "show", "dev", "eth0", side]).stdout for side in ("ingress", "egress")
        )

    assert "probe_send" in programs()
    assert "probe_receive" in programs()
    lab.apply("gw1", lab.directory / "cluster.toml")
    eventually(lambda: programs() == "", what="the checks' programs are taken off")
    assert "clsact" not in lab.run("gw1", ["tc", "qdisc", "show", "dev", "eth0"]).stdout


# ---------------------------------------------------------------------------------------------------------------------
# signs in clients' traffic

SLOW: dict[str, str | int | bool] = {"kind": "http", "interval_ms": 20_000, "timeout_ms": 500, "fall": 3}


def test_a_backend_that_refuses_clients_is_down_long_before_its_next_check(make_lab: LabMaker) -> None:
    """With a check each 20 s and three failures to fall, resets in clients' traffic make it a matter of seconds."""
    lab: Lab = make_lab("routed")
    gateway_files.add_health(lab.directory / "slow.toml", lab.topology, "http4", SLOW)
    lab.apply("gw1", lab.directory / "slow.toml")

    def states_now() -> dict[str, tuple[str, str]]:
        rows = lab.api("gw1", "GET", "/v1/backends")
        return {row["name"]: (row["state"], row["reason"]) for row in rows if row["service"] == "http4"}

    # The first checks are spread over a quarter of the interval.
    eventually(lambda: all("status 200" in reason for _, reason in states_now().values()), 30, "all were checked once")
    lab.stop("b2/nginx")
    with lab.traffic("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", 0, "--concurrency", 8):
        eventually(lambda: states_now()["b2"][0] == "down", 25, "the refusing backend is down")
    found = states_now()
    assert (found["b1"][0], found["b3"][0]) == ("up", "up"), found


# ---------------------------------------------------------------------------------------------------------------------
# in a cluster


def test_every_gateway_of_a_cluster_can_check_nat_backends(make_lab: LabMaker) -> None:
    """A backend's answers to a gateway's own check belong to that gateway, whatever the steering table says."""
    lab: Lab = make_lab("three-gateways")
    cluster.settle(lab)
    gateway_files.add_health(lab.directory / "checked.toml", lab.topology, "http4", {"kind": "http", **QUICK})
    lab.apply("gw1", lab.directory / "checked.toml")

    def conditions() -> set[tuple[str, str]]:
        rows = lab.api("gw1", "GET", "/v1/backends")
        return {(row["state"], row["reason"]) for row in rows if row["service"] == "http4"}

    # One more than half of the checkers must fail for a backend to be down: all of them shall succeed.
    eventually(lambda: conditions() == {("up", "status 200")}, HEALTH_S, "all backends were found alive")
    with pytest.raises(AssertionError):
        eventually(lambda: conditions() != {("up", "status 200")}, 3, "a check fails")
    dead = [event for event in lab.api("gw1", "GET", "/v1/events?limit=200") if event["kind"] == "backend.dead"]
    assert dead == []
