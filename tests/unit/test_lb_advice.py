# SPDX-License-Identifier: Apache-2.0
"""What a cluster file is warned about."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from lb.configuration.advice import advice, node_advice
from lb.configuration.model import Backend, ClusterConfig, Service, Vip
from lb.configuration.node import Interface, Node, NodeConfig, PartitionPolicy, Peer, Resource, Ring

NETWORKS = {"outside": [ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")], "inside": [ip_network("10.0.2.0/24")]}
FORWARDS = {4: True, 6: True}


def vip(address: str, segment: str = "outside") -> ClusterConfig:
    return ClusterConfig(vips=(Vip(address, segment),))


def service(forward: str, *backends: Backend) -> ClusterConfig:
    return ClusterConfig(services=(Service("web", "10.0.1.100", "tcp", forward, port=80, backends=backends),))  # type: ignore[arg-type]


BACKEND = Backend("b1", "10.0.2.11")
CASES = [
    ("a VIP where it belongs", vip("10.0.1.100/24"), None),
    ("a VIP as a host address", vip("10.0.1.100/32"), None),
    ("an IPv6 VIP where it belongs", vip("fd00:1::100/64"), None),
    ("a VIP on a segment this gateway is not on", vip("10.0.1.100/24", "nowhere"), "no interface on segment nowhere"),
    ("a VIP outside the networks of its segment", vip("10.9.0.100/24"), "outside the networks of segment outside"),
    ("a VIP announced as a route", ClusterConfig(vips=(Vip("198.51.100.7/32", announce="route"),)), None),
    ("which names those", vip("10.9.0.100/24"), "here (10.0.1.0/24)"),
    ("a version the segment has not got", vip("fd00:2::100/64", "inside"), "(no IPv6 network)"),
    ("a service with a backend", service("dsr", BACKEND), None),
    ("a service whose only backend is drained", service("dsr", Backend("b1", "10.0.2.11", drain=True)), "no backend"),
    ("a service without a backend", service("tunnel"), "service web: no backend takes new connections"),
    ("local needs none", service("local"), None),
]


def test_a_vip_whose_address_a_gateway_has_got_since_is_warned_about() -> None:
    (text,) = advice(vip("10.0.1.100/24"), NETWORKS, FORWARDS, {"10.0.1.100": "gateway gw2", "10.0.1.2": "gateway gw2"})
    assert text.startswith("vip 10.0.1.100/24: is the own address of gateway gw2")


@pytest.mark.parametrize(("config", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_advice(config: ClusterConfig, expected: str | None) -> None:
    found = advice(config, NETWORKS, FORWARDS)
    assert (found == []) if expected is None else expected in "; ".join(found)


def test_nat_wants_forwarding() -> None:
    assert advice(service("nat", BACKEND), NETWORKS, FORWARDS) == []
    assert advice(service("nat", BACKEND), NETWORKS, {4: False, 6: True}) == [
        "this gateway does not forward IPv4 packets: set net.ipv4.ip_forward = 1"
    ]


LINKS = (Interface("eth0", "outside"),)
UPLINK = Resource("uplink", "ping", address="192.0.2.1")


@pytest.mark.parametrize(
    ("policy", "peers", "resources", "expected"),
    [
        ("continue", 1, (), None),
        ("majority", 2, (), None),
        ("majority", 1, (), "neither serves while the other is away"),
        ("critical", 1, (replace(UPLINK, critical=True),), None),
        ("critical", 1, (UPLINK,), "say critical = true"),
    ],
)
def test_a_partition_policy_that_cannot_do_its_work_is_warned_about(
    policy: PartitionPolicy, peers: int, resources: tuple[Resource, ...], expected: str | None
) -> None:
    others = {f"gw{number}": Peer(number, (f"10.0.2.{number}",)) for number in range(2, 2 + peers)}
    ring = Ring(("10.0.2.1",), peers=others, key_file="/k", partition_policy=policy)
    found = node_advice(NodeConfig("test", Node("gw1", 1), LINKS, resources=resources, ring=ring))
    assert [expected in text for text in found] == ([True] if expected else [])  # type: ignore[operator]


def test_a_gateway_without_a_ring_has_no_such_policy() -> None:
    assert node_advice(NodeConfig("test", Node("gw1", 1), LINKS)) == []
