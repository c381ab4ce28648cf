# SPDX-License-Identifier: Apache-2.0
"""A stateful firewall on gateways: whatever passes it had both its directions there."""

import json

from netlab.commands import load_nft
from netlab.lab import Lab
from netlab.topology import CROSS_FAMILY_HTTP_PORT

# The backends listen there, and no service of the topologies used here translates to it.
PORT = CROSS_FAMILY_HTTP_PORT

# Drops whatever it has not seen begin from the clients' side: half a connection does not pass.
FIREWALL = """
table inet firewall {
  counter opened { }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    meta l4proto ipv6-icmp accept
    ip saddr 10.0.1.0/24 tcp flags syn / fin,syn,rst,ack ct state new counter name opened accept
    ip6 saddr fd00:1::/64 tcp flags syn / fin,syn,rst,ack ct state new counter name opened accept
  }
}
"""


def raise_firewalls(lab: Lab) -> None:
    """One on every gateway."""
    for gateway in lab.gateways:
        lab.inside(gateway.name, load_nft, FIREWALL)


def drop_firewalls(lab: Lab) -> None:
    for gateway in lab.gateways:
        lab.run(gateway.name, ["nft", "delete", "table", "inet", "firewall"])


def counted(lab: Lab, node: str) -> dict[str, int]:
    """Packets of each named nft counter of a node."""
    listed = json.loads(lab.run(node, ["nft", "-j", "list", "counters"]).stdout)["nftables"]
    counters = [entry["counter"] for entry in listed if "counter" in entry]
    return {counter["name"]: int(counter["packets"]) for counter in counters}


def opened(lab: Lab) -> dict[str, int]:
    """Connections that each gateway's firewall let begin."""
    return {gateway.name: counted(lab, gateway.name)["opened"] for gateway in lab.gateways}


def moving(lab: Lab, count: int, port: int = PORT) -> bool:
    """Whether the client has that many connections through the gateways."""
    return lab.established("client", f"dport = :{port}") >= count
