# SPDX-License-Identifier: Apache-2.0
"""Announcements: the frames against scapy's reading of them, then their effect on a real neighbour's cache."""

import json
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import given
from hypothesis import strategies as st
from netlab.commands import run
from netlab.waiting import eventually

from lb.network.announce import Claim, announcement, probe, read_claim
from tests.unit.cluster_namespaces import pair

MAC = bytes.fromhex("020000000005")
STRANGER = bytes.fromhex("02000000beef")
FOUR, SIX = IPv4Address("10.9.0.100"), IPv6Address("fd09::100")


def test_gratuitous_arp_in_both_forms() -> None:
    from scapy.layers.l2 import ARP, Ether

    request, reply = (Ether(frame) for frame in announcement(MAC, FOUR))
    for packet, operation in ((request, 1), (reply, 2)):
        arp = packet[ARP]
        assert packet.dst == "ff:ff:ff:ff:ff:ff"
        assert (arp.op, arp.psrc, arp.pdst, arp.hwsrc) == (operation, str(FOUR), str(FOUR), "02:00:00:00:00:05")


def test_unsolicited_advertisement_overrides_and_its_checksum_is_right() -> None:
    from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
    from scapy.layers.l2 import Ether

    (frame,) = announcement(MAC, SIX)
    packet = Ether(frame)
    advertisement = packet[ICMPv6ND_NA]
    assert (packet[IPv6].dst, packet[IPv6].hlim) == ("ff02::1", 255)
    assert (advertisement.O, advertisement.S, advertisement.R, advertisement.tgt) == (1, 0, 1, str(SIX))
    assert packet[ICMPv6NDOptDstLLAddr].lladdr == "02:00:00:00:00:05"
    checksum = advertisement.cksum
    del advertisement.cksum
    assert Ether(bytes(packet))[ICMPv6ND_NA].cksum == checksum


def test_probes_do_not_claim_the_address() -> None:
    assert read_claim(probe(MAC, FOUR)) is None
    assert read_claim(probe(MAC, SIX)) is None


def test_own_announcements_read_back_as_claims() -> None:
    for address in (FOUR, SIX):
        for frame in announcement(MAC, address):
            assert read_claim(frame) == Claim(address, MAC)


@given(st.binary(max_size=120), st.sampled_from([b"\x08\x06", b"\x86\xdd", b""]))
def test_no_frame_makes_the_reader_fail(data: bytes, kind: bytes) -> None:
    claim = read_claim(data[:12] + kind + data[12:])
    assert claim is None or len(claim.mac) == 6


LISTEN = """
import asyncio, json, sys
from lb.network.announce import Announcer
from netlab.waiting import until
from lb.network.netlink import Netlink

async def main():
    with Netlink() as kernel:
        wire = next(link for link in kernel.links() if link.name == "wire")
    seen = []
    notice = lambda name, claim: seen.append([str(claim.address), claim.mac.hex()])
    announcer = Announcer(asyncio.get_running_loop(), notice)
    for address in ("10.9.0.100", "fd09::100"):
        announcer.start("wire", wire.mac, address)
    print("ready", flush=True)
    await until(lambda: len({a for a, _ in seen}) == 2)
    announcer.close()
    print(json.dumps(seen))

asyncio.run(main())
"""

SEND = """
import sys
from ipaddress import ip_address
from lb.network.announce import Segment, announcement
segment = Segment("wire", bytes.fromhex("02000000beef"))
for address in sys.argv[1:] or ("10.9.0.77", "fd09::77", "10.9.0.100", "fd09::100"):
    segment.send(announcement(segment.mac, ip_address(address)))
"""


def neighbours_of(namespace: str) -> tuple[str, str]:
    known = {entry["dst"]: entry.get("lladdr") for entry in json.loads(run("ip", "-n", namespace, "-j", "neigh"))}
    return known["10.9.0.100"], known["fd09::100"]


def test_neighbours_believe_an_announcement_and_strangers_are_noticed() -> None:
    with pair() as hosts:
        # The right host knows the addresses under a stale MAC, as a client does when a gateway has died.
        for address in ("10.9.0.100", "fd09::100"):
            run(*f"ip -n {hosts.right} neigh replace {address} lladdr 02:00:00:00:de:ad dev wire nud reachable".split())
        watcher = hosts.start(hosts.left, LISTEN)
        assert watcher.read_line() == "ready"
        mac = json.loads(run("ip", "-n", hosts.left, "-j", "link", "show", "wire"))[0]["address"]
        # The announcement is repeated: an interface that has just come up misses the first IPv6 ones.
        eventually(lambda: neighbours_of(hosts.right) == (mac, mac))
        hosts.python(hosts.right, SEND)
        seen = json.loads(watcher.communicate_checked().splitlines()[-1])
    # Only claims to watched addresses get through the kernel's filter.
    assert {tuple(claim) for claim in seen} == {("10.9.0.100", STRANGER.hex()), ("fd09::100", STRANGER.hex())}
    assert ip_address(seen[0][0]) in (FOUR, SIX)


def test_a_foreign_holder_answers_the_probe() -> None:
    with pair() as hosts:
        for address in ("10.9.0.100/32", "fd09::100/128"):
            run("ip", "-n", hosts.right, "addr", "add", address, "dev", "wire", "nodad")
        mac = json.loads(run("ip", "-n", hosts.right, "-j", "link", "show", "wire"))[0]["address"]
        seen = json.loads(hosts.python(hosts.left, LISTEN).splitlines()[-1])
    assert {tuple(claim) for claim in seen} == {
        ("10.9.0.100", mac.replace(":", "")),
        ("fd09::100", mac.replace(":", "")),
    }
