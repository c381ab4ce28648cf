# SPDX-License-Identifier: Apache-2.0
"""Turns a topology into namespaces, bridges and cables. Knows devices and addresses, no services."""

import ctypes
import fcntl
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

from pyroute2 import IPRoute

from netlab import namespaces
from netlab.topology import Interface, Node, Segment, Topology

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17
IFA_F_NODAD = 0x02
BUILD_THREADS = 4
# The largest frame the switches carry; the nodes' own MTU is what limits a packet.
SWITCH_MTU = 9000

HOST_SYSCTLS: dict[str, str | int] = {
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/accept_redirects": 0,
    "ipv4/conf/default/accept_redirects": 0,
    "ipv6/conf/all/accept_redirects": 0,
    "ipv6/conf/default/accept_redirects": 0,
    "ipv6/conf/all/accept_ra": 0,
    "ipv6/conf/default/accept_ra": 0,
    # Duplicate detection would make every address unusable for the first second or two.
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv4/ip_local_port_range": "1024 65000",
    "ipv4/tcp_tw_reuse": 1,
    # Many clients of one lab share one address; the default allows 1 answer of a kind a second.
    "ipv4/icmp_ratemask": 0,
    "ipv4/ping_group_range": "0 0",
}
FORWARDING_SYSCTLS: dict[str, str | int] = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    # Of several equal routes each connection takes one.
    "ipv4/fib_multipath_hash_policy": 1,
    "ipv6/fib_multipath_hash_policy": 1,
}
# A direct-return backend owns the VIP without ever answering for it.
BACKEND_SYSCTLS: dict[str, str | int] = {
    "ipv4/conf/all/arp_ignore": 1,
    "ipv4/conf/all/arp_announce": 2,
    "core/somaxconn": 8192,
    "ipv4/tcp_max_syn_backlog": 8192,
}


def mac_address(node: str, interface: str) -> str:
    """The same in every lab: captures of two runs can be compared."""
    digest = blake2b(f"{node}/{interface}".encode(), digest_size=4).digest()
    return "02:1b:" + ":".join(f"{byte:02x}" for byte in digest)


def make_network(lab: str, topology: Topology) -> None:
    """Create everything; on failure whoever called removes what was made (by the lab's name)."""
    names = [*topology.switches, *(node.name for node in topology.nodes)]
    for name in names:
        namespaces.create(namespaces.full_name(lab, name))
    with ThreadPoolExecutor(BUILD_THREADS) as pool:
        list(pool.map(lambda node: _inside(lab, node.name, set_up_host, node), topology.nodes))
        list(pool.map(lambda switch: _inside(lab, switch, set_up_switch, switch, topology), topology.switches))
        _lay_cables(lab, topology)
        list(pool.map(lambda switch: _inside(lab, switch, plug_in, switch, topology), topology.switches))
        list(pool.map(lambda node: _inside(lab, node.name, set_up_interfaces, node), topology.nodes))


def _inside(lab: str, node: str, function: object, *args: object) -> None:
    assert callable(function)
    namespaces.run_inside(namespaces.full_name(lab, node), function, *args)


def set_up_host(node: Node) -> None:
    settings = dict(HOST_SYSCTLS)
    if node.role in ("gateway", "router"):
        settings |= FORWARDING_SYSCTLS
    if node.role == "backend":
        settings |= BACKEND_SYSCTLS
    namespaces.set_sysctls(settings)
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        for address in node.loopback:
            add_address(ip, 1, address)


def set_up_switch(switch: str, topology: Topology) -> None:
    with IPRoute() as ip:
        for segment in topology.segments:
            if switch in segment.switches:
                ip.link(
                    "add",
                    ifname=segment.name,
                    kind="bridge",
                    mtu=SWITCH_MTU,
                    br_stp_state=0,
                    br_forward_delay=0,
                    br_mcast_snooping=0,
                )
                ip.link("set", ifname=segment.name, state="up")


def trunk_port(segment: Segment, towards: str) -> str:
    return f"{segment.name}-{towards}"


def _lay_cables(lab: str, topology: Topology) -> None:
    with IPRoute() as ip:
        for node in topology.nodes:
            for interface, switch, port in topology.ports(node):
                _cable(ip, lab, (node.name, interface.name, interface.effective_mtu), (switch, port, SWITCH_MTU), node)
        for segment in topology.segments:
            for left, right in zip(segment.switches, segment.switches[1:], strict=False):
                ends = (left, trunk_port(segment, right), SWITCH_MTU), (right, trunk_port(segment, left), SWITCH_MTU)
                _cable(ip, lab, *ends, None)


def _cable(ip: IPRoute, lab: str, near: tuple[str, str, int], far: tuple[str, str, int], node: Node | None) -> None:
    attributes: dict[str, object] = {"ifname": near[1], "net_ns_fd": namespaces.full_name(lab, near[0]), "mtu": near[2]}
    if node is not None:
        attributes["address"] = mac_address(node.name, near[1])
    peer = {"ifname": far[1], "net_ns_fd": namespaces.full_name(lab, far[0]), "mtu": far[2]}
    ip.link("add", kind="veth", peer=peer, **attributes)


def plug_in(switch: str, topology: Topology) -> None:
    with IPRoute() as ip:
        for port, segment in switch_ports(switch, topology).items():
            ip.link("set", ifname=port, master=socket.if_nametoindex(segment), state="up")
    know_stations(
        {
            port: mac_address(node.name, interface.name)
            for node in topology.nodes
            for interface, at, port in topology.ports(node)
            if at == switch
        }
    )


def know_stations(stations: dict[str, str]) -> None:
    """Port → MAC: a node's frames go to its port alone, whether it has spoken or not, whether its link is up or not.

    A real switch may send frames for an address it does not know to everybody, and everybody's card drops them. A veth
    has no such filter in front of its XDP program: every gateway would take a dead one's packets. Acts in the calling
    thread's namespace.
    """
    lines = [
        f"link set dev {port} flood off\nfdb replace {mac} dev {port} master static" for port, mac in stations.items()
    ]
    subprocess.run(["bridge", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def switch_ports(switch: str, topology: Topology) -> dict[str, str]:
    """Port name → segment, cables of nodes and trunks alike."""
    ports = {
        port: interface.segment.name
        for node in topology.nodes
        for interface, at, port in topology.ports(node)
        if at == switch
    }
    for segment in topology.segments:
        for left, right in zip(segment.switches, segment.switches[1:], strict=False):
            if switch in (left, right):
                ports[trunk_port(segment, right if switch == left else left)] = segment.name
    return ports


def set_up_interfaces(node: Node) -> None:
    with IPRoute() as ip:
        for interface in node.interfaces:
            set_up_interface(ip, interface)
        for route in node.routes:
            metrics = {"metrics": {"mtu": route.mtu}} if route.mtu else {}
            family = socket.AF_INET6 if ":" in route.via else socket.AF_INET
            ip.route("add", dst=route.destination, gateway=route.via, family=family, **metrics)


def set_up_interface(ip: IPRoute, interface: Interface) -> None:
    index = socket.if_nametoindex(interface.name)
    finish_checksums(interface.name)
    ip.link("set", index=index, state="up")
    for family in (4, 6):
        add_address(ip, index, interface.segment.cidr(interface.host, family))


def add_address(ip: IPRoute, index: int, cidr: str) -> None:
    address, _, length = cidr.partition("/")
    flags = {"flags": IFA_F_NODAD} if ":" in address else {}
    ip.addr("add", index=index, address=address, prefixlen=int(length), **flags)


def finish_checksums(device: str) -> None:
    """Turn transmit checksum offload off (ETHTOOL_STXCSUM = 0).

    A veth hands packets on with unfinished checksums. A physical card never delivers such a packet, and an XDP program
    that translates addresses needs finished ones.
    """
    value = (ctypes.c_uint32 * 2)(ETHTOOL_STXCSUM, 0)
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value)).ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        fcntl.ioctl(handle, SIOCETHTOOL, request)
