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
# Of a VIP whose backends answer the clients directly, beside one whose backends answer through the gateways.
DIRECT_VIP_HOST = 101
HTTP_PORT = 80
LOCAL_HTTP_PORT = 8080
TRANSLATED_HTTP_PORT = 8082
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
    """One host. `loopback` addresses are owned but not answered for (ARP and ND), as a direct-return backend does.

    `routing_as`: it runs a routing daemon that speaks BGP for that autonomous system; 0: it runs none.
    """

    name: str
    role: Role
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...] = ()
    loopback: tuple[str, ...] = ()
    decapsulates: bool = False
    number: int = 0
    routing_as: int = 0

    def address(self, segment: str, family: Family) -> str:
        for interface in self.interfaces:
            if interface.segment.name == segment:
                return interface.segment.address(interface.host, family)
        raise KeyError(f"{self.name} has no interface on segment {segment}")


@dataclass(frozen=True)
class Vip:
    """An address on a segment; without one it is announced as a route."""

    cidr: str
    segment: str = ""
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
    """A complete network; `ring_segments` are the ones the gateways' ring runs over, in order of preference.

    `ring_family`: over IPv4 or IPv6.
    """

    name: str
    summary: str
    segments: tuple[Segment, ...]
    nodes: tuple[Node, ...]
    vips: tuple[Vip, ...]
    services: tuple[Service, ...]
    ring_segments: tuple[str, ...] = ()
    ring_family: Family = 4

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
        """The VIP on a segment; the clients' may be one that is announced as a route."""
        routed = (vip.address for vip in self.vips if not vip.segment and (":" in vip.address) == (family == 6))
        on_segment = self.segment(segment).address(VIP_HOST, family)
        return next(routed, on_segment) if segment == "outside" else on_segment

    def ports(self, node: Node) -> Iterator[tuple[Interface, str, str]]:
        """(interface, switch, port name) of each cable of a node."""
        for interface in node.interfaces:
            yield interface, interface.at_switch, interface.port(node.name)
