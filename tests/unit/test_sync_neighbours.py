# SPDX-License-Identifier: Apache-2.0
"""A peer that is silent is looked for anew: the transport asks for it, and the kernel does it at once."""

from itertools import pairwise

import pytest
from netlab.commands import run

from sync.transport import Resolve
from tests.unit.cluster_namespaces import pair
from tests.unit.sync_transport_network import Network

ECHO = """
import socket
from sync.sockets import family_of, parse_address
address = parse_address({address!r})
link = socket.socket(family_of(address), socket.SOCK_DGRAM)
link.bind(("", 7400))
print("ready", flush=True)
data, source = link.recvfrom(16)
link.sendto(data, source)
"""
LOOK_FOR = """
import socket, sys
from sync.neighbours import ask_again
from sync.sockets import family_of, parse_address

def frames():
    with open("/proc/net/dev") as devices:
        return next(int(line.split()[10]) for line in devices if line.strip().startswith("wire:"))

def look_for():
    before = frames()
    found = ask_again(address)
    print("asked" if found and frames() > before else found, flush=True)

address = parse_address({address!r})
link = socket.socket(family_of(address), socket.SOCK_DGRAM)
link.settimeout(10)
look_for()
link.sendto(b"in vain", address)
look_for()
sys.stdin.readline()
look_for()
print(link.recv(16).decode(), flush=True)
look_for()
"""

# A ring whose only peer cannot be found, as root or as nobody.
LONELY = """
import asyncio, os
from netlab.waiting import until
from sync.config import RingConfig
from sync.driver import Ring, peer_paths

async def main():
    own = "10.9.0.1:7400"
    config = RingConfig(node=1, peers={{2: peer_paths([own], ["10.9.0.2:7400"])}})
    if {user}:
        os.setuid({user})
    async with Ring(config, [own], scheduling="other") as ring:
        await until(lambda: {condition})
        print(ring.members)

asyncio.run(main())
"""


def test_silent_peer_is_looked_for_with_every_repetition_on_every_path() -> None:
    network = Network(links=2)
    network.send(1, 2, b"hello")
    network.run(1.0)
    assert not network[1].resolved, "who answers need not be looked for"
    network.cut = {(1, 2, 0), (1, 2, 1)}
    network.send(1, 2, b"lost")
    begin = network.now
    network.run(1.0)
    looked_for = network[1].resolved
    assert {effect for _, effect in looked_for} == {Resolve(link, ("node", 2, link)) for link in (0, 1)}
    assert begin < looked_for[0][0] < begin + network.config.failure_after_s / 2, "soon enough to be of use"
    instants = sorted({at for at, _ in looked_for})
    assert all(later - earlier >= network.config.rto_floor_s for earlier, later in pairwise(instants))


def test_peer_that_never_answered_is_looked_for_while_it_is_greeted() -> None:
    network = Network()
    network.cut = {(1, 2, 0)}
    network.send(1, 2, b"hello")
    network.run(network.config.failure_after_s)
    assert network[1].resolved


@pytest.mark.parametrize(("host", "address"), [("10.9.0.2/24", "10.9.0.2:7400"), ("fd09::2/64", "[fd09::2]:7400")])
def test_neighbour_asked_for_in_vain_is_asked_for_anew_at_once(host: str, address: str) -> None:
    with pair() as hosts:
        echo = hosts.start(hosts.right, ECHO.format(address=address))
        assert echo.read_line() == "ready"
        run("ip", "-n", hosts.right, "addr", "del", host, "dev", "wire")
        child = hosts.start(hosts.left, LOOK_FOR.format(address=address))
        assert child.read_line() == "False", "nobody has asked for it yet"
        assert child.read_line() == "asked", "the second question does not wait for a second"
        run("ip", "-n", hosts.right, "addr", "add", host, "dev", "wire", *(["nodad"] if ":" in host else []))
        child.write_line("it is back")
        assert child.read_line() == "asked"
        assert child.read_line() == "in vain", "what was waiting is sent, not lost"
        assert child.read_line() == "False", "what is resolved stays as it is"
        assert echo.process.wait(10) == child.process.wait(10) == 0


@pytest.mark.parametrize(
    ("user", "condition"),
    [
        (0, 'ring.stats().get("neighbours_asked_again", 0) >= 3'),
        (65534, 'ring.stats().get("neighbours_not_permitted") == 1'),
    ],
)
def test_ring_looks_for_an_absent_peer_if_it_may(user: int, condition: str) -> None:
    with pair() as hosts:
        run("ip", "-n", hosts.right, "addr", "flush", "dev", "wire")
        assert hosts.python(hosts.left, LONELY.format(user=user, condition=condition)).strip() == "(1,)"
