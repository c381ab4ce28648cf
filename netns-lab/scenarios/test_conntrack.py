# SPDX-License-Identifier: Apache-2.0
"""Gateways with a strict stateful firewall, or with an address translation, of their own: a gateway dies, and the
others' kernels know its connections already."""

from collections.abc import Iterator

import pytest
from netlab import cluster, faults, services
from netlab.lab import Lab, LabMaker
from netlab.waiting import eventually

from scenarios.clients import others
from scenarios.firewall import PORT, load_nft, moving

COUNT = 8
SIZE = 4 << 20
RATE = 1 << 20
# A client gives up when no byte has come for this long; a takeover needs a tenth of it.
PATIENCE_S = 4

# Without SYN nothing begins, and what belongs to no connection known here goes nowhere.
STRICT = """
table inet strict {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
    meta l4proto ipv6-icmp accept
    ip saddr 10.0.1.0/24 tcp flags syn / fin,syn,rst,ack ct state new accept
  }
}
"""
# The servers see the VIP on their side, whichever gateway holds it.
TRANSLATED = """
table ip translated {
  chain leave {
    type nat hook postrouting priority 100;
    ip saddr 10.0.1.0/24 ip daddr 10.0.2.0/24 tcp dport %d snat to %s
  }
}
"""


def replicate(lab: Lab, wanted: bool) -> None:
    for gateway in lab.gateways:
        file = lab.directory / gateway.name / "node.toml"
        text = file.read_text().partition("\n[conntrack]\n")[0]
        file.write_text(f"{text}\n[conntrack]\nreplicate = {str(wanted).lower()}\n")


def be_strict(lab: Lab) -> None:
    for gateway in lab.gateways:
        lab.inside(gateway.name, load_nft, STRICT)
        # Nothing is picked up in the middle either.
        lab.run(gateway.name, ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"])


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Iterator[Lab]:
    made: Lab = make_lab("three-gateways", daemons=False)
    be_strict(made)
    replicate(made, True)
    made.start_gateways()
    cluster.settle(made)
    return made


def tracked(lab: Lab, node: str) -> int:
    """Connections to the backends' port that a gateway's kernel calls assured."""
    listed = lab.run(node, ["cat", "/proc/net/nf_conntrack"]).stdout.splitlines()
    return sum(f"dport={PORT}" in line and "[ASSURED]" in line for line in listed)


def download_while(lab: Lab, victim: str, *, known: bool = True) -> dict[str, object]:
    """Downloads through the gateways, one of which dies; their report."""
    digest = services.make_content(lab.directory, "4m", SIZE)
    options = ["--path", "/file/4m", "--rate", RATE, "--count", COUNT, "--sha256", digest, "--timeout", PATIENCE_S]
    backend = lab.topology.node("b1").address("inside", 4)
    with lab.traffic("downloads", backend, PORT, *options) as downloads:
        eventually(lambda: moving(lab, COUNT))
        if known:
            eventually(lambda: all(tracked(lab, gateway.name) >= COUNT for gateway in lab.gateways))
        faults.set_links(lab, victim, up=False)
        report = downloads.wait()
    faults.heal(lab)
    cluster.settle(lab)
    return report


def test_filtered_connections_go_on_through_the_survivors(lab: Lab) -> None:
    report = download_while(lab, "gw2")
    assert (report["complete"], report["failed"]) == (COUNT, 0), report
