# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (a script for another namespace)
"""Next hops: the pure decision as a table, and the real kernel in a namespace pair."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from lb.configuration.model import Backend, ClusterConfig, Service
from lb.engine.neighbours import Want, resolve, wants
from lb.engine.plan import Hop
from lb.network.netlink_messages import NUD_FAILED, NUD_REACHABLE, NUD_STALE, Link, Neighbour, Route
from tests.unit.cluster_namespaces import Pair
from tests.unit.cluster_namespaces import pair as wired_pair

OWN, OTHER = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
B, ROUTER, SELF = ip_address("10.0.2.11"), ip_address("10.0.1.254"), ip_address("10.0.1.1")
UP = {3: Link(3, "eth1", True, OWN, 1500)}
DIRECT, VIA = Route(3, None, SELF), Route(3, ROUTER, SELF)


def neighbour(address: Any, state: int = NUD_REACHABLE, mac: bytes = OTHER) -> dict[Any, Neighbour]:
    return {(3, address): Neighbour(3, address, mac, state)}


HOP = Hop(3, OTHER, OWN, 1500)
# A sentence, the want, route, links, neighbours, and the hop or the problem.
CASES: list[tuple[str, Want, Route | None, dict[int, Link], dict[Any, Neighbour], Hop | str]] = [
    ("on the segment", Want(1, B, direct=True), DIRECT, UP, neighbour(B), HOP),
    ("behind a router", Want(1, B), VIA, UP, neighbour(ROUTER), HOP),
    ("a stale entry serves", Want(1, B), DIRECT, UP, neighbour(B, NUD_STALE), HOP),
    (
        "direct return cannot pass a router",
        Want(1, B, direct=True),
        VIA,
        UP,
        neighbour(ROUTER),
        "not on a local segment",
    ),
    ("no route", Want(1, B), None, UP, {}, "no route"),
    ("route over an interface that is gone", Want(1, B), DIRECT, {}, neighbour(B), "no route"),
    ("interface down", Want(1, B), DIRECT, {3: Link(3, "eth1", False, OWN, 1500)}, neighbour(B), "interface is down"),
    ("not resolved", Want(1, B), DIRECT, UP, {}, "next hop does not answer"),
    ("does not answer", Want(1, B), DIRECT, UP, neighbour(B, NUD_FAILED), "next hop does not answer"),
    ("an entry without address", Want(1, B), DIRECT, UP, neighbour(B, NUD_REACHABLE, b""), "next hop does not answer"),
]


@pytest.mark.parametrize(
    ("want", "route", "links", "neighbours", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_resolution(want: Want, route: Any, links: Any, neighbours: Any, expected: Hop | str) -> None:
    found = resolve([want], {B: route} if route else {}, links, neighbours)
    assert (found.hops or found.problems) == {1: expected}
    assert bool(found.unresolved) == (expected == "next hop does not answer")
    if isinstance(expected, Hop):
        assert found.ask == {(3, route.gateway or B)}


def test_outer_source_is_what_the_kernel_would_use() -> None:
    found = resolve([Want(1, B, tunnel=True)], {B: DIRECT}, UP, neighbour(B))
    assert found.sources == {4: SELF}
    assert resolve([Want(1, B)], {B: DIRECT}, UP, neighbour(B)).sources == {}


def test_wants_of_a_configuration() -> None:
    services = tuple(
        Service(forward, "10.0.1.100", "tcp", forward, backends=(Backend("b", str(B), id=n),))  # type: ignore[arg-type]
        for n, forward in enumerate(["dsr", "tunnel", "nat"], 1)
    )
    assert wants(ClusterConfig(services=services)) == [
        Want(1, B, direct=True),
        Want(2, B, tunnel=True),
        Want(3, B),
    ]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with wired_pair() as pair:
        yield pair


FOLLOW = """
import asyncio, ipaddress, subprocess
from lb.configuration.model import Backend, ClusterConfig, Service
from lb.engine.neighbours import Neighbours
from netlab.waiting import until

async def main():
    told = []
    neighbours = Neighbours(lambda hops, sources: told.append((hops, sources)))
    backends = (Backend("b4", "10.9.0.2", id=1), Backend("b6", "fd09::2", id=2), Backend("gone", "10.9.0.77", id=3))
    neighbours.configure(ClusterConfig(services=(Service("s", "10.9.0.100", "tcp", "tunnel", backends=backends),)))
    await neighbours.start()
    await until(lambda: told and set(told[-1][0]) == {1, 2}, what="both next hops")
    assert neighbours.problems == {3: "next hop does not answer"}, neighbours.problems
    assert str(told[-1][1][4]) == "10.9.0.1" and told[-1][1][6].version == 6, told[-1]
    old = told[-1][0][1].mac
    # The peer gets another address of its hardware, as after a replaced network card.
    subprocess.run(["nsenter", "--net=/run/netns/RIGHT", "ip", "link", "set", "wire", "address", "02:00:00:00:00:77"], check=True)
    subprocess.run(["nsenter", "--net=/run/netns/RIGHT", "ping", "-c1", "-W2", "10.9.0.1"], check=True, capture_output=True)
    await until(lambda: told[-1][0].get(1) and told[-1][0][1].mac != old, what="the new MAC address is noticed")
    subprocess.run(["ip", "link", "set", "wire", "down"], check=True)
    await until(lambda: set(neighbours.problems) == {1, 2, 3} and told[-1][0] == {}, what="a dead wire's next hops are problems")
    await neighbours.stop()
    print("followed", neighbours.lookups < 200)

asyncio.run(main())
"""


def test_changes_of_the_kernel_are_followed(pair: Pair) -> None:
    assert pair.python(pair.left, FOLLOW.replace("RIGHT", pair.right), timeout_s=40).strip() == "followed True"


SETTLE = """
import asyncio
from lb.configuration.model import Backend, ClusterConfig, Service
from lb.engine.neighbours import Neighbours

def config(*backends):
    return ClusterConfig(services=(Service("s", "10.9.0.100", "tcp", "tunnel", backends=backends),))

async def main():
    told = []
    neighbours = Neighbours(lambda hops, sources: told.append(set(hops)))
    await neighbours.start()
    # A neighbour that nobody has asked for yet, soon after the last time anybody was asked.
    neighbours.configure(config(Backend("b4", "10.9.0.2", id=1)))
    assert await neighbours.settled(0.5) and told[-1] == {1}, told
    neighbours.configure(config(Backend("b4", "10.9.0.2", id=1), Backend("gone", "10.9.0.78", id=3)))
    assert not await neighbours.settled(0.2)
    assert neighbours.problems == {3: "next hop does not answer"}, neighbours.problems
    await neighbours.stop()
    print("settled")

asyncio.run(main())
"""


def test_a_new_configuration_is_settled_when_its_next_hops_are_known(pair: Pair) -> None:
    pair.python(pair.right, "import subprocess; subprocess.run(['ip', 'link', 'set', 'wire', 'up'])")
    pair.python(
        pair.left, "import subprocess; subprocess.run('ip link set wire up; ip neigh flush dev wire', shell=True)"
    )
    assert pair.python(pair.left, SETTLE, timeout_s=20).strip() == "settled"
