# SPDX-License-Identifier: Apache-2.0
"""BIRD in a lab: gateways announce to routers what they find on their loopback interface; routers spread over all that
announce the same.

A session for each family, watched by BFD: a router does not see the link of a gateway go down that is behind a switch.
"""

from collections.abc import Iterator
from pathlib import Path

from netlab.topology import FAMILIES, Node, Topology

# A neighbour silent for BFD_INTERVAL_MS * BFD_MULTIPLIER is down.
BFD_INTERVAL_MS = 100
BFD_MULTIPLIER = 5
# Real-time priority, if permitted: a router that waits for a processor takes its neighbours for dead and has no routes.
PRIORITY = 10
AT_PRIORITY = 'chrt --rr --pid {priority} $$ 2>&-; exec bird "$@"'

GENERAL = """\
log stderr {{ info, warning, error, auth, fatal, bug }};
router id {router_id};
protocol device {{ scan time 10; }}
protocol bfd {{
  interface "*" {{ min rx interval {interval} ms; min tx interval {interval} ms; multiplier {multiplier}; }};
}}
"""
# What the operator's guide recommends for a gateway.
GATEWAY = """\
protocol direct vips { ipv4; ipv6; interface "lo"; }
"""
ROUTER = """\
protocol kernel { merge paths on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { merge paths on; ipv6 { import none; export where source = RTS_BGP; }; }
"""
SESSION = """\
protocol bgp {name} {{
  local {own} as {own_as};
  neighbor {peer} as {peer_as};
  bfd on;
  connect delay time 1; connect retry time 1; error wait time 1, 1; error forget time 1;
  ipv{family} {{ {policy} }};
}}
"""
POLICIES = {
    "gateway": 'import none; export where proto = "vips";',
    "router": "import all; export none;",
}


def command(directory: Path, topology: Topology, node: Node) -> list[str]:
    """Writes the configuration of a node's routing daemon; the command that runs it in the foreground."""
    own = directory / node.name
    own.mkdir(parents=True, exist_ok=True)
    path = own / "bird.conf"
    path.write_text(configuration(topology, node))
    with_priority = ["sh", "-c", AT_PRIORITY.format(priority=PRIORITY), "bird"]
    return [*with_priority, "-f", "-c", str(path), "-s", str(own / "bird.ctl")]


def configuration(topology: Topology, node: Node) -> str:
    """BIRD's configuration file."""
    first = node.interfaces[0]
    router_id = first.segment.address(first.host, 4)
    general = GENERAL.format(router_id=router_id, interval=BFD_INTERVAL_MS, multiplier=BFD_MULTIPLIER)
    sessions = [
        SESSION.format(
            name=f"{peer.name}_v{family}",
            own=node.address(segment, family),
            own_as=node.routing_as,
            peer=peer.address(segment, family),
            peer_as=peer.routing_as,
            family=family,
            policy=POLICIES[node.role],
        )
        for peer, segment in _neighbours(topology, node)
        for family in FAMILIES
    ]
    return "".join([general, GATEWAY if node.role == "gateway" else ROUTER, *sessions])


def _neighbours(topology: Topology, node: Node) -> Iterator[tuple[Node, str]]:
    """Routing daemons of another autonomous system on the same segment."""
    for interface in node.interfaces:
        for peer in topology.nodes:
            on_it = any(other.segment == interface.segment for other in peer.interfaces)
            if on_it and peer.routing_as not in (0, node.routing_as):
                yield peer, interface.segment.name


def next_hops(routes: list[dict[str, object]]) -> set[str]:
    """The gateways a router sends an address's packets to, from `ip -json route show ADDRESS`."""
    found: set[str] = set()
    for route in routes:
        hops = route.get("nexthops") or [route]
        assert isinstance(hops, list)
        found |= {str(hop["gateway"]) for hop in hops if "gateway" in hop}
    return found
