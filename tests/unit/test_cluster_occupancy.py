# SPDX-License-Identifier: Apache-2.0
"""Asking a segment who has the VIPs, on a real wire with a host that has two of four."""

import json

from netlab.commands import run

from tests.unit.cluster_namespaces import pair

VIPS = ("10.9.0.100/24", "fd09::100/64")

CODE = """
import json
from lb.cluster import occupancy
from lb.configuration.model import Vip
from lb.network.netlink import Netlink
from netlab.waiting import eventually

now = 0.0
addresses = ("10.9.0.100/24", "fd09::100/64", "10.9.0.101/24", "fd09::101/64")
vips = [Vip(address=address, segment="lan") for address in addresses]
elsewhere = Vip(address="10.9.0.2/24", segment="dmz")
with Netlink() as kernel:
    links = {link.name: link for link in kernel.links() if link.name == "wire"}
asked = occupancy.Occupancy({"wire": "lan"}, lambda: links, lambda: now)
asked.ask([*vips, elsewhere])
eventually(lambda: len(asked.occupied()) == 2, 10, "both answer")
seen = {"answered": asked.occupied()}
now = occupancy.HEARD_S
seen["later"] = asked.occupied()
asked.close()
print(json.dumps(seen))
"""


def test_who_has_an_address_answers_and_is_forgotten() -> None:
    with pair() as hosts:
        for vip in VIPS:
            nodad = ["nodad"] if ":" in vip else []
            run("ip", "-n", hosts.right, "address", "add", vip, "dev", "wire", *nodad)
        seen = json.loads(hosts.python(hosts.left, CODE))
        link = json.loads(run("ip", "-n", hosts.right, "-j", "link", "show", "wire"))
    assert seen["answered"] == {"10.9.0.100": link[0]["address"], "fd09::100": link[0]["address"]}
    assert seen["later"] == {}
