# SPDX-License-Identifier: Apache-2.0
"""A gateway without others waits, asks on a real wire, and leaves alone what somebody answers for."""

import json

from netlab.commands import run

from tests.unit.cluster_namespaces import pair

CODE = """
import asyncio
import json
from lb.cluster.alone import Alone
from lb.cluster.occupancy import Occupancy
from lb.configuration.model import Vip
from lb.network.netlink import Netlink
from netlab.waiting import until

async def main():
    vips = [Vip(address=address, segment="lan") for address in ("10.9.0.100/24", "10.9.0.101/24", "10.9.0.102/24")]
    taken, told, decided = {"10.9.0.101"}, [], []
    with Netlink() as kernel:
        links = {link.name: link for link in kernel.links() if link.name == "wire"}
    occupancy = Occupancy({"wire": "lan"}, lambda: links)
    untaken = lambda: (vip for vip in vips if vip.host not in taken)
    heard = False
    yielding = lambda: (vip for vip in vips if heard and vip.host in taken)
    alone = Alone(occupancy, untaken, yielding, lambda: decided.append(alone.waits), told.append)
    seen = {"at first": alone.waits}
    alone.wait()
    seen["waiting"] = alone.waits
    alone.look_around()
    await until(alone.occupied)
    seen["looking tells"] = len(told)
    seen["left alone"] = [sorted(alone.left_alone()), sorted(alone.left_alone())]
    seen["told"] = [(event.kind, event.subject) for event in told]
    await until(lambda: decided)
    # Asked again and again: the answer has not aged.
    seen["decided while waiting"], seen["still"] = [*decided], sorted(alone.occupied())
    heard = True
    await until(lambda: len(decided) > 1)
    seen["gives up"] = sorted(alone.left_alone())
    alone.found_others()
    seen["found others"] = sorted(alone.left_alone())
    print(json.dumps(seen))

asyncio.run(main())
"""


def test_what_somebody_answers_for_is_left_alone_until_another_gateway_is_found() -> None:
    with pair() as hosts:
        for vip in ("10.9.0.100/24", "10.9.0.101/24"):
            run("ip", "-n", hosts.right, "address", "add", vip, "dev", "wire")
        seen = json.loads(hosts.python(hosts.left, CODE))
    assert (seen["at first"], seen["waiting"], seen["decided while waiting"]) == (False, True, [False])
    assert seen["looking tells"] == 0
    assert seen["left alone"] == [["10.9.0.100"]] * 2
    assert seen["told"] == [["vip.in_use", "10.9.0.100"]]
    assert seen["still"] == ["10.9.0.100"]
    assert seen["gives up"] == ["10.9.0.100", "10.9.0.101"], "the others are there, only not understood"
    assert seen["found others"] == []
