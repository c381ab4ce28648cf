# SPDX-License-Identifier: Apache-2.0
"""Gateways with a strict stateful firewall, or with an address translation, of their own: a gateway dies, and the
others' kernels know its connections already."""

from functools import partial

import pytest
from netlab import cluster, faults, services
from netlab.commands import load_nft
from netlab.lab import Argument, Lab, LabMaker
from netlab.waiting import eventually

from scenarios.firewall import PORT, counted, moving

COUNT = 8
SIZE = 2 << 20
RATE = 1 << 20
# A client gives up when no byte has come for this long; a takeover takes a tenth of a second.
PATIENCE_S = 30
# Where all is lost, nothing is gained by waiting.
PATIENCE_WHEN_LOST_S = 3

TABLE = "\n[conntrack]\n"

# Without SYN nothing begins, and what belongs to no connection known here goes nowhere.
STRICT = """
table inet strict {
  counter strangers { }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid counter name strangers drop
    ct state established,related accept
    meta l4proto ipv6-icmp accept
    ip saddr 10.0.1.0/24 tcp flags syn / fin,syn,rst,ack ct state new accept
    counter name strangers
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


def names(lab: Lab) -> list[str]:
    return [gateway.name for gateway in lab.gateways]


def replicate(lab: Lab, wanted: bool, *nodes: str) -> bool:
    """Say so in the node files; whether any of them said something else."""
    changed = False
    for name in nodes:
        file = lab.directory / name / "node.toml"
        before = file.read_text()
        file.write_text(f"{before.partition(TABLE)[0]}{TABLE}replicate = {str(wanted).lower()}\n")
        changed |= file.read_text() != before
    return changed


def forgetful(lab: Lab, node: str) -> None:
    """This gateway alone does not replicate, and knows nothing."""
    if replicate(lab, False, node):
        lab.stop(f"{node}/lbd")
        lab.start_daemon(node)
        cluster.settle(lab)
    forget_all(lab, node)


def whole(lab: Lab) -> None:
    """All gateways are there and replicate."""
    faults.heal(lab)
    for name in names(lab):
        if replicate(lab, True, name):
            lab.stop(f"{name}/lbd")
            lab.start_daemon(name)
    cluster.settle(lab)


def be_strict(lab: Lab) -> None:
    for gateway in lab.gateways:
        lab.inside(gateway.name, load_nft, STRICT)
        # Nothing is picked up in the middle either.
        lab.run(gateway.name, ["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"])


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("three-gateways", daemons=False)
    be_strict(made)
    replicate(made, True, *names(made))
    made.start_gateways()
    cluster.settle(made)
    return made


def tracked(lab: Lab, node: str) -> int:
    """Connections to the backends' port that a gateway's kernel calls established and assured."""
    listed = lab.run(node, ["cat", "/proc/net/nf_conntrack"]).stdout.splitlines()
    return sum(f"dport={PORT}" in line and "ESTABLISHED" in line and "[ASSURED]" in line for line in listed)


def knows_all(lab: Lab, node: str) -> bool:
    return tracked(lab, node) == COUNT


def forget_all(lab: Lab, *nodes: str) -> None:
    for node in nodes:
        lab.run(node, ["conntrack", "-F"])


def download_while_dying(lab: Lab, victim: str, knowing: list[str], patience_s: int = PATIENCE_S) -> dict[str, int]:
    """Downloads through the gateways, one of which dies as soon as those have all connections; their report."""
    digest = services.make_content(lab.directory, "2m", SIZE)
    options: list[Argument] = [
        "--path",
        "/file/2m",
        "--rate",
        RATE,
        "--count",
        COUNT,
        "--sha256",
        digest,
        "--timeout",
        patience_s,
    ]
    backend = lab.topology.node("b1").address("inside", 4)
    # A gateway that was dead has not seen its connections end.
    forget_all(lab, *names(lab))
    with lab.traffic("downloads", backend, PORT, *options) as downloads:
        eventually(lambda: moving(lab, COUNT))
        for name in knowing:
            eventually(partial(knows_all, lab, name))
        faults.set_links(lab, victim, up=False)
        return downloads.wait()


def strangers(lab: Lab) -> int:
    """Packets that the firewalls turned away."""
    return sum(counted(lab, name)["strangers"] for name in names(lab))


def gather_on(lab: Lab, owner: str, then: str) -> None:
    """What is merely routed passes the owner of the addresses; one gateway owns them all, and then that other one."""
    file = lab.directory / "gathered.toml"
    text = (lab.directory / "cluster.toml").read_text().replace("[routed]\n", "")
    file.write_text(text.replace("[[vip]]\n", f'[[vip]]\nprefer = ["{owner}", "{then}"]\n'))
    lab.apply(owner, file)
    addresses = [lab.topology.vip(4, segment) for segment in ("outside", "inside")]
    for address in addresses:
        if cluster.owner(lab, address) != owner:
            lab.api(owner, "POST", f"/v1/vips/{address}/move", {"node": owner})
    eventually(lambda: {cluster.owners(lab)[address] for address in addresses} == {owner})


def test_filtered_connections_go_on_through_the_survivors(lab: Lab) -> None:
    whole(lab)
    lab.apply("gw1", lab.directory / "cluster.toml")
    report = download_while_dying(lab, "gw2", names(lab))
    assert (report["complete"], report["failed"]) == (COUNT, 0), report


def test_a_gateway_that_returns_gets_the_table(lab: Lab) -> None:
    whole(lab)
    forget_all(lab, *names(lab))
    backend = lab.topology.node("b1").address("inside", 4)
    options: list[Argument] = ["--connections", COUNT, "--concurrency", COUNT, "--requests", 0, "--interval", 0.05]
    with lab.traffic("http_load", backend, PORT, *options) as held:
        for name in names(lab):
            eventually(partial(knows_all, lab, name))
        lab.stop("gw3/lbd")
        forget_all(lab, "gw3")
        lab.start_daemon("gw3")
        eventually(partial(knows_all, lab, "gw3"))
        cluster.settle(lab)
    assert (held.report["failed"], held.report["lost_connections"]) == (0, 0), held.report


def test_translated_connections_go_on_through_the_survivors(lab: Lab) -> None:
    whole(lab)
    rules = TRANSLATED % (PORT, lab.topology.vip(4, "inside"))
    for name in names(lab):
        lab.inside(name, load_nft, rules)
    gather_on(lab, "gw1", "gw2")
    report = download_while_dying(lab, "gw1", names(lab))
    for name in names(lab):
        lab.run(name, ["nft", "delete", "table", "ip", "translated"])
    assert (report["complete"], report["failed"]) == (COUNT, 0), report


def test_a_survivor_that_does_not_replicate_ends_the_connections(lab: Lab) -> None:
    whole(lab)
    forgetful(lab, "gw3")
    gather_on(lab, "gw1", "gw3")
    before = strangers(lab)
    report = download_while_dying(lab, "gw1", ["gw1", "gw2"], PATIENCE_WHEN_LOST_S)
    assert (report["complete"], report["failed"]) == (0, COUNT), report
    assert strangers(lab) > before
