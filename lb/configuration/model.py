# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009  (described() returns a dataclass field)
"""What the cluster serves: VIPs, services, backends and policies, as plain immutable values.

This file is the one definition of the declarative cluster file. `lb.configuration.schema` validates files against these
classes (in a short-lived child: the daemon never loads the validator), `docs/configuration.md` is generated from them,
and every part of the daemon, the API and the cluster passes them around. A value of these types has been validated;
code that receives one need not check it again.
"""

import ipaddress
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len

from lb.configuration.fields import Address, Identity, InterfaceAddress, IpAddress, Name, Port, Strict, described

SERVICE_COUNT_MAX = 4095
BACKEND_COUNT_MAX = 16383
BACKENDS_PER_SERVICE_MAX = 4096
VIP_COUNT_MAX = 4096
ANY_PORT = 0
WEIGHT_MAX = 65535

Forward = Literal["dsr", "tunnel", "nat", "local"]
Scheduler = Literal["maglev", "rr", "wlc", "source"]
Protocol = Literal["tcp", "udp"]
Replicate = Literal["established", "all", "none"]
DeathPolicy = Literal["reset", "rechoose"]
HealthKind = Literal["tcp", "http", "https", "udp", "dns", "icmp", "script"]
Reach = Literal["vip", "address"]
RebalanceMode = Literal["off", "count", "load"]
Announce = Literal["arp", "route"]


@dataclass(frozen=True, slots=True)
class Vip(Strict):
    """`[[vip]]`: an address that belongs to the cluster: on a segment one gateway holds it, as a route all of them."""

    address: InterfaceAddress = described(
        "The address and its prefix length on the segment, such as `10.0.1.100/24`; as a route `/32` or `/128`."
    )
    segment: Name = described(
        "The segment (see `[[interface]]` in the node file) it lives on: required, unless announced as a route.",
        default="",
    )
    announce: Announce = described(
        "`arp`: one gateway at a time holds it and answers ARP (IPv6: neighbour discovery) for it; `route`: every "
        "gateway in service holds it, for a routing daemon (BIRD, FRR) to announce.",
        default="arp",
    )
    prefer: tuple[Name, ...] = described("Gateways that should hold it, best first, when they can.", default=())
    pin: str = described(
        "Held by this gateway whenever it can, by another one when it cannot; empty: anywhere.", default=""
    )
    sticky: bool = described("Stays where it is as long as that gateway lives, whatever the load.", default=False)

    @property
    def ip(self) -> IpAddress:
        return ipaddress.ip_interface(self.address).ip

    @property
    def is_routed(self) -> bool:
        """Whether it is announced as a route, by every gateway in service."""
        return self.announce == "route"

    @property
    def host(self) -> str:
        """The address without prefix length: how services, commands and the API name this VIP."""
        return str(self.ip)


@dataclass(frozen=True, slots=True)
class HealthCheck(Strict):
    """`[service.health]`: how the gateways find out whether a backend serves."""

    kind: HealthKind = described("What is tried.")
    interval_ms: Annotated[int, Ge(50), Le(3_600_000)] = described("Time between two tries.", default=2000)
    timeout_ms: Annotated[int, Ge(10), Le(600_000)] = described(
        "A try without answer after this time has failed.", default=1000
    )
    rise: Annotated[int, Ge(1), Le(100)] = described("Successes in a row that make a dead backend alive.", default=2)
    fall: Annotated[int, Ge(1), Le(100)] = described("Failures in a row that make a live backend dead.", default=3)
    port: Port = described("The port tried; 0: the backend's own.", default=0)
    path: str = described("`http`, `https`: the path requested.", default="/")
    host: str = described("`http`, `https`: the Host header; empty: the service's address.", default="")
    tls_name: str = described("`https`: the name expected in the certificate; empty: not verified.", default="")
    status: tuple[Annotated[int, Ge(100), Le(599)], ...] = described(
        "`http`, `https`: status codes that mean alive; empty: 200 to 399.", default=()
    )
    body: str = described("`http`, `https`, `udp`: text the answer must contain.", default="")
    send: str = described("`udp`: text sent; `dns`: the name asked for.", default="")
    command: tuple[str, ...] = described(
        "`script`: program and arguments; exit code 0 means alive. Address and port are appended.", default=()
    )
    reach: Reach = described(
        "`dsr`, `tunnel`: `vip`: the check reaches the VIP on the backend, as clients' packets do; `address`: the "
        "backend's own address. Always the latter for `nat`, for `script`, and where a tunnel changes the IP version.",
        default="vip",
    )
    signs_per_s_max: Annotated[int, Ge(0), Le(1_000_000)] = described(
        "More refused connections (`nat`) or ICMP errors (`nat`, `tunnel`) of clients' traffic than this in a second "
        "count as a failed try, and the next one comes at once; 0: not watched.",
        default=10,
    )
    slow_start_s: Annotated[int, Ge(0), Le(3600)] = described(
        "A backend that comes back reaches its full weight over this time.", default=0
    )


@dataclass(frozen=True, slots=True)
class Backend(Strict):
    """`[[service.backend]]`: a server behind a service."""

    name: Name = described("Its name, unique within the service.")
    address: Address = described(
        "Its address (for `dsr`: on a segment of the gateways; for `tunnel`: where the tunnel ends)."
    )
    port: Port = described("Its port; 0: the service's. Only `nat` can translate ports.", default=0)
    weight: Annotated[int, Ge(0), Le(WEIGHT_MAX)] = described(
        "Its share of new connections relative to the others; 0: no new ones, existing ones stay.", default=1
    )
    connections_max: Annotated[int, Ge(0), Le(0xFFFF_FFFF)] = described(
        "Above this many connections new ones go to the next choice; 0: no limit.", default=0
    )
    drain: bool = described("No new connections; existing ones stay.", default=False)
    id: Identity = described(
        "Its identity cluster-wide, assigned when the configuration is applied.", default=0, internal=True
    )

    @property
    def ip(self) -> IpAddress:
        return ipaddress.ip_address(self.address)


@dataclass(frozen=True, slots=True)
class Service(Strict):
    """`[[service]]`: what clients connect to, and how it is spread over backends."""

    name: Name = described("Its name, unique in the cluster.")
    address: Address = described("The VIP clients connect to.")
    protocol: Protocol = described("`tcp` or `udp`.")
    forward: Forward = described(
        "`dsr`: the backend owns the VIP and answers the client directly; `tunnel`: the same behind routers, through "
        "IP-in-IP; "
        "`nat`: addresses are translated both ways; `local`: the gateways themselves serve it."
    )
    port: Port = described(
        'The port clients connect to; `"any"` for all that no other service takes.', default=ANY_PORT
    )
    scheduler: Scheduler = described(
        "`maglev`: consistent hash of the connection; `rr`: round robin; `wlc`: weighted least connections; "
        "`source`: consistent hash of the client's address.",
        default="maglev",
    )
    persistence_s: Annotated[int, Ge(0), Le(86_400)] = described(
        "A client keeps its backend for this time after its last new connection; 0: off.", default=0
    )
    replicate: Replicate = described(
        "Which connections the other gateways learn: `established` (TCP after the handshake, UDP from the second "
        "packet), "
        "`all` or `none`.",
        default="established",
    )
    on_backend_death: DeathPolicy = described(
        "TCP connections of a dead backend: `reset` tells the client at once, `rechoose` sends them to another "
        "backend. "
        "UDP is always re-chosen.",
        default="reset",
    )
    health: HealthCheck | None = described("How backends are checked; absent: they are taken as alive.", default=None)
    backends: Annotated[tuple[Backend, ...], Len(0, BACKENDS_PER_SERVICE_MAX)] = described(
        "Its backends.", default=(), key="backend"
    )
    id: Identity = described(
        "Its identity cluster-wide, assigned when the configuration is applied.", default=0, internal=True
    )

    @property
    def ip(self) -> IpAddress:
        return ipaddress.ip_address(self.address)

    def backend(self, name: str) -> Backend | None:
        return next((backend for backend in self.backends if backend.name == name), None)

    def port_of(self, backend: Backend) -> int:
        """The port `backend` is reached at; ANY_PORT where the service takes any."""
        return backend.port or self.port


@dataclass(frozen=True, slots=True)
class Routed(Strict):
    """`[routed]`: traffic that passes through the gateways takes the same one in both directions.

    The table's presence turns it on. Connections are spread over the gateways by both endpoints' addresses and ports.
    """

    replicate: Replicate = described("Which connections the other gateways learn.", default="established")
    id: Identity = described("Its identity cluster-wide.", default=0, internal=True)


@dataclass(frozen=True, slots=True)
class Policy(Strict):
    """`[policy]`: when VIPs move without anybody having failed."""

    rebalance: RebalanceMode = described(
        "Move VIPs to even out their number per gateway, or the load, or not at all.", default="off"
    )
    failback: bool = described("A preferred gateway that returns takes its VIPs back.", default=False)
    hysteresis_percent: Annotated[int, Ge(0), Le(1000)] = described(
        "Move for load only when the gateways differ by more than this.", default=25
    )
    hold_after_move_s: Annotated[int, Ge(0), Le(86_400)] = described(
        "A VIP that has moved stays at least this long unless its gateway fails.", default=60
    )
    withdrawal_ms: Annotated[int, Ge(0), Le(10_000)] = described(
        "A gateway that is taken out goes on serving this long after it has withdrawn its routes, until no router "
        "sends it packets any more.",
        default=2000,
    )


Seconds = Annotated[int, Ge(1), Le(864_000)]


@dataclass(frozen=True, slots=True)
class Timeouts(Strict):
    """`[timeouts]`: how long a silent connection is remembered, by state. Defaults: Linux conntrack's."""

    tcp_half_open_s: Seconds = described("The handshake is not complete.", default=60)
    tcp_established_s: Seconds = described("Established.", default=432_000)
    tcp_closing_s: Seconds = described("A FIN was seen.", default=120)
    tcp_closed_s: Seconds = described("Both FINs or a RST were seen.", default=10)
    udp_new_s: Seconds = described("One packet seen.", default=30)
    udp_stream_s: Seconds = described("More than one packet seen.", default=120)


@dataclass(frozen=True, slots=True)
class ClusterConfig(Strict):
    """Everything cluster-wide that an operator decides. The same value, by version, on every gateway."""

    vips: Annotated[tuple[Vip, ...], Len(0, VIP_COUNT_MAX)] = described(
        "Addresses of the cluster.", default=(), key="vip"
    )
    services: Annotated[tuple[Service, ...], Len(0, SERVICE_COUNT_MAX)] = described(
        "Services behind them.", default=(), key="service"
    )
    routed: Routed | None = described("Traffic routed through the gateways; absent: left to the kernel.", default=None)
    policy: Policy = described("When VIPs move.", factory=Policy)
    timeouts: Timeouts = described("How long silent connections are remembered.", factory=Timeouts)
    hash_seed: str = described("Keeps clients from choosing their backend; assigned once.", default="", internal=True)
    version: Annotated[int, Ge(0)] = described("Counts applied configurations; 0: none yet.", default=0, internal=True)
    next_service_id: Annotated[int, Ge(1)] = described(
        "Where the search for a free service id starts.", default=1, internal=True
    )
    next_backend_id: Annotated[int, Ge(1)] = described(
        "Where the search for a free backend id starts.", default=1, internal=True
    )

    def service(self, name: str) -> Service | None:
        return next((service for service in self.services if service.name == name), None)

    @property
    def routed_vips(self) -> tuple[Vip, ...]:
        """The VIPs announced as routes."""
        return tuple(vip for vip in self.vips if vip.is_routed)

    def vip(self, host: str) -> Vip | None:
        """The VIP with the address `host` (without prefix length)."""
        return next((vip for vip in self.vips if vip.host == host), None)


EMPTY = ClusterConfig()
