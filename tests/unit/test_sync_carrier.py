# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of a lost carrier, and a ring of two that moves to its other link by it."""

from netlab.commands import run

from tests.unit.cluster_namespaces import pair

WATCH = """
import select, sys
from sync.carrier import Carrier, interfaces_of
from sync.sockets import parse_address

listen = ["10.9.0.1:7400", "[fd09::1]:7400", "127.0.0.1:7400", "[::]:7400", "10.9.9.9:7400"]
local = [parse_address(text) for text in listen]
print([bool(index) for index in interfaces_of(local)], flush=True)
carrier = Carrier(local)

def lost():
    select.select([carrier], [], [], 10)
    return carrier.lost()

print(carrier.lost(), flush=True)
print(lost(), flush=True)
sys.stdin.readline()
carrier.lost()
print(lost(), flush=True)
"""

# A node on two links; tells what its transport makes of the first one's end.
NODE = """
import asyncio, sys
from netlab.waiting import until
from sync.config import RingConfig
from sync.driver import Ring, peer_paths

OWN, OTHER = {own}, {other}
links = lambda host: [f"10.9.0.{{host}}:7400", f"10.9.1.{{host}}:7400"]

async def main():
    config = RingConfig(node=OWN, peers={{OTHER: peer_paths(links(OWN), links(OTHER))}})
    async with Ring(config, links(OWN), scheduling="other") as ring:
        await until(lambda: len(ring.members) == 2)
        print("both", flush=True)
        report = lambda: ring._node.transport.report()[OTHER].path.link
        await until(lambda: ring.stats().get("links_lost") == 1 and report() == 1)
        print("moved", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)

asyncio.run(main())
"""


def set_wire(namespace: str, state: str) -> None:
    run("ip", "-n", namespace, "link", "set", "wire", state)


def test_the_kernel_tells_which_links_are_concerned() -> None:
    with pair() as hosts:
        child = hosts.start(hosts.left, WATCH)
        assert child.read_line() == "[True, True, True, False, False]"
        assert child.read_line() == "[]"
        set_wire(hosts.right, "down")
        assert child.read_line() == "[0, 1]"
        set_wire(hosts.right, "up")
        child.write_line("it is back, and goes again")
        set_wire(hosts.right, "down")
        assert child.read_line() == "[0, 1]"


def test_a_ring_goes_on_over_its_other_link() -> None:
    with pair() as hosts:
        peer = ["peer", "name", "second", "netns", hosts.right]
        run("ip", "-n", hosts.left, "link", "add", "second", "type", "veth", *peer)
        for host, namespace in ((1, hosts.left), (2, hosts.right)):
            run("ip", "-n", namespace, "addr", "add", f"10.9.1.{host}/24", "dev", "second")
            run("ip", "-n", namespace, "link", "set", "second", "up")
        nodes = [
            hosts.start(hosts.left, NODE.format(own=1, other=2)),
            hosts.start(hosts.right, NODE.format(own=2, other=1)),
        ]
        assert [node.read_line() for node in nodes] == ["both", "both"]
        set_wire(hosts.left, "down")
        assert [node.read_line() for node in nodes] == ["moved", "moved"]
        for node in nodes:
            node.write_line("enough")
        assert [node.process.wait(10) for node in nodes] == [0, 0]
