# SPDX-License-Identifier: Apache-2.0
"""Netlink requests against the real kernel, in a namespace pair."""

import errno
import json
from ipaddress import ip_interface

from hypothesis import given
from hypothesis import strategies as st

from lb.configuration.fields import IpAddress
from lb.network import netlink_messages as wire
from lb.network.own import has_marks
from sync import rtnetlink
from tests.unit.cluster_namespaces import pair

CODE = """
import json
import socket
from ipaddress import ip_address, ip_interface
from lb.network.netlink import Netlink, NetlinkError
from lb.network.netlink_messages import Address, Link, Neighbour
from lb.network.netlink_monitor import Monitor
from lb.network.own import own
from netlab.waiting import eventually

with Netlink() as kernel:
    wire = next(link for link in kernel.links() if link.name == "wire")
    monitor = Monitor(links=True, addresses=True, neighbours=True)
    four, six = ip_interface("10.9.0.100/32"), ip_interface("fd09::100/128")
    seen = {"up": wire.up, "mac": len(wire.mac)}
    seen["added"] = [kernel.add_address(wire.index, vip) for vip in (four, six, four)]
    there = [a for a in kernel.addresses() if a.index == wire.index]
    held = [str(a.interface) for a in there]
    unmarked = own(there, {four.ip, six.ip}, marks=False)
    seen["own"] = [
        sorted(str(a.interface) for a in them if not a.interface.is_link_local) for them in (own(there, ()), unmarked)
    ]
    seen["held"] = [str(vip) in held for vip in (four, six)]
    for target in ("10.9.0.2", "fd09::2"):
        kernel.solicit(wire.index, ip_address(target))
    eventually(lambda: {"10.9.0.2", "fd09::2"} <= {str(n.address) for n in kernel.neighbours() if n.usable})
    route = kernel.route_to(ip_address("10.9.0.2"))
    seen["route"] = [route.index == wire.index, route.gateway, str(route.source)]
    # The source of the gateway's own traffic stays its own address.
    seen["source6"] = str(kernel.route_to(ip_address("fd09::2")).source)
    try:
        kernel.route_to(ip_address("192.0.2.1"))
    except NetlinkError as error:
        seen["unreachable"] = error.errno
    settings = "/proc/sys/net/ipv4/conf/wire/"
    seen["sources"] = []
    for loosely in (False, True):
        kernel.accept_own_sources(wire.index, loosely=loosely)
        seen["sources"].append([int(open(settings + name).read()) for name in ("accept_local", "rp_filter")])
    kernel.keep_arp_apart(wire.index, ignore=1)
    seen["arp"] = [int(open(settings + name).read()) for name in ("arp_ignore", "arp_announce")]
    everywhere = [ip_address("10.9.0.200"), ip_address("fd09::200")]
    for address in (*everywhere, *everywhere):
        kernel.deliver_locally(address)
    seen["delivered"] = sorted(map(str, kernel.delivered_locally()))
    with socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True):
        for address in everywhere:
            socket.create_connection((str(address), 80), timeout=1).close()
    for address in (*everywhere, *everywhere):
        kernel.deliver_no_longer(address)
    seen["delivered no longer"] = sorted(map(str, kernel.delivered_locally()))
    seen["deleted"] = [kernel.delete_address(wire.index, vip) for vip in (four, six, six)]
    changes = monitor.read()
    kinds = {(type(change.object).__name__, change.gone) for change in changes}
    seen["changes"] = sorted(f"{kind}{'-' if gone else '+'}" for kind, gone in kinds)
    print(json.dumps(seen))
"""


def test_requests_and_notifications() -> None:
    with pair() as hosts:
        seen = json.loads(hosts.python(hosts.left, CODE))
    assert seen == {
        "up": True,
        "mac": 6,
        "added": [True, True, False],
        "own": [["10.9.0.1/24", "fd09::1/64"]] * 2,
        "held": [True, True],
        "route": [True, None, "10.9.0.1"],
        "source6": "fd09::1",
        "sources": [[1, 0], [1, 2]],
        "unreachable": errno.ENETUNREACH,
        "arp": [1, 2],
        "delivered": ["10.9.0.200", "fd09::200"],
        "delivered no longer": [],
        "deleted": [True, True, False],
        "changes": ["Address+", "Address-", "Link+", "Neighbour+"],
    }


def test_a_kernel_is_known_to_remember_who_has_made_an_address() -> None:
    releases = ("4.19.0-amd64", "5.15.0-91-generic", "5.18.0", "6.1.0-13-amd64", "7.0", "unheard-of")
    assert [has_marks(release) for release in releases] == [False, False, True, True, True, False]


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_of_notifications_fail(data: bytes) -> None:
    for kind, _, body in rtnetlink.messages(data):
        assert kind >= 0
        assert all(len(value) <= len(body) for _, value in rtnetlink.attributes(body))


@given(st.integers(1, 0x7FFFFFFF), st.ip_addresses(), st.integers(0, 32))
def test_what_is_asked_for_reads_back_as_asked(index: int, address: IpAddress, prefix: int) -> None:
    added = wire.parse_change(wire.RTM_NEWADDR, memoryview(wire.address_body(index, address, prefix)))
    assert isinstance(added, wire.Change)
    assert added.object == wire.Address(index, ip_interface(f"{address}/{prefix}"), wire.MADE_BY_RAINLB)
    kept = wire.parse_change(wire.RTM_DELNEIGH, memoryview(wire.neighbour_in_use(index, address)))
    assert kept == wire.Change(wire.Neighbour(index, address, b"", wire.NUD_PROBE), gone=True)
    assert wire.parse_local_route(memoryview(wire.local_route(address))) == address
    assert wire.parse_local_route(memoryview(wire.way_to(address))) is None
