# SPDX-License-Identifier: Apache-2.0
"""Taking and giving up addresses on a real interface, with a real neighbour looking on."""

import json

from netlab.commands import run

from tests.unit.cluster_namespaces import pair

PRELUDE = """
import asyncio, json
from lb.configuration.node import Interface, Node, NodeConfig
from lb.network.links import LinkWatch
from lb.configuration.model import ClusterConfig, Vip
from lb.network.netlink import Netlink
from lb.cluster.strangers import Strangers
from lb.cluster.vip_manager import VipManager
from netlab.waiting import until

NODE = NodeConfig("test", Node("gw1", 1), (Interface("wire", "lan"),))
CONFIG = ClusterConfig(vips=(Vip("10.9.0.100/24", "lan"), Vip("fd09::100/64", "lan"), Vip("10.8.0.1/24", "dmz")))
A, B, ELSEWHERE = "10.9.0.100", "fd09::100", "10.8.0.1"
log, strangers = [], []

def present():
    with Netlink() as kernel:
        held = {str(address.interface.ip) for address in kernel.addresses()}
    return sorted(held & {A, B, ELSEWHERE})

def hold(hosts):
    log.append(["hold", sorted(hosts), present()])

async def manager(keep=(), entitled=lambda: True):
    links = LinkWatch(asyncio.get_running_loop(), ["wire"], lambda: None)
    strangers.append(Strangers(lambda *claim: log.append(["stranger", *claim])))
    made = VipManager(NODE, hold, links, strangers[0].heard, lambda *back: log.append(["put back", *back]), entitled)
    made.start(CONFIG, keep=keep)
    return made
"""

# The gateway's own addresses: one as a host has it, with a prefix length that may be another than the VIP's.
OWN = """
def operator(*arguments):
    import subprocess
    subprocess.run(["ip", "address", *arguments, "dev", "wire"], check=True)

async def own_manager(own):
    links = LinkWatch(asyncio.get_running_loop(), ["wire"], lambda: None)
    made = VipManager(NODE, hold, links, lambda *claim: None, lambda *back: None, own=lambda: own)
    made.start(CONFIG)
    return made
"""

OWN_ADDRESS = (
    PRELUDE
    + OWN
    + """
async def main():
    own = {A: "wire"}
    operator("add", A + "/24")
    vips = await own_manager(own)
    log.append(["found", sorted(vips.taken)])
    vips.want(frozenset({A, B}))
    await vips.settled()
    log.append(["refused", sorted(vips.taken), vips.problems[A]])
    vips.want(frozenset())
    await vips.settled()
    log.append(["left", present()])
    operator("del", A + "/24")
    own.clear()
    vips.want(frozenset({A}))
    log.append(["free now", present(), A in vips.problems])
    # Somebody makes a VIP that is held here this gateway's own.
    operator("replace", A + "/24")
    own[A] = "wire"
    vips.want(frozenset())
    await vips.settled()
    log.append(["left", present()])
    await vips.close()
    print(json.dumps([entry for entry in log if entry[0] != "hold"]))

asyncio.run(main())
"""
)

TAKE_AND_GIVE = (
    PRELUDE
    + """
async def main():
    vips = await manager()
    vips.want(frozenset({A, B}))
    log.append(["taken", present()])
    await vips.settled()
    print("taken", flush=True)
    await asyncio.to_thread(input)
    vips.want(frozenset({B}))
    log.append(["still answering for", sorted(vips.held)])
    await vips.settled()
    log.append(["left", present(), sorted(vips.held)])
    vips.want(frozenset({B, ELSEWHERE}))
    log.append(["problem", vips.problems[ELSEWHERE]])
    await vips.close()
    log.append(["closed", present()])
    print(json.dumps(log))

asyncio.run(main())
"""
)

RESTART = (
    PRELUDE
    + """
async def main():
    with Netlink() as kernel:
        wire = next(link for link in kernel.links() if link.name == "wire")
        from ipaddress import ip_interface
        for vip in CONFIG.vips[:2]:
            kernel.add_address(wire.index, ip_interface(vip.address))
    vips = await manager(keep=[A])
    log.append(["found", sorted(vips.taken)])
    vips.want(frozenset({A}))
    await vips.settled()
    log.append(["left", present()])
    await vips.close()
    print(json.dumps(log))

asyncio.run(main())
"""
)

STRANGER = (
    PRELUDE
    + """
async def main():
    vips = await manager()
    strangers[0].judging = True
    strangers[0].member_macs = frozenset({bytes.fromhex("020000000001")})
    vips.want(frozenset({A}))
    await vips.settled()
    print("taken", flush=True)
    await until(lambda: any(entry[0] == "stranger" for entry in log))
    await vips.close()
    print(json.dumps([entry for entry in log if entry[0] == "stranger"]))

asyncio.run(main())
"""
)

CLAIM = """
import time
from ipaddress import ip_address
from lb.network.announce import Segment, announcement
for _ in range(3):
    for mac in ("020000000001", "02000000beef"):
        segment = Segment("wire", bytes.fromhex(mac))
        segment.send(announcement(segment.mac, ip_address("10.9.0.100")))
        segment.close()
    time.sleep(0.4)
"""


def test_taken_at_once_and_answered_for_after_given_up_the_other_way_round() -> None:
    with pair() as hosts:
        child = hosts.start(hosts.left, TAKE_AND_GIVE)
        assert child.read_line() == "taken"
        run("ip", "netns", "exec", hosts.right, "ping", "-c", "1", "-W", "2", "10.9.0.100")
        out, err = child.process.communicate("\n", timeout=20)
    assert not child.process.returncode, err
    assert json.loads(out.splitlines()[-1]) == [
        ["taken", ["10.9.0.100", "fd09::100"]],
        ["hold", ["10.9.0.100", "fd09::100"], ["10.9.0.100", "fd09::100"]],
        ["still answering for", ["10.9.0.100", "fd09::100"]],
        # The packet path stops answering first; only then the address goes.
        ["hold", ["fd09::100"], ["10.9.0.100", "fd09::100"]],
        ["left", ["fd09::100"], ["fd09::100"]],
        ["problem", "no interface of this gateway that is up is on segment dmz"],
        ["closed", ["fd09::100"]],
    ]


def test_what_an_earlier_daemon_left_is_kept_or_taken_off() -> None:
    with pair() as hosts:
        seen = json.loads(hosts.python(hosts.left, RESTART).splitlines()[-1])
    assert seen[0] == ["found", ["10.9.0.100", "fd09::100"]]
    assert seen[-1] == ["left", ["10.9.0.100"]]


def test_an_address_of_the_gateway_itself_is_neither_taken_nor_deleted() -> None:
    with pair() as hosts:
        seen = json.loads(hosts.python(hosts.left, OWN_ADDRESS).splitlines()[-1])
    assert seen == [
        ["found", []],
        ["refused", ["fd09::100"], "it is this gateway's own address (on wire)"],
        ["left", ["10.9.0.100"]],
        ["free now", ["10.9.0.100"], False],
        ["left", ["10.9.0.100"]],
    ]


PUT_BACK = (
    PRELUDE
    + OWN
    + """
import time

def found(vips):
    with Netlink() as kernel:
        vips.found(kernel.addresses(), time.monotonic())

async def main():
    vips = await manager()
    vips.want(frozenset({A, B}))
    await vips.settled()
    print("taken", flush=True)
    await asyncio.to_thread(input)
    # What was looked at before it was taken says nothing of it.
    vips.found([], vips.taken[A].at)
    found(vips)
    for _ in range(2):
        operator("del", A + "/24")
        found(vips)
        log.append(["there", present()])
    # Set down, the link loses its IPv6 addresses.
    import subprocess
    subprocess.run(["ip", "link", "set", "wire", "down"], check=True)
    await until(lambda: not vips._links.up("wire"))
    found(vips)
    log.append(["down", present()])
    subprocess.run(["ip", "link", "set", "wire", "up"], check=True)
    await until(lambda: vips._links.up("wire"))
    vips.links_changed()
    log.append(["up", present()])
    vips.want(frozenset())
    await vips.settled()
    found(vips)
    log.append(["given up", present()])
    await vips.close()
    print(json.dumps([entry for entry in log if entry[0] != "hold"]))

asyncio.run(main())
"""
)


def test_an_address_that_somebody_takes_off_is_put_back_and_announced() -> None:
    with pair() as hosts:
        child = hosts.start(hosts.left, PUT_BACK)
        assert child.read_line() == "taken"
        out, err = child.process.communicate("\n", timeout=30)
    assert not child.process.returncode, err
    both = ["10.9.0.100", "fd09::100"]
    assert json.loads(out.splitlines()[-1]) == [
        ["put back", "10.9.0.100", "wire"],
        ["there", both],
        # Told of once for a while, done each time.
        ["there", both],
        ["down", ["10.9.0.100"]],
        ["put back", "fd09::100", "wire"],
        ["up", both],
        ["given up", []],
    ]


def test_a_stranger_is_reported_once_and_a_member_never() -> None:
    with pair() as hosts:
        child = hosts.start(hosts.left, STRANGER)
        assert child.read_line() == "taken"
        hosts.python(hosts.right, CLAIM)
        seen = json.loads(child.communicate_checked().splitlines()[-1])
    assert seen == [["stranger", "10.9.0.100", "02:00:00:00:be:ef", "wire"]]


UNENTITLED = (
    PRELUDE
    + """
async def main():
    lease = [True]
    vips = await manager(entitled=lambda: lease[0])
    vips.want(frozenset({A}))
    await vips.settled()
    lease[0] = False
    await asyncio.sleep(0.05)
    print("taken", flush=True)
    await asyncio.to_thread(input)
    vips.links_changed()
    lease[0] = True
    print("again", flush=True)
    await asyncio.to_thread(input)
    await vips.close()

asyncio.run(main())
"""
)

# Prints how many claims of the address's holder it has heard: once it has heard one, or when QUIET_S are over.
CONTEND = """
import time
from ipaddress import ip_address
from lb.network.announce import Segment, announcement
segment = Segment("wire", bytes.fromhex("02000000beef"))
segment.watch([ip_address("10.9.0.100")])
segment.claims()
segment.send(announcement(segment.mac, ip_address("10.9.0.100")))
others, end = [], time.monotonic() + QUIET_S
while not others and time.monotonic() < end:
    time.sleep(0.02)
    others = [claim for claim in segment.claims() if claim.mac != segment.mac]
print(len(others))
segment.close()
"""


def test_without_a_lease_an_address_is_neither_defended_nor_announced_again() -> None:
    """Whoever claims it then may be its new owner."""
    with pair() as hosts:
        child = hosts.start(hosts.left, UNENTITLED)
        assert child.read_line() == "taken"
        assert int(hosts.python(hosts.right, CONTEND.replace("QUIET_S", "0.8"))) == 0
        child.write_line()
        assert child.read_line() == "again"
        assert int(hosts.python(hosts.right, CONTEND.replace("QUIET_S", "30"))) > 0
        _, err = child.process.communicate("\n", timeout=20)
    assert not child.process.returncode, err


LATE = (
    PRELUDE
    + """
async def main():
    lease = [False]
    vips = await manager(entitled=lambda: lease[0])
    vips.want(frozenset({A}))
    await vips.settled()
    vips.lease_renewed()
    print("taken", flush=True)
    await asyncio.to_thread(input)
    lease[0] = True
    vips.lease_renewed()
    await asyncio.to_thread(input)
    await vips.close()

asyncio.run(main())
"""
)

LISTEN = """
import time
from ipaddress import ip_address
from lb.network.announce import Segment
segment = Segment("wire", bytes.fromhex("02000000beef"))
segment.watch([ip_address("10.9.0.100")])
print("listening", flush=True)
claims, end = [], time.monotonic() + QUIET_S
while not claims and time.monotonic() < end:
    time.sleep(0.02)
    claims = segment.claims()
print(len(claims), flush=True)
segment.close()
"""


def test_an_address_taken_without_a_lease_is_announced_when_there_is_one() -> None:
    with pair() as hosts:
        quiet = hosts.start(hosts.right, LISTEN.replace("QUIET_S", "1.5"))
        assert quiet.read_line() == "listening"
        child = hosts.start(hosts.left, LATE)
        assert child.read_line() == "taken"
        assert quiet.read_line() == "0"
        listening = hosts.start(hosts.right, LISTEN.replace("QUIET_S", "30"))
        assert listening.read_line() == "listening"
        child.write_line()
        assert int(listening.read_line()) > 0
        _, err = child.process.communicate("\n", timeout=20)
    assert not child.process.returncode, err


DISOWN = (
    PRELUDE
    + """
import threading
told, may_return = [], threading.Semaphore(0)

def hold(hosts):
    told.append(sorted(hosts))
    may_return.acquire()

async def main():
    vips = await manager()
    vips.want(frozenset({A, B}))
    await until(lambda: told == [[A, B]])
    # The packet path is just being told of what others may own by now.
    vips.disown()
    may_return.release()
    await until(lambda: told == [[A, B], []])
    log.append(["answers still", vips.disowning])
    may_return.release()
    await vips.settled()
    log.append(["answers no more", vips.disowning, present()])
    vips.want(frozenset({A}))
    may_return.release()
    await vips.settled()
    vips.disown()
    vips.want(frozenset({A}))
    log.append(["given anew", vips.disowning])
    may_return.release()
    await vips.settled()
    await vips.close()
    print(json.dumps(log))

asyncio.run(main())
"""
)


def test_what_others_may_own_is_disowned_until_the_packet_path_has_let_go_of_it() -> None:
    with pair() as hosts:
        seen = json.loads(hosts.python(hosts.left, DISOWN).splitlines()[-1])
    assert seen == [["answers still", True], ["answers no more", False, []], ["given anew", False]]
