# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF009  (described() returns a dataclass field)
"""What is local to one gateway: its name, its interfaces, its place in the ring. One TOML file per node.

Like `lb.configuration.model` this is the one definition of its file: `lb.configuration.schema` validates against it and
the documentation is generated from it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len, Predicate

from lb.configuration.fields import Name, Network, Strict, described

XdpMode = Literal["auto", "native", "generic"]
RingMode = Literal["consistent", "fast"]
PartitionPolicy = Literal["continue", "majority", "critical"]
ResourceKind = Literal["link", "ping", "arp", "process", "unit", "tcp", "script"]

SCHEDULING_TEXT = "auto, rr:1 to rr:99, nice:-20 to nice:19, or other"
RING_PORT = 7400
PIN_DIRECTORY = "bpf"


@dataclass(frozen=True, slots=True)
class Node(Strict):
    """`[node]`: who this gateway is."""

    name: Name = described("Its name, unique in the cluster.")
    id: Annotated[int, Ge(1), Le(255)] = described("Its number, unique in the cluster.")
    run_dir: str = described("Sockets and the BPF file system.", default="/run/lb")
    state_dir: str = described("What survives a restart of the machine.", default="/var/lib/lb")


@dataclass(frozen=True, slots=True)
class Interface(Strict):
    """`[[interface]]`: a network interface whose packets are balanced."""

    name: Annotated[str, Len(1, 15)] = described("Its name, as `ip link` shows it.")
    segment: Name = described("The name of the layer-2 segment it is on, the same on every gateway.")
    xdp: XdpMode = described(
        "How the program is attached: `native` in the driver, `generic` in the receive path, "
        "`auto` native where it works.",
        default="auto",
    )


def is_scheduling(text: str) -> bool:
    policy, _, number = text.partition(":")
    if policy == "rr":
        return number.isdigit() and 1 <= int(number) <= 99
    return text in ("auto", "other") or (
        policy == "nice" and number.removeprefix("-").isdigit() and -20 <= int(number) <= 19
    )


@dataclass(frozen=True, slots=True)
class Peer(Strict):
    """`[ring.peers]`: another gateway of the cluster."""

    id: Annotated[int, Ge(1), Le(255)] = described("Its number.")
    addresses: Annotated[tuple[str, ...], Len(1, 8)] = described("Its ring addresses, `host` or `host:port`.")


@dataclass(frozen=True, slots=True)
class Ring(Strict):
    """`[ring]`: the ring that the gateways form. Without it the gateway stands alone."""

    listen: Annotated[tuple[str, ...], Len(1, 8)] = described("Its addresses in the ring, one per link.")
    key_file: str = described("The cluster's key (`lbctl key new`).")
    failure_detection_ms: Annotated[int, Ge(5), Le(60_000)] = described(
        "A gateway that does not answer for this long is taken as dead.", default=40
    )
    mode: RingMode = described(
        "`consistent`: all gateways see the same history of views; `fast`: one phase less.", default="consistent"
    )
    partition_policy: PartitionPolicy = described(
        "After a partition `continue` in every part, in the `majority` only, or where the `critical` resources are.",
        default="continue",
    )
    encrypt: bool = described("Encrypt what is sent; it is always authenticated.", default=False)
    scheduling: Annotated[str, Predicate(is_scheduling)] = described(
        "How the kernel schedules the ring's thread: `rr:1` to `rr:99` (real-time with that priority), `nice:-20` to "
        "`nice:19`, `other` as everything else, `auto` the best that is permitted.",
        default="auto",
    )
    peers: dict[str, Peer] = described("The other gateways, by name.", factory=dict)


@dataclass(frozen=True, slots=True)
class Resource(Strict):
    """`[[resource]]`: something this gateway needs in order to serve."""

    name: Name = described("Its name, unique on this node.")
    kind: ResourceKind = described("What is tried.")
    required: bool = described(
        "Its failure takes the gateway out of service, instead of being only reported.", default=True
    )
    critical: bool = described('It decides which part goes on under `partition_policy = "critical"`.', default=False)
    interface: str = described("`link`, `arp`: the interface.", default="")
    address: str = described("`ping`, `arp`, `tcp`: the address.", default="")
    port: Annotated[int, Ge(0), Le(65535)] = described("`tcp`: the port.", default=0)
    process: str = described("`process`: the name of the program; `unit`: the systemd unit.", default="")
    command: tuple[str, ...] = described("`script`: program and arguments; exit code 0 means good.", default=())
    interval_ms: Annotated[int, Ge(50), Le(3_600_000)] = described("Time between two tries.", default=1000)
    timeout_ms: Annotated[int, Ge(10), Le(600_000)] = described("A try is given up after this time.", default=500)
    rise: Annotated[int, Ge(1), Le(100)] = described("Successes in a row that make it good again.", default=2)
    fall: Annotated[int, Ge(1), Le(100)] = described("Failures in a row that make it bad.", default=3)


@dataclass(frozen=True, slots=True)
class Engine(Strict):
    """`[engine]`: sizes of the packet engine. A change takes effect when the data path is set up anew."""

    connections_max: Annotated[int, Ge(1024), Le(1 << 24)] = described("Connections remembered.", default=1 << 20)
    half_open_max: Annotated[int, Ge(1024), Le(1 << 22)] = described(
        "Half-open connections remembered.", default=1 << 16
    )
    admissions_per_s: Annotated[int, Ge(0), Le(100_000_000)] = described(
        "Unproven connections that may enter the table per second and CPU; 0: no limit.", default=200_000
    )
    tunnel_sources: Annotated[tuple[Network, ...], Len(0, 2)] = described(
        "`tunnel`: outer source addresses, an IPv4 and an IPv6 network; their host bits vary by flow, so that "
        "a receiver spreads the load over its queues. Empty: the gateway's own address.",
        default=(),
    )
    sweep_interval_ms: Annotated[int, Ge(200), Le(600_000)] = described(
        "Time between two searches for expired connections.", default=10_000
    )


@dataclass(frozen=True, slots=True)
class Routes(Strict):
    """`[routes]`: where VIPs announced as routes are put for a routing daemon."""

    interface: Annotated[str, Len(1, 15)] = described(
        "The routing daemon announces the addresses it finds here: the loopback interface, or a dummy interface made "
        "for them.",
        default="lo",
    )


@dataclass(frozen=True, slots=True)
class Conntrack(Strict):
    """`[conntrack]`: the kernel's connection tracking, for gateways with a stateful firewall or a translation of their
    own."""

    replicate: bool = described(
        "Tell the other gateways what this kernel tracks, and take over what they tell, so that a survivor's firewall "
        "and translation go on with their connections. All gateways of the cluster should say the same.",
        default=False,
    )


@dataclass(frozen=True, slots=True)
class NodeConfig(Strict):
    """The node file."""

    cluster: Name = described("The cluster's name: nodes with another one are ignored.")
    node: Node = described("Who this gateway is.")
    interfaces: Annotated[tuple[Interface, ...], Len(1, 64)] = described("Where packets come from.", key="interface")
    ring: Ring | None = described("The ring; absent: the gateway stands alone.", default=None)
    resources: Annotated[tuple[Resource, ...], Len(0, 64)] = described("What must work.", default=(), key="resource")
    engine: Engine = described("Sizes of the packet engine.", factory=Engine)
    routes: Routes = described("Where VIPs announced as routes are put.", factory=Routes)
    conntrack: Conntrack = described("The kernel's connection tracking.", factory=Conntrack)
    api: dict[str, Any] = described("Access to the API, see docs/api.md.", factory=dict)

    @property
    def run_dir(self) -> Path:
        return Path(self.node.run_dir)

    @property
    def state_dir(self) -> Path:
        return Path(self.node.state_dir)

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "control.sock"

    @property
    def api_socket(self) -> Path:
        return self.run_dir / "api.sock"

    @property
    def bpffs(self) -> Path:
        """Where the BPF file system is mounted."""
        return self.run_dir / PIN_DIRECTORY

    @property
    def pins(self) -> Path:
        """This node's pins. A BPF file system takes no dots in names."""
        return self.bpffs / self.node.name.replace(".", "_")

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(interface.segment for interface in self.interfaces))


class ConfigError(ValueError):
    """A configuration that cannot be used; `problems`: a plain dict per fault, as `lb.configuration.schema.Problem`."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        self.problems = problems
        super().__init__("\n".join(problem["text"] for problem in problems))


def split_address(text: str, default_port: int = RING_PORT) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `[v6]:port`. Raises ValueError."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":")) if rest else default_port
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, int(port)
    return text, default_port
