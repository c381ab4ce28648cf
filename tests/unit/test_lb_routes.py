# SPDX-License-Identifier: Apache-2.0
"""VIPs announced as routes on a real interface, seen as a routing daemon sees them: in the kernel's addresses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.api.routing import check_routing
from lb.cluster.ownership import Cluster, NodeFacts, announcers, announces, in_use
from lb.cluster.placement import Standing
from tests.unit.cluster_namespaces import Pair, pair

PRELUDE = """
import asyncio, json
from lb.configuration.node import Interface, Node, NodeConfig, Routes
from lb.network.netlink import Netlink
from lb.network.netlink_messages import FOREVER
from lb.network.routes import RouteAnnouncer, announce, withdraw

A, B = "198.51.100.7", "2001:db8:100::7"
log, told, allowed, ready = [], [], [True], asyncio.Event()

def present(interface="lo"):
    with Netlink() as kernel:
        index = next(link.index for link in kernel.links() if link.name == interface)
        own = {str(each.interface) for each in kernel.addresses() if each.index == index}
    return sorted(own & {A + "/32", B + "/128"})

def announcer(interface="lo", **options):
    node = NodeConfig("test", Node("gw1", 1), (Interface("wire", "lan"),), routes=Routes(interface))
    tell = lambda event: told.append([event.kind, event.message])
    made = RouteAnnouncer(node, ready.wait, lambda: allowed[0], tell, **options)
    made.start((A, B))
    return made

async def until(check):
    async with asyncio.timeout(15):
        while not check():
            await asyncio.sleep(0.01)
"""
COMES_AND_GOES = """
async def main():
    routes = announcer()
    routes.want(frozenset({A, B}))
    await asyncio.sleep(0.1)
    log.append(["the packet path is not ready", present()])
    ready.set()
    await until(lambda: len(routes.announced) == 2)
    log.append(["ready", present()])
    routes.want(frozenset({B}))
    await until(lambda: A not in routes.announced)
    log.append(["one less", present()])
    await routes.close()
    log.append(["closed", present()])
    heir = announcer()
    log.append(["found by the next daemon", sorted(heir.announced)])
    begun = asyncio.get_running_loop().time()
    leaving = asyncio.create_task(heir.leave(0.3))
    await until(lambda: not present())
    log.append(["gone before the wait is over", not leaving.done()])
    await leaving
    log.append(["waited", asyncio.get_running_loop().time() - begun >= 0.3, present()])
    await heir.close()
"""
LEASE = """
async def main():
    ready.set()
    allowed[0] = False
    routes = announcer(lifetime_s=2)
    routes.want(frozenset({A, B}))
    await asyncio.sleep(0.3)
    log.append(["without a lease", present()])
    allowed[0] = True
    await until(lambda: len(routes.announced) == 2)
    log.append(["with it", present()])
    await routes.close()
    await until(lambda: not present())
    log.append(["nobody prolongs it", present()])
"""
PROLONGED = """
from lb.network import routes as module
module.RENEWAL_S = 0.2

async def main():
    ready.set()
    routes = announcer(lifetime_s=2)
    routes.want(frozenset({A, B}))
    await until(lambda: len(routes.announced) == 2)
    await asyncio.sleep(4)
    log.append(["prolonged", present()])
    allowed[0] = False
    await until(lambda: not present())
    log.append(["the lease has ended", present()])
    allowed[0] = True
    await until(lambda: len(present()) == 2)
    log.append(["it runs again", present()])
    await routes.close()
"""
HANDED_OVER = """
import subprocess

def seconds_left():
    shown = subprocess.run(["ip", "-json", "address", "show", "dev", "lo"], capture_output=True, check=True).stdout
    return [each["valid_life_time"] for each in json.loads(shown)[0]["addr_info"] if each["local"] == A]

async def main():
    ready.set()
    routes = announcer()
    routes.want(frozenset({A}))
    await until(lambda: routes.announced)
    await until(lambda: seconds_left()[0] < 30)
    await routes.close()
    log.append(["a whole lifetime for the next daemon", seconds_left()])
    await until(lambda: seconds_left()[0] < 29)
    allowed[0] = False
    heir = announcer()
    await asyncio.sleep(0.5)
    log.append(["which needs a lease", seconds_left()[0] < 29])
    allowed[0] = True
    async with asyncio.timeout(5):
        await until(lambda: seconds_left() == [30])
    heir.want(frozenset())
    await until(lambda: not heir.announced)
    await heir.close()
"""
INTERFACE = """
import subprocess

async def main():
    ready.set()
    routes = announcer("wire9")
    routes.want(frozenset({A}))
    await until(lambda: routes.problem)
    log.append(["missing", routes.problem])
    subprocess.run(["ip", "link", "add", "wire9", "type", "veth", "peer", "name", "wire8"], check=True)
    await until(lambda: "down" in routes.problem)
    log.append(["down", routes.problem])
    subprocess.run(["ip", "link", "set", "wire8", "up"], check=True)
    subprocess.run(["ip", "link", "set", "wire9", "up"], check=True)
    await until(lambda: routes.announced)
    log.append(["there", present("wire9"), routes.problem])
    subprocess.run(["ip", "link", "delete", "wire9"], check=True)
    routes.want(frozenset())
    await until(lambda: not routes.announced)
    await routes.close()
"""
BOTH = ["198.51.100.7/32", "2001:db8:100::7/128"]


@pytest.fixture(scope="module")
def wire() -> Iterator[Pair]:
    with pair() as found:
        yield found


def run(wire: Pair, code: str) -> tuple[list[list[Any]], list[list[str]]]:
    """What the code noted, and what the announcer told."""
    lines = wire.python(
        wire.left, f"{PRELUDE}{code}\nasyncio.run(main())\nprint(json.dumps([log, told]))", timeout_s=40
    )
    log, told = json.loads(lines)
    return log, told


def test_addresses_come_when_the_packet_path_serves_and_go_at_once(wire: Pair) -> None:
    log, told = run(wire, COMES_AND_GOES)
    assert log == [
        ["the packet path is not ready", []],
        ["ready", BOTH],
        ["one less", BOTH[1:]],
        ["closed", BOTH[1:]],
        ["found by the next daemon", ["2001:db8:100::7"]],
        ["gone before the wait is over", True],
        ["waited", True, []],
    ]
    assert told == [
        ["vip.announced", "198.51.100.7, 2001:db8:100::7 are announced as routes here"],
        ["vip.withdrawn", "198.51.100.7 is no longer announced as a route here"],
        ["vip.withdrawn", "2001:db8:100::7 is no longer announced as a route here"],
    ]


def test_without_a_lease_nothing_is_announced_and_a_dead_daemons_addresses_end(wire: Pair) -> None:
    log, _ = run(wire, LEASE)
    assert log == [["without a lease", []], ["with it", BOTH], ["nobody prolongs it", []]]


def test_addresses_are_prolonged_while_the_lease_runs(wire: Pair) -> None:
    log, _ = run(wire, PROLONGED)
    assert log == [["prolonged", BOTH], ["the lease has ended", []], ["it runs again", BOTH]]


def test_a_daemon_that_ends_leaves_its_successor_time(wire: Pair) -> None:
    log, _ = run(wire, HANDED_OVER)
    assert log == [["a whole lifetime for the next daemon", [30]], ["which needs a lease", True]]


def test_a_missing_interface_is_told_with_the_remedy_and_used_once_it_is_there(wire: Pair) -> None:
    log, told = run(wire, INTERFACE)
    assert "there is no interface wire9: ip link add wire9 type dummy && ip link set wire9 up" in log[0][1]
    assert "interface wire9 is down: ip link set wire9 up" in log[1][1]
    assert log[2] == ["there", BOTH[:1], ""]
    assert [kind for kind, _ in told] == ["vip.unannounced", "vip.unannounced", "vip.announced", "vip.withdrawn"]


# --- who announces ---------------------------------------------------------------------------------------------------

R, D, J, I, O = Standing.READY, Standing.DRAINED, Standing.JOINING, Standing.IMPAIRED, Standing.OUT  # noqa: E741
HOLDERS = [
    ("all that are ready", (R, R, R), [1, 2, 3]),
    ("not the drained", (R, D, R), [1, 3]),
    ("not who has lost a link", (I, R, R), [2, 3]),
    ("not who is out", (R, O, R), [1, 3]),
    ("not who has no complete table", (J, R, R), [2, 3]),
    ("the drained, if there is nobody else", (D, D, O), [1, 2]),
    ("the impaired rather than nobody", (I, J, I), [1, 3]),
    ("nobody before a table is complete", (J, J, J), []),
    ("nobody, if all are out", (O, O, O), []),
]


def members(standings: tuple[Standing, ...], *, serving: bool = True) -> Cluster:
    """Nodes from 1 on with these standings; what an operator drained is ready by itself."""
    own = [R if standing is D else standing for standing in standings]
    facts = {node: NodeFacts(f"gw{node}", int(standing)) for node, standing in enumerate(own, 1)}
    drained = frozenset(node for node, standing in enumerate(standings, 1) if standing is D)
    return Cluster(frozenset(facts), serving, facts, drained, {}, ())


@pytest.mark.parametrize(("standings", "holders"), [row[1:] for row in HOLDERS], ids=[row[0] for row in HOLDERS])
def test_who_announces(standings: tuple[Standing, ...], holders: list[int]) -> None:
    assert announcers(members(standings)) == holders
    assert announcers(members(standings, serving=False)) == []
    assert in_use(members(standings), routed=True) is bool(holders)
    assert not in_use(members(standings), routed=False)


def test_a_gateway_believes_the_worse_of_the_group_and_itself() -> None:
    assert announces(members((R, R)), 1, R)
    assert not announces(members((R, R)), 1, J), "the group remembers it from before it was away"
    assert not announces(members((J, R)), 1, R), "the group has not heard that it is ready"
    assert not announces(members((D, R)), 1, R)
    # A gateway that nobody has heard of yet has no standing.
    assert not announces(members((R, R)), 3, R)


# --- the routing daemon ----------------------------------------------------------------------------------------------

ROUTED, ON_SEGMENT = {"announce": "route"}, {"announce": "arp"}


def test_a_routing_daemon_is_looked_for_where_one_is_needed(tmp_path: Path) -> None:
    for pid, name in (("1", "systemd"), ("77", "nginx"), ("self", "bird")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(name + "\n")
    assert check_routing([ON_SEGMENT], tmp_path) == []
    (lacking,) = check_routing([ON_SEGMENT, ROUTED], tmp_path)
    assert (lacking["ok"], lacking["required"]) == (False, False)
    assert "bird2" in lacking["remedy"]
    (tmp_path / "99").mkdir()
    (tmp_path / "99" / "comm").write_text("bird\n")
    (found,) = check_routing([ROUTED], tmp_path)
    assert (found["ok"], found["detail"]) == (True, "runs: bird")
    # One in another network namespace sees other addresses.
    (tmp_path / "99" / "ns").mkdir()
    (tmp_path / "99" / "ns" / "net").symlink_to("net:[1]")
    assert not check_routing([ROUTED], tmp_path)[0]["ok"]
