# SPDX-License-Identifier: Apache-2.0
"""Traffic routed through the cluster: both directions of a connection pass the same gateway, a firewall proves it."""

import json
import subprocess

import pytest
from netlab import cluster, faults, services
from netlab.lab import Argument, Lab, LabMaker
from netlab.topology import CROSS_FAMILY_HTTP_PORT, HTTP_PORT
from netlab.waiting import eventually

CONNECTIONS = 600
# The backends listen there, and no service of the topology translates to it.
PORT = CROSS_FAMILY_HTTP_PORT
SHARE_MIN = 0.2

# Drops whatever it has not seen begin from outside: half a connection does not pass.
FIREWALL = """
table inet firewall {
  counter opened { }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    meta l4proto ipv6-icmp accept
    iifname "eth0" ct state new counter name opened accept
  }
}
"""


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("three-gateways")
    for gateway in made.gateways:
        made.inside(gateway.name, load_firewall)
    cluster.settle(made)
    return made


def load_firewall() -> None:
    subprocess.run(["nft", "-f", "-"], input=FIREWALL, text=True, check=True)


def opened(lab: Lab) -> dict[str, int]:
    """Connections that each gateway's firewall let begin."""
    counts = {}
    for gateway in lab.gateways:
        listed = json.loads(lab.run(gateway.name, ["nft", "-j", "list", "counters"]).stdout)["nftables"]
        counts[gateway.name] = sum(entry["counter"]["packets"] for entry in listed if "counter" in entry)
    return counts


def test_every_connection_passes_a_stateful_firewall_and_all_gateways_share(lab: Lab) -> None:
    before = opened(lab)
    backend = lab.topology.node("b1").address("inside", 4)
    report = lab.measure("http_load", backend, PORT, "--connections", CONNECTIONS, "--concurrency", 32)
    assert (report["failed"], report["requests"]) == (0, CONNECTIONS), report
    begun = {name: count - before[name] for name, count in opened(lab).items()}
    assert sum(begun.values()) == CONNECTIONS, f"connections began on more than one gateway: {begun}"
    assert min(begun.values()) > SHARE_MIN * CONNECTIONS, begun


def test_a_download_through_the_cluster_survives_leave_and_join(lab: Lab) -> None:
    """Without the firewall's own state on the other gateways: it is taken off for this one."""
    for gateway in lab.gateways:
        lab.run(gateway.name, ["nft", "delete", "table", "inet", "firewall"])
    digest = services.make_content(lab.directory, "8m", 8 << 20)
    backend = lab.topology.node("b2").address("inside", 4)
    options: list[Argument] = ["--path", "/file/8m", "--rate", 1 << 20, "--count", 8, "--sha256", digest]
    with lab.traffic("downloads", backend, PORT, *options) as downloads:
        eventually(lambda: moving(lab))
        faults.set_links(lab, "gw2", up=False)
        cluster.wait_for_owners(lab, ["gw1", "gw3"], but=["gw2"])
        faults.heal(lab)
        cluster.settle(lab)
        report = downloads.wait()
    assert (report["complete"], report["failed"]) == (8, 0), report


def moving(lab: Lab) -> bool:
    command = ["ss", "-Htn", "state", "established", f"dport = :{PORT}"]
    return len(lab.run("client", command).stdout.splitlines()) >= 8


def test_a_gateway_that_holds_both_sides_answers_clients_it_has_never_heard_of(lab: Lab) -> None:
    """After a takeover clients send at once, without the question by which the new owner would know them."""
    owner = "gw3"
    vips = [lab.topology.vip(4, segment) for segment in ("outside", "inside")]
    for vip in vips:
        if cluster.owner(lab, vip) != owner:
            lab.api("gw1", "POST", f"/v1/vips/{vip}/move", {"node": owner})
    eventually(lambda: {cluster.owners(lab)[vip] for vip in vips} == {owner})
    known = json.loads(lab.run(owner, ["ip", "-j", "neighbour", "show", "dev", "eth0"]).stdout)
    client = lab.topology.node("client").address("outside", 4)
    if client in [entry["dst"] for entry in known]:
        lab.run(owner, ["ip", "neighbour", "delete", client, "dev", "eth0"])
    report = lab.measure("http_load", vips[0], HTTP_PORT, "--connections", 20, "--timeout", 2)
    assert (report["failed"], report["requests"]) == (0, 20), report
