# SPDX-License-Identifier: Apache-2.0
"""What a lab network looks like: nodes, segments, addresses and the services offered. Pure data, no I/O.

Every segment has one IPv4 and one IPv6 network: segment number N is 10.0.N.0/24 and fd00:N::/64, and a node has the
same last part in both. The hosts of a segment hang on a bridge in a switch namespace, so that a link is cut at the
switch, where the node sees its carrier go, as with real cabling.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["client", "gateway", "backend", "router"]
Family = Literal[4, 6]
FAMILIES: tuple[Family, Family] = (4, 6)

VIP_HOST = 100
HTTP_PORT = 80
LOCAL_HTTP_PORT = 8080
CROSS_FAMILY_HTTP_PORT = 8081
ECHO_PORT = 9000
PUSH_PORT = 9001
RING_PORT = 7400
MTU_DEFAULT = 1500
# Room for an outer IPv6 header in front of a full-sized inner packet.
MTU_TUNNEL = 1600


@dataclass(frozen=True)
class Segment:
    """One broadcast domain. `switches` carry it, joined by trunks in the given order."""

    name: str
    number: int
    mtu: int = MTU_DEFAULT
    switches: tuple[str, ...] = ("sw",)

    def network(self, family: Family) -> str:
        return f"10.0.{self.number}.0/24" if family == 4 else f"fd00:{self.number}::/64"

    def address(self, host: int, family: Family) -> str:
        return f"10.0.{self.number}.{host}" if family == 4 else f"fd00:{self.number}::{host}"

    def cidr(self, host: int, family: Family) -> str:
        return f"{self.address(host, family)}/{self.prefix_length(family)}"

    @staticmethod
    def prefix_length(family: Family) -> int:
        return 24 if family == 4 else 64


@dataclass(frozen=True)
class Interface:
    """One network card: `host` is its address's last part on the segment, `mtu` overrides the segment's."""

    name: str
    segment: Segment
    host: int
    mtu: int | None = None
    switch: str | None = None

    def port(self, node: str) -> str:
        """Name of the switch's end of the cable."""
        return f"{node}-{self.name}"

    @property
    def at_switch(self) -> str:
        return self.switch or self.segment.switches[0]

    @property
    def effective_mtu(self) -> int:
        return self.mtu or self.segment.mtu


@dataclass(frozen=True)
class Route:
    """`destination` is a network or "default"; `mtu` limits what the route carries (None: the interface's)."""

    destination: str
    via: str
    mtu: int | None = None


@dataclass(frozen=True)
class Node:
    """One host. `loopback` addresses are owned but not answered for (ARP and ND), as a direct-return backend does."""

    name: str
    role: Role
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...] = ()
    loopback: tuple[str, ...] = ()
    decapsulates: bool = False
    number: int = 0

    def address(self, segment: str, family: Family) -> str:
        for interface in self.interfaces:
            if interface.segment.name == segment:
                return interface.segment.address(interface.host, family)
        raise KeyError(f"{self.name} has no interface on segment {segment}")


@dataclass(frozen=True)
class Vip:
    cidr: str
    segment: str
    prefer: str | None = None

    @property
    def address(self) -> str:
        return self.cidr.split("/")[0]


@dataclass(frozen=True)
class Target:
    """One backend of a service."""

    name: str
    address: str
    port: int
    weight: int = 1


@dataclass(frozen=True)
class Service:
    name: str
    address: str
    port: int
    protocol: Literal["tcp", "udp"]
    forward: Literal["dsr", "tunnel", "nat", "local"]
    targets: tuple[Target, ...] = ()
    options: dict[str, str | int | bool] = field(default_factory=dict)
    health: dict[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """A complete network; `ring_segments` are the ones the gateways' ring runs over, in order of preference."""

    name: str
    summary: str
    segments: tuple[Segment, ...]
    nodes: tuple[Node, ...]
    vips: tuple[Vip, ...]
    services: tuple[Service, ...]
    ring_segments: tuple[str, ...] = ()

    @property
    def switches(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for segment in self.segments for name in segment.switches))

    def of_role(self, role: Role) -> list[Node]:
        return [node for node in self.nodes if node.role == role]

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node {name} in topology {self.name}; it has {', '.join(n.name for n in self.nodes)}")

    def segment(self, name: str) -> Segment:
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise KeyError(f"no segment {name} in topology {self.name}; it has {', '.join(s.name for s in self.segments)}")

    def vip(self, family: Family, segment: str = "outside") -> str:
        return self.segment(segment).address(VIP_HOST, family)

    def ports(self, node: Node) -> Iterator[tuple[Interface, str, str]]:
        """(interface, switch, port name) of each cable of a node."""
        for interface in node.interfaces:
            yield interface, interface.at_switch, interface.port(node.name)


# ---------------------------------------------------------------------------------------------------------------------
# building blocks of the named topologies


def _default_routes(segment: Segment, host: int, mtu: int | None = None) -> tuple[Route, ...]:
    return tuple(Route("default", segment.address(host, family), mtu) for family in FAMILIES)


def _routes(to: Segment, via: Segment, host: int, mtu: int | None = None) -> tuple[Route, ...]:
    return tuple(Route(to.network(family), via.address(host, family), mtu) for family in FAMILIES)


def _vips(*segments: Segment) -> tuple[Vip, ...]:
    return tuple(Vip(s.cidr(VIP_HOST, family), s.name) for s in segments for family in FAMILIES)


def _vip_loopback(segment: Segment) -> tuple[str, ...]:
    return (f"{segment.address(VIP_HOST, 4)}/32", f"{segment.address(VIP_HOST, 6)}/128")


def _services(
    vip_segment: Segment, backends: tuple[Node, ...], segment: Segment, forward: Literal["dsr", "tunnel", "nat"]
) -> Iterator[Service]:
    """HTTP, UDP echo and a server-push stream, each on the VIP of each family."""
    kinds: tuple[tuple[str, int, Literal["tcp", "udp"]], ...] = (
        ("http", HTTP_PORT, "tcp"),
        ("echo", ECHO_PORT, "udp"),
        ("push", PUSH_PORT, "tcp"),
    )
    for family in FAMILIES:
        for name, port, protocol in kinds:
            targets = tuple(Target(b.name, b.address(segment.name, family), port) for b in backends)
            vip = vip_segment.address(VIP_HOST, family)
            yield Service(f"{name}{family}", vip, port, protocol, forward, targets)


def _cross_family_services(vip_segment: Segment, backends: tuple[Node, ...], segment: Segment) -> Iterator[Service]:
    """HTTP whose tunnel has the other family than its clients: 4in6 and 6in4."""
    port = CROSS_FAMILY_HTTP_PORT
    pairs: tuple[tuple[Family, Family], ...] = ((4, 6), (6, 4))
    for family, outer in pairs:
        targets = tuple(Target(b.name, b.address(segment.name, outer), port) for b in backends)
        vip = vip_segment.address(VIP_HOST, family)
        yield Service(f"http{family}in{outer}", vip, port, "tcp", "tunnel", targets)


def _local_services(vip_segment: Segment) -> Iterator[Service]:
    for family in FAMILIES:
        vip = vip_segment.address(VIP_HOST, family)
        yield Service(f"local{family}", vip, LOCAL_HTTP_PORT, "tcp", "local")


def _backends(
    segment: Segment, count: int, routes: tuple[Route, ...], loopback: tuple[str, ...] = (), decapsulates: bool = False
) -> tuple[Node, ...]:
    return tuple(
        Node(f"b{i}", "backend", (Interface("eth0", segment, 20 + i),), routes, loopback, decapsulates, i)
        for i in range(1, count + 1)
    )


# ---------------------------------------------------------------------------------------------------------------------
# the named topologies


def _one_gateway() -> Topology:
    lan = Segment("outside", 1)
    client = Node("client", "client", (Interface("eth0", lan, 10),))
    gateway = Node("gw1", "gateway", (Interface("eth0", lan, 1),), number=1)
    backends = _backends(lan, 3, (), _vip_loopback(lan))
    return Topology(
        "one-gateway",
        "client, gateway and three direct-return backends on one segment",
        (lan,),
        (client, gateway, *backends),
        _vips(lan),
        (*_services(lan, backends, lan, "dsr"), *_local_services(lan)),
    )


def _routed() -> Topology:
    outside, inside = Segment("outside", 1), Segment("inside", 2)
    client = Node("client", "client", (Interface("eth0", outside, 10),), _routes(inside, outside, 1))
    gateway = Node("gw1", "gateway", (Interface("eth0", outside, 1), Interface("eth1", inside, 1)), number=1)
    backends = _backends(inside, 3, _default_routes(inside, 1))
    return Topology(
        "routed",
        "client and backends on different segments, the gateway between them translates",
        (outside, inside),
        (client, gateway, *backends),
        _vips(outside),
        (*_services(outside, backends, inside, "nat"), *_local_services(outside)),
    )


def _tunnel() -> Topology:
    outside, inside = Segment("outside", 1, MTU_TUNNEL), Segment("inside", 2, MTU_TUNNEL)
    router_host = 254
    client = Node(
        "client", "client", (Interface("eth0", outside, 10, MTU_DEFAULT),), _routes(inside, outside, router_host)
    )
    gateway = Node("gw1", "gateway", (Interface("eth0", outside, 1),), _routes(inside, outside, router_host), number=1)
    router = Node("r1", "router", (Interface("eth0", outside, router_host), Interface("eth1", inside, router_host)))
    backends = _backends(
        inside, 3, _default_routes(inside, router_host, MTU_DEFAULT), _vip_loopback(outside), decapsulates=True
    )
    return Topology(
        "tunnel",
        "backends behind a router; the gateway encapsulates, backends answer the client directly",
        (outside, inside),
        (client, gateway, router, *backends),
        _vips(outside),
        (*_services(outside, backends, inside, "tunnel"), *_cross_family_services(outside, backends, inside)),
    )


def _gateways(count: int, *segments: Segment, switches: tuple[str, ...] = ()) -> tuple[Node, ...]:
    return tuple(
        Node(
            f"gw{i}",
            "gateway",
            tuple(
                Interface(f"eth{n}", s, i, switch=switches[i - 1] if switches and len(s.switches) > 1 else None)
                for n, s in enumerate(segments)
            ),
            number=i,
        )
        for i in range(1, count + 1)
    )


def _cluster(
    name: str, summary: str, gateways: tuple[Node, ...], segments: tuple[Segment, ...], ring: tuple[str, ...]
) -> Topology:
    """Clients outside, backends inside, a VIP on each side: the inside one is the backends' default gateway."""
    outside, inside = segments[0], segments[1]
    client = Node("client", "client", (Interface("eth0", outside, 10),), _routes(inside, outside, VIP_HOST))
    backends = _backends(inside, 3, _default_routes(inside, VIP_HOST))
    services = (*_services(outside, backends, inside, "nat"), *_local_services(outside))
    return Topology(name, summary, segments, (client, *gateways, *backends), _vips(outside, inside), services, ring)


def _plain_cluster(name: str, count: int) -> Topology:
    outside, inside = Segment("outside", 1), Segment("inside", 2)
    return _cluster(
        name,
        f"{count} gateways between a client segment and a server segment, VIPs on both sides",
        _gateways(count, outside, inside),
        (outside, inside),
        ("inside", "outside"),
    )


def _four_gateways_dual_link() -> Topology:
    outside, inside = Segment("outside", 1), Segment("inside", 2)
    ring1, ring2 = Segment("ring1", 3), Segment("ring2", 4)
    return _cluster(
        "four-gateways-dual-link",
        "four gateways with two ring links of their own beside the two data segments",
        _gateways(4, outside, inside, ring1, ring2),
        (outside, inside, ring1, ring2),
        ("ring1", "ring2"),
    )


def _redundant_switches() -> Topology:
    both = ("sw1", "sw2")
    outside, inside = Segment("outside", 1, switches=both), Segment("inside", 2, switches=both)
    ring1, ring2 = Segment("ring1", 3, switches=("sw1",)), Segment("ring2", 4, switches=("sw2",))
    return _cluster(
        "redundant-switches",
        "four gateways, two per switch, data segments trunked over both switches, one ring link on each switch",
        _gateways(4, outside, inside, ring1, ring2, switches=("sw1", "sw2", "sw1", "sw2")),
        (outside, inside, ring1, ring2),
        ("ring1", "ring2"),
    )


def _two_sites() -> Topology:
    """No two gateways share a segment: what they hand each other goes by tunnel, through a router."""
    outside, inside = Segment("outside", 1, MTU_TUNNEL), Segment("inside", 2, MTU_TUNNEL)
    west, east = Segment("west", 3, MTU_TUNNEL), Segment("east", 4, MTU_TUNNEL)
    all_segments, router_host = (outside, inside, west, east), 254
    client = Node(
        "client", "client", (Interface("eth0", outside, 10, MTU_DEFAULT),), _routes(inside, outside, VIP_HOST)
    )
    left = (Interface("eth0", outside, 1), Interface("eth1", west, 1))
    right = (Interface("eth0", inside, 2), Interface("eth1", east, 2))
    ways = {
        "gw1": (*_routes(inside, west, router_host), *_routes(east, west, router_host)),
        "gw2": (*_routes(outside, east, router_host), *_routes(west, east, router_host)),
    }
    gateways = (
        Node("gw1", "gateway", left, ways["gw1"], number=1),
        Node("gw2", "gateway", right, ways["gw2"], number=2),
    )
    ports = tuple(Interface(f"eth{n}", segment, router_host) for n, segment in enumerate(all_segments))
    backends = _backends(inside, 3, _default_routes(inside, VIP_HOST, MTU_DEFAULT))
    return Topology(
        "two-sites",
        "a gateway beside the clients, another one beside the backends, a router between the two",
        all_segments,
        (client, *gateways, Node("r1", "router", ports), *backends),
        _vips(outside, inside),
        (*_services(outside, backends, inside, "nat"), *_local_services(outside)),
        ("west", "east"),
    )


TOPOLOGIES: dict[str, Topology] = {
    t.name: t
    for t in (
        _one_gateway(),
        _routed(),
        _tunnel(),
        _plain_cluster("two-gateways", 2),
        _plain_cluster("three-gateways", 3),
        _four_gateways_dual_link(),
        _redundant_switches(),
        _two_sites(),
    )
}
