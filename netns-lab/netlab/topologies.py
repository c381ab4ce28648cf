# SPDX-License-Identifier: Apache-2.0
"""The named topologies, and the blocks they are built from."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from netlab.topology import (
    CROSS_FAMILY_HTTP_PORT,
    DIRECT_VIP_HOST,
    ECHO_PORT,
    FAMILIES,
    HTTP_PORT,
    LOCAL_HTTP_PORT,
    MTU_DEFAULT,
    MTU_TUNNEL,
    PUSH_PORT,
    TRANSLATED_HTTP_PORT,
    VIP_HOST,
    Family,
    Interface,
    Node,
    Route,
    Segment,
    Service,
    Target,
    Topology,
    Vip,
)

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


def _two_gateways() -> Topology:
    """Beside the backends whose answers go through the gateways, two with a leg outside, which answer directly."""
    base = _plain_cluster("two-gateways", 2)
    outside, inside = base.segment("outside"), base.segment("inside")
    vips = tuple(Vip(outside.cidr(DIRECT_VIP_HOST, family), outside.name) for family in FAMILIES)
    loopback = tuple(f"{vip.address}/{128 if ':' in vip.address else 32}" for vip in vips)
    direct = tuple(
        Node(
            f"b{number}",
            "backend",
            (Interface("eth0", inside, 20 + number), Interface("eth1", outside, 20 + number)),
            loopback=loopback,
            decapsulates=True,
            number=number,
        )
        for number in (4, 5)
    )
    return replace(
        base,
        summary="the commonest cluster, its ring over IPv6; two of five backends answer the clients directly",
        nodes=(*base.nodes, *direct),
        vips=(*base.vips, *vips),
        services=(*base.services, *_direct_services(direct, inside, outside)),
        ring_family=6,
    )


def _direct_services(backends: tuple[Node, ...], segment: Segment, vip_segment: Segment) -> Iterator[Service]:
    """HTTP forwarded by MAC address and by tunnel, on the VIP of each family that is answered for directly."""
    kinds: tuple[tuple[Literal["dsr", "tunnel"], int], ...] = (
        ("dsr", HTTP_PORT),
        ("tunnel", CROSS_FAMILY_HTTP_PORT),
    )
    for family in FAMILIES:
        vip = vip_segment.address(DIRECT_VIP_HOST, family)
        for forward, port in kinds:
            targets = tuple(Target(b.name, b.address(segment.name, family), port) for b in backends)
            yield Service(f"{forward}{family}", vip, port, "tcp", forward, targets)


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


# Addresses that no segment has (RFC 5737, RFC 3849).
ROUTED_VIPS: dict[Family, str] = {4: "198.51.100.7", 6: "2001:db8:100::7"}
ROUTER_AS, GATEWAY_AS = 64500, 64501


def _routed_vip_services(backends: tuple[Node, ...], segment: Segment) -> Iterator[Service]:
    """Every way to forward, each on the VIPs announced as routes."""
    kinds: tuple[tuple[str, int, Literal["tcp", "udp"], Literal["dsr", "tunnel", "nat"], int], ...] = (
        ("http", HTTP_PORT, "tcp", "dsr", HTTP_PORT),
        ("echo", ECHO_PORT, "udp", "dsr", ECHO_PORT),
        ("tunnel", CROSS_FAMILY_HTTP_PORT, "tcp", "tunnel", CROSS_FAMILY_HTTP_PORT),
        ("nat", TRANSLATED_HTTP_PORT, "tcp", "nat", HTTP_PORT),
    )
    for family, vip in ROUTED_VIPS.items():
        for name, port, protocol, forward, backend_port in kinds:
            targets = tuple(Target(b.name, b.address(segment.name, family), backend_port) for b in backends)
            yield Service(f"{name}{family}", vip, port, protocol, forward, targets)
        yield Service(f"local{family}", vip, LOCAL_HTTP_PORT, "tcp", "local")


def _routed_ecmp() -> Topology:
    """The router shares no segment with two gateways, and none with the backends."""
    router_host = 254
    outside, inside = Segment("outside", 1), Segment("inside", 5, MTU_TUNNEL)
    uplinks = tuple(Segment(f"up{number}", number + 1) for number in (1, 2, 3))
    client = Node("client", "client", (Interface("eth0", outside, 10),), _default_routes(outside, router_host))
    ports = tuple(Interface(f"eth{n}", segment, router_host) for n, segment in enumerate((outside, *uplinks)))
    gateways = tuple(
        Node(
            f"gw{number}",
            "gateway",
            (Interface("eth0", uplink, number), Interface("eth1", inside, number)),
            _default_routes(uplink, router_host),
            number=number,
            routing_as=GATEWAY_AS,
        )
        for number, uplink in enumerate(uplinks, 1)
    )
    loopback = tuple(f"{vip}/{32 if family == 4 else 128}" for family, vip in ROUTED_VIPS.items())
    backends = _backends(inside, 3, _default_routes(inside, VIP_HOST, MTU_DEFAULT), loopback, decapsulates=True)
    return Topology(
        "routed-ecmp",
        "three gateways on three segments, each announces the VIPs to a router by BGP, which spreads over all",
        (outside, *uplinks, inside),
        (client, Node("r1", "router", ports, routing_as=ROUTER_AS), *gateways, *backends),
        (*(Vip(cidr) for cidr in loopback), *_vips(inside)),
        tuple(_routed_vip_services(backends, inside)),
        ("inside",),
    )


TOPOLOGIES: dict[str, Topology] = {
    t.name: t
    for t in (
        _one_gateway(),
        _routed(),
        _tunnel(),
        _two_gateways(),
        _plain_cluster("three-gateways", 3),
        _four_gateways_dual_link(),
        _redundant_switches(),
        _two_sites(),
        _routed_ecmp(),
    )
}
