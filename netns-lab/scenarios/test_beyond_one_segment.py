# SPDX-License-Identifier: Apache-2.0
"""VIPs announced as routes: every gateway holds them, a router spreads over all, and moves connections as it likes."""

import time
from collections.abc import Iterable
from functools import partial

import pytest
from netlab import bird, cluster, faults, services
from netlab.lab import Argument, Lab, LabMaker
from netlab.state import LabError
from netlab.topologies import ROUTED_VIPS
from netlab.topology import (
    CROSS_FAMILY_HTTP_PORT,
    FAMILIES,
    HTTP_PORT,
    LOCAL_HTTP_PORT,
    TRANSLATED_HTTP_PORT,
    Family,
)
from netlab.waiting import eventually

from scenarios.clients import GAP_MS_MAX

GATEWAYS = ("gw1", "gw2", "gw3")
CONNECTIONS = 60
# One of the three that share the downloads.
BACKEND = "b1"
DOWNLOADS = 10
DOWNLOAD_BYTES = 2 << 20
DOWNLOAD_RATE = 1 << 20
WITHDRAWAL_MS = 500
# The session comes back a second or two after the gateway.
ROUTES_S = 20.0
READINESS = ("node.ready", "vip.announced", "vip.withdrawn")


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("routed-ecmp")
    path = made.directory / "cluster.toml"
    path.write_text(f"{path.read_text()}\n[policy]\nwithdrawal_ms = {WITHDRAWAL_MS}\n")
    made.apply("gw1", path)
    return made


@pytest.fixture(autouse=True)
def announced(whole: Lab) -> Lab:
    """Every gateway is in service and the router knows it."""
    wait_for_routes(whole, GATEWAYS)
    return whole


def spread_over(lab: Lab, family: Family = 4) -> set[str]:
    """The gateways that the router sends the VIP's packets to."""
    show = ["ip", f"-{family}", "-json", "route", "show", ROUTED_VIPS[family]]
    hops = bird.next_hops(lab.json("r1", show))
    return {name for name in GATEWAYS if lab.topology.node(name).address(f"up{name[-1]}", family) in hops}


def wait_for_routes(lab: Lab, names: Iterable[str]) -> None:
    expected = set(names)
    for family in FAMILIES:
        eventually(
            lambda family=family: spread_over(lab, family) == expected,  # type: ignore[misc]
            ROUTES_S,
            f"the router has IPv{family} routes to {sorted(expected)}",
        )


def packets(lab: Lab, node: str, service: str) -> int:
    rows = lab.api(node, "GET", "/v1/services")
    return next(int(row["traffic"]["packets"]) for row in rows if row["name"] == service)


def busiest(lab: Lab, service: str, names: Iterable[str]) -> str:
    """The gateway that a service's packets come to now."""
    before = {name: packets(lab, name, service) for name in names}
    return eventually(
        lambda: next((name for name in before if packets(lab, name, service) > before[name] + 10), ""),
        what=f"somebody forwards {service}",
    )


def told(lab: Lab, node: str, kinds: Iterable[str]) -> list[str]:
    """What a gateway has told of these kinds, oldest first."""
    rows = lab.api(node, "GET", "/v1/events?limit=1000")
    own = [row for row in sorted(rows, key=lambda row: row["id"]) if row["node"] == node]
    return [row["kind"] for row in own if row["kind"] in kinds]


def when(lab: Lab, asked: str, kind: str, about: str, since: float) -> float:
    """When something of this kind first happened to a gateway since then, as another one tells it; 0 if it has not."""
    rows = lab.api(asked, "GET", "/v1/events?limit=1000")
    found = (row for row in rows if row["kind"] == kind and row["time"] >= since)
    return min((float(row["time"]) for row in found if about in (row["node"], *_left(row["message"]))), default=0.0)


def _left(message: str) -> list[str]:
    """Who is not in a view any more, by what is told of it."""
    return message.partition("left: ")[2].partition(";")[0].split(", ")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_gateway_forwards_in_every_way(lab: Lab, family: Family) -> None:
    vip = ROUTED_VIPS[family]
    for port in (HTTP_PORT, CROSS_FAMILY_HTTP_PORT, TRANSLATED_HTTP_PORT, LOCAL_HTTP_PORT):
        report = lab.measure("http_load", vip, port, "--connections", CONNECTIONS)
        assert (report["failed"], report["requests"]) == (0, CONNECTIONS), f"port {port}: {report}"
        assert len(report["backends"]) == 3, report
    for name in GATEWAYS:
        for service in (f"http{family}", f"tunnel{family}", f"nat{family}"):
            forwards = partial(packets, lab, name, service)
            eventually(lambda count=forwards: count() > 0, what=f"{name} forwards {service}")  # type: ignore[misc]
        rows = {row["address"].partition("/")[0]: row for row in lab.api(name, "GET", "/v1/vips")}
        assert (rows[vip]["owner"], rows[vip]["owners"], rows[vip]["state"]) == (None, list(GATEWAYS), "held")
        client = lab.topology.node("client").address("outside", family)
        question = {"source": client, "source_port": 5, "destination": vip, "destination_port": HTTP_PORT}
        asked = lab.api(name, "POST", "/v1/where", question)
        assert asked["reason"] == "sent_forwarded", asked


def test_it_is_nowhere_in_particular(lab: Lab) -> None:
    changes: dict[str, object] = {
        "move": {"node": "gw2"},
        "pin": {"node": None},
        "unpin": None,
        "prefer": {"nodes": []},
    }
    for change, body in changes.items():
        with pytest.raises(LabError, match="lbctl node drain"):
            lab.api("gw1", "POST", f"/v1/vips/{ROUTED_VIPS[4]}/{change}", body)


def test_a_gateway_dies_and_its_connections_go_on_through_the_others(lab: Lab) -> None:
    digest = services.make_content(lab.directory, "2m", DOWNLOAD_BYTES)
    options: list[Argument] = ["--path", "/file/2m", "--rate", DOWNLOAD_RATE, "--count", DOWNLOADS, "--sha256", digest]
    with lab.traffic("downloads", ROUTED_VIPS[4], TRANSLATED_HTTP_PORT, *options) as downloads:
        victim = busiest(lab, "nat4", GATEWAYS)
        before = told(lab, victim, READINESS)
        # Nobody who had to choose anew would choose it: only the replicated table keeps its connections where they are.
        lab.lbctl(cluster.others(lab, victim)[0], "drain", f"nat4/{BACKEND}")
        faults.set_links(lab, victim, up=False)
        wait_for_routes(lab, cluster.others(lab, victim))
        report = downloads.wait()
        lab.lbctl(cluster.others(lab, victim)[0], "undrain", f"nat4/{BACKEND}")
    assert (report["complete"], report["failed"]) == (DOWNLOADS, 0), report
    faults.heal(lab)
    wait_for_routes(lab, GATEWAYS)
    assert_ready_first(told(lab, victim, READINESS)[len(before) :])


def assert_ready_first(kinds: list[str]) -> None:
    """What a gateway told while it came back: it announced no sooner than its connection table was complete."""
    assert kinds[-1] == "vip.announced", kinds
    assert "node.ready" in kinds, kinds
    ready = len(kinds) - 1 - kinds[::-1].index("node.ready")
    assert "vip.announced" not in kinds[:ready], kinds


def test_a_gateway_without_its_backends_is_avoided_at_once(lab: Lab, healing: list[Lab]) -> None:
    """The router still reaches it, so it is for the gateway to withdraw what it cannot serve."""
    healing.append(lab)
    with lab.traffic("udp_probe", ROUTED_VIPS[4]) as probe:
        victim = busiest(lab, "echo4", GATEWAYS)
        faults.set_links(lab, victim, up=False, interfaces=["inside"])
        wait_for_routes(lab, cluster.others(lab, victim))
        assert busiest(lab, "echo4", cluster.others(lab, victim))
    assert probe.report["answered_at_end"], probe.report
    assert probe.report["gap_ms"] < GAP_MS_MAX, probe.report
    assert lab.daemon(victim).alive()


def test_a_drained_gateway_loses_its_traffic_before_it_loses_a_packet(lab: Lab) -> None:
    with lab.traffic("udp_probe", ROUTED_VIPS[4]) as probe:
        victim = busiest(lab, "echo4", GATEWAYS)
        lab.api("gw1", "POST", f"/v1/nodes/{victim}/drain")
        wait_for_routes(lab, cluster.others(lab, victim))
        assert busiest(lab, "echo4", cluster.others(lab, victim))
        lab.api("gw1", "POST", f"/v1/nodes/{victim}/undrain")
        wait_for_routes(lab, GATEWAYS)
    assert probe.report["lost"] == 0, probe.report


def test_a_gateway_that_is_taken_out_goes_on_serving_until_nobody_comes(lab: Lab) -> None:
    with lab.traffic("udp_probe", ROUTED_VIPS[4]) as probe:
        victim = busiest(lab, "echo4", GATEWAYS)
        asked, began = cluster.others(lab, victim)[0], time.time()
        lab.api(victim, "POST", "/v1/detach", {"confirm": True})
        wait_for_routes(lab, cluster.others(lab, victim))
        eventually(lambda: not lab.daemon(victim).alive(), what=f"the daemon of {victim} has ended")
        withdrawn = eventually(lambda: when(lab, asked, "vip.withdrawn", victim, began))
        left = eventually(lambda: when(lab, asked, "view.changed", victim, withdrawn))
    assert probe.report["lost"] == 0, probe.report
    # A router that is slower than this one needs the time it is given.
    assert left - withdrawn >= 0.9 * WITHDRAWAL_MS / 1000


def test_a_killed_daemon_keeps_its_routes_for_the_next_one(lab: Lab) -> None:
    with lab.traffic("udp_probe", ROUTED_VIPS[4]) as probe:
        victim = busiest(lab, "echo4", GATEWAYS)
        faults.signal_daemon(lab, victim, "kill")
        cluster.wait_for_members(lab, cluster.others(lab, victim))
        assert spread_over(lab) == set(GATEWAYS), "the dead daemon's packet path goes on"
        lab.start_daemon(victim)
        cluster.settle(lab)
        wait_for_routes(lab, GATEWAYS)
    assert probe.report["lost"] == 0, probe.report
