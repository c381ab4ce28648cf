# SPDX-License-Identifier: Apache-2.0
"""Two gateways with a router between them: what belongs to the other one goes there by tunnel, in both directions."""

from functools import partial

import pytest
from netlab import cluster, connections, faults, services
from netlab.commands import load_nft
from netlab.lab import Argument, Lab, LabMaker
from netlab.topology import FAMILIES, HTTP_PORT, LOCAL_HTTP_PORT, Family
from netlab.waiting import eventually

from scenarios.firewall import PORT, counted, drop_firewalls, moving, opened, raise_firewalls

CONNECTIONS = 200
SHARE_MIN = 0.2
DOWNLOADS = 8
DOWNLOAD_BYTES = 3 << 20
DOWNLOAD_RATE = 1 << 20

# On the router: what the gateways hand each other.
TUNNELS = """
table inet tunnels {{
  counter there {{ }}
  counter back {{ }}
  chain forward {{
    type filter hook forward priority 0;
    ip saddr {0} ip daddr {1} meta l4proto {{ 4, 41 }} counter name there
    ip saddr {1} ip daddr {0} meta l4proto {{ 4, 41 }} counter name back
  }}
}}
"""


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("two-sites")
    here, there = (made.topology.node(name) for name in ("gw1", "gw2"))
    made.inside("r1", load_nft, TUNNELS.format(here.address("outside", 4), there.address("inside", 4)))
    return made


@pytest.fixture
def sharing(whole: Lab) -> Lab:
    """Both gateways get new connections."""
    for gateway in whole.gateways:
        eventually(partial(all_share, whole, gateway.name), what="both get new connections")
    return whole


def all_share(lab: Lab, node: str) -> bool:
    return connections.sharing(lab, node) == {gateway.name for gateway in lab.gateways}


def handed_over(lab: Lab, before: dict[str, int]) -> dict[str, int]:
    """Packets that went by tunnel since then: from the clients' side there, from the backends' side back."""
    return {name: count - before[name] for name, count in counted(lab, "r1").items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_service_is_served_by_both(sharing: Lab, family: Family) -> None:
    before = counted(sharing, "r1")
    report = sharing.measure("http_load", sharing.topology.vip(family), LOCAL_HTTP_PORT, "--connections", CONNECTIONS)
    assert (report["failed"], report["requests"]) == (0, CONNECTIONS), report
    assert set(report["backends"]) == {"gw1", "gw2"}
    assert min(report["backends"].values()) > SHARE_MIN * CONNECTIONS, report
    # The connection's end and all between: the answers take the short way.
    assert handed_over(sharing, before)["there"] > 3 * report["backends"]["gw2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_either_translates_for_backends(sharing: Lab, family: Family) -> None:
    before = counted(sharing, "r1")
    report = sharing.measure("http_load", sharing.topology.vip(family), HTTP_PORT, "--connections", CONNECTIONS)
    assert (report["failed"], report["requests"]) == (0, CONNECTIONS), report
    assert min(handed_over(sharing, before).values()) > SHARE_MIN * CONNECTIONS


def test_both_directions_pass_the_gateway_of_the_connection_and_stay_there(sharing: Lab) -> None:
    """Also when it shall have no new ones: a firewall that has not seen the beginning lets nothing pass."""
    lab, backend = sharing, sharing.topology.node("b1").address("inside", 4)
    raise_firewalls(lab)
    before = counted(lab, "r1")
    report = lab.measure("http_load", backend, PORT, "--connections", CONNECTIONS)
    assert (report["failed"], report["requests"]) == (0, CONNECTIONS), report
    begun = opened(lab)
    assert sum(begun.values()) == CONNECTIONS, begun
    assert min(begun.values()) > SHARE_MIN * CONNECTIONS, begun
    assert min(handed_over(lab, before).values()) > 3 * SHARE_MIN * CONNECTIONS
    with lab.traffic("downloads", backend, PORT, *download_options(lab)) as downloads:
        eventually(lambda: moving(lab, DOWNLOADS))
        lab.api("gw1", "POST", "/v1/nodes/gw2/drain")
        eventually(lambda: connections.sharing(lab, "gw1") == {"gw1"}, what="gw2 gets no new connections")
        begun = opened(lab)
        assert lab.measure("http_load", backend, PORT, "--connections", 20)["failed"] == 0
        assert opened(lab) == {"gw1": begun["gw1"] + 20, "gw2": begun["gw2"]}
        report = downloads.wait()
    lab.api("gw1", "POST", "/v1/nodes/gw2/undrain")
    drop_firewalls(lab)
    assert (report["complete"], report["failed"]) == (DOWNLOADS, 0), report


def test_the_peer_dies_and_its_connections_go_on(sharing: Lab) -> None:
    lab, backend = sharing, sharing.topology.node("b2")
    # The dead gateway's address is on a segment where nobody can succeed it.
    lab.run("b2", ["ip", "route", "replace", "default", "via", lab.topology.node("r1").address("inside", 4)])
    with lab.traffic("downloads", backend.address("inside", 4), PORT, *download_options(lab)) as downloads:
        eventually(lambda: moving(lab, DOWNLOADS))
        before = counted(lab, "r1")
        eventually(lambda: handed_over(lab, before)["there"] > 10, what="the peer has some of them")
        faults.set_links(lab, "gw2", up=False)
        cluster.wait_for_members(lab, ["gw1"])
        report = downloads.wait()
    assert (report["complete"], report["failed"]) == (DOWNLOADS, 0), report
    local = lab.measure("http_load", lab.topology.vip(4), LOCAL_HTTP_PORT, "--connections", 50)
    assert (local["failed"], set(local["backends"])) == (0, {"gw1"}), local


def download_options(lab: Lab) -> list[Argument]:
    digest = services.make_content(lab.directory, "3m", DOWNLOAD_BYTES)
    return ["--path", "/file/3m", "--rate", DOWNLOAD_RATE, "--count", DOWNLOADS, "--sha256", digest]
