# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a lab, on demand: processes, links, switches, lost and late frames, partitions; and putting it
right.

Links are cut, frames lost and delayed at the switch's end of the cable, so that a node sees what a bad switch or cable
would show it, in front of its own XDP program.
"""

import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pyroute2 import IPRoute

from netlab import build, namespaces, services, state
from netlab.commands import load_nft, run
from netlab.lab import Lab
from netlab.namespaces import Process
from netlab.state import LabError
from netlab.topology import Interface
from netlab.waiting import eventually

LOSS_SCALE = 10_000
TABLE_PREFIX = "fault_"
PROCESS_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "cont": signal.SIGCONT}

Port = tuple[Interface, str, str]


def ports_of(lab: Lab, node: str, interfaces: Sequence[str] = ()) -> list[Port]:
    """(interface, switch, port) of the node's cables, all of them or those of the named interfaces or segments."""
    lab.namespace(node)
    every = list(lab.topology.ports(lab.topology.node(node)))
    if not interfaces:
        return every
    chosen = [port for port in every if port[0].name in interfaces or port[0].segment.name in interfaces]
    if not chosen:
        has = ", ".join(f"{interface.name} ({interface.segment.name})" for interface, _, _ in every)
        raise LabError(f"{node} has no interface {' or '.join(interfaces)}; it has {has}")
    return chosen


def remember(lab: Lab, text: str) -> None:
    with state.changing(lab.name) as record:
        record.faults.append(text)


# ---------------------------------------------------------------------------------------------------------------------
# processes


def signal_daemon(lab: Lab, node: str, fault: str) -> None:
    """kill, stop (as hung as a process can be) or continue the daemon of a gateway."""
    process = lab.daemon(node)
    if not process.signal(PROCESS_SIGNALS[fault]):
        raise LabError(f"the daemon of {node} is not running")
    if fault == "kill":
        eventually(lambda: not process.alive(), what=f"daemon of {node} is gone")
    if fault != "cont":
        remember(lab, f"{fault} {node}")


def power_off(lab: Lab, node: str) -> None:
    """A gateway's host is gone at once, with all its kernel knew: what it has on disk is left. `cluster.revive`
    switches it on again."""
    set_links(lab, node, up=False)
    signal_daemon(lab, node, "kill")
    lab.run(node, services.removal_command(lab.directory, lab.topology.node(node)))


def start_with_clock_ahead(lab: Lab, node: str, seconds: int) -> None:
    """Start the daemon of a gateway whose wall clock is that far ahead of everybody else's."""
    library = lab.directory / "wall_clock.so"
    run("gcc", "-O2", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("wall_clock.c")))
    host = lab.topology.node(node)
    clock = ["env", f"LD_PRELOAD={library}", f"AHEAD_S={seconds}"]
    lab.start(f"{node}/lbd", host, [*clock, *services.daemon_command(lab.directory, host)])
    lab.wait_ready(node)


# ---------------------------------------------------------------------------------------------------------------------
# links


def set_links(lab: Lab, node: str, up: bool, interfaces: Sequence[str] = ()) -> None:
    """Cut or mend the node's cables, all in one step: with every cable cut the host is as good as dead."""
    by_switch: dict[str, list[str]] = {}
    for _, switch, port in ports_of(lab, node, interfaces):
        by_switch.setdefault(switch, []).append(port)
    for switch, names in by_switch.items():
        lab.inside(switch, _set_state, names, "up" if up else "down")
    if not up:
        remember(lab, f"link-down {node} {' '.join(interfaces)}".strip())


def _set_state(names: Iterable[str], wanted: str) -> None:
    with IPRoute() as ip:
        for name in names:
            ip.link("set", index=socket.if_nametoindex(name), state=wanted)


def set_switch(lab: Lab, switch: str, up: bool) -> None:
    """Take a switch's power, or give it back: every cable in it loses its carrier, those to other switches as well."""
    if switch not in lab.topology.switches:
        raise LabError(f"no switch {switch} in topology {lab.topology.name}; it has {', '.join(lab.topology.switches)}")
    lab.inside(switch, _set_state, build.switch_ports(switch, lab.topology), "up" if up else "down")
    if not up:
        remember(lab, f"switch-down {switch}")


def set_mtu(lab: Lab, node: str, mtu: int, interfaces: Sequence[str] = ()) -> None:
    """Change what fits through a node's interfaces; `heal` gives back the topology's value."""
    chosen = [interface for interface, _, _ in ports_of(lab, node, interfaces)]
    lab.inside(node, _set_mtu, [(interface.name, mtu) for interface in chosen])
    remember(lab, f"mtu {node} {mtu} {' '.join(interfaces)}".strip())


def _set_mtu(values: Iterable[tuple[str, int]]) -> None:
    with IPRoute() as ip:
        for name, mtu in values:
            ip.link("set", index=socket.if_nametoindex(name), mtu=mtu)


# ---------------------------------------------------------------------------------------------------------------------
# frames


def set_loss(lab: Lab, node: str, percent: float, interfaces: Sequence[str] = ()) -> None:
    """Lose this share of the frames of each direction, independently of each other."""
    if not 0 <= percent <= 100:
        raise LabError(f"loss of {percent} percent: allowed are 0 to 100")
    for _, switch, port in ports_of(lab, node, interfaces):
        _replace_table(lab, switch, f"{TABLE_PREFIX}loss_{port}", loss_chains(port, percent) if percent else ())
    remember(lab, f"loss {node} {percent:g} {' '.join(interfaces)}".strip())


def loss_chains(port: str, percent: float) -> Iterator[str]:
    below = round(percent / 100 * LOSS_SCALE)
    # nft refuses a comparison that always holds.
    chance = f"numgen random mod {LOSS_SCALE} < {below} " if below < LOSS_SCALE else ""
    for hook in ("ingress", "egress"):
        yield f'chain {hook} {{ type filter hook {hook} device "{port}" priority 0; policy accept;'
        yield f"{chance}counter drop"
        yield "}"


def partition(lab: Lab, nodes: Sequence[str], *, one_way: bool = False, segments: Sequence[str] = ()) -> None:
    """Part the named gateways from the other ones, on all segments or some; clients and backends still see both sides.

    `one_way`: what the named ones send is lost, what the others send arrives.
    """
    rest = [gateway.name for gateway in lab.gateways if gateway.name not in nodes]
    directions = [(nodes, rest)] if one_way else [(nodes, rest), (rest, nodes)]
    tables: dict[str, list[str]] = {}
    for senders, receivers in directions:
        macs = [
            build.mac_address(sender, interface.name)
            for sender in senders
            for interface, _, _ in ports_of(lab, sender, segments)
        ]
        for receiver in receivers:
            for _, switch, port in ports_of(lab, receiver, segments):
                text = _table_text(f"{TABLE_PREFIX}part_{port}", partition_chain(port, macs))
                tables.setdefault(switch, []).append(text)
    # All of a switch's ports in one step: half a partition is another fault.
    for switch, texts in tables.items():
        _nft(lab, switch, "".join(texts))
    remember(lab, f"partition {' '.join(nodes)}{' one-way' if one_way else ''} {' '.join(segments)}".strip())


def partition_chain(port: str, macs: Sequence[str]) -> Iterator[str]:
    yield f'chain egress {{ type filter hook egress device "{port}" priority 0; policy accept;'
    yield f"ether saddr {{ {', '.join(macs)} }} counter drop"
    yield "}"


def _replace_table(lab: Lab, switch: str, name: str, chains: Iterable[str]) -> None:
    _nft(lab, switch, _table_text(name, chains))


def _table_text(name: str, chains: Iterable[str]) -> str:
    """What makes a table of that name hold these chains and no others; without chains there is none."""
    table = name.replace("-", "_")
    body = list(chains)
    text = [f"table netdev {table}", f"delete table netdev {table}"]
    if body:
        text += [f"table netdev {table} {{", *body, "}"]
    return "\n".join(text) + "\n"


def _nft(lab: Lab, switch: str, text: str) -> None:
    try:
        lab.inside(switch, load_nft, text)
    except RuntimeError as error:
        raise LabError(f"on {switch}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# late frames: a forwarder between the cable and the bridge


def set_delay(lab: Lab, node: str, delay_ms: float, interfaces: Sequence[str] = ()) -> None:
    """Hold every frame of each direction for this time; 0 takes the delay away."""
    for cable in ports_of(lab, node, interfaces):
        _remove_delay(lab, node, cable)
        if delay_ms > 0:
            _insert_delay(lab, node, cable, delay_ms)
    remember(lab, f"delay {node} {delay_ms:g} ms {' '.join(interfaces)}".strip())


def _delay_key(switch: str, port: str) -> str:
    return f"{switch}/delay-{port}"


def _insert_delay(lab: Lab, node: str, cable: Port, delay_ms: float) -> None:
    interface, switch, port = cable
    lab.inside(switch, _splice, port, interface.segment.name, build.mac_address(node, interface.name))
    command = [sys.executable, "-m", "netlab.delay_link", port, _near(port), str(delay_ms)]
    process = lab.start_in_switch(_delay_key(switch, port), switch, command)
    eventually(lambda: _forwards(process), 5.0, f"forwarder on {port} runs")


def _forwards(process: Process) -> bool:
    """The forwarder has opened both of its packet sockets (they are its only ones)."""
    if not process.alive():
        raise LabError("the forwarder ended at once")
    links = [entry.readlink().name for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
    return sum(link.startswith("socket:") for link in links) == 2


def _near(port: str) -> str:
    return f"{port}.d"


def _far(port: str) -> str:
    return f"{port}.b"


def _splice(port: str, bridge: str, mac: str) -> None:
    with IPRoute() as ip:
        ip.link("add", ifname=_near(port), kind="veth", peer={"ifname": _far(port)}, mtu=build.SWITCH_MTU)
        ip.link("set", index=socket.if_nametoindex(_far(port)), mtu=build.SWITCH_MTU)
        ip.link("set", index=socket.if_nametoindex(port), master=0)
        ip.link("set", index=socket.if_nametoindex(_near(port)), state="up")
        ip.link("set", index=socket.if_nametoindex(_far(port)), master=socket.if_nametoindex(bridge), state="up")
    build.know_stations({_far(port): mac})


def _unsplice(port: str, bridge: str, mac: str) -> None:
    with IPRoute() as ip:
        ip.link("del", index=socket.if_nametoindex(_near(port)))
        ip.link("set", index=socket.if_nametoindex(port), master=socket.if_nametoindex(bridge))
    build.know_stations({port: mac})


def _remove_delay(lab: Lab, node: str, cable: Port) -> None:
    interface, switch, port = cable
    key = _delay_key(switch, port)
    with state.changing(lab.name) as record:
        process = record.processes.pop(key, None)
    if process is None:
        return
    namespaces.end([process])
    lab.forget(key)
    lab.inside(switch, _unsplice, port, interface.segment.name, build.mac_address(node, interface.name))


# ---------------------------------------------------------------------------------------------------------------------


def heal(lab: Lab, nodes: Sequence[str] = ()) -> None:
    """Undo every fault of links and frames (of these nodes, or all) and continue stopped daemons.

    A killed daemon is not started again: that is `start`. A partition always heals as a whole. A dead switch comes back
    with everything else, or alone by `set_switch`.
    """
    # First: parts that regain something else before they find each other are another fault.
    _heal_partition(lab)
    chosen = list(nodes) or [node.name for node in lab.topology.nodes]
    for name in chosen:
        node = lab.topology.node(name)
        for cable in ports_of(lab, name):
            _remove_delay(lab, name, cable)
            _, switch, port = cable
            _replace_table(lab, switch, f"{TABLE_PREFIX}loss_{port}", ())
        set_links(lab, name, up=True)
        lab.inside(name, _set_mtu, [(interface.name, interface.effective_mtu) for interface in node.interfaces])
        if node.role == "gateway" and f"{name}/lbd" in state.load(lab.name).processes:
            lab.daemon(name).signal(signal.SIGCONT)
    if not nodes:
        for switch in lab.topology.switches:
            set_switch(lab, switch, up=True)
    with state.changing(lab.name) as record:
        record.faults = [fault for fault in record.faults if nodes and not set(nodes) & set(fault.split())]


def _heal_partition(lab: Lab) -> None:
    tables: dict[str, list[str]] = {}
    for gateway in lab.gateways:
        for _, switch, port in ports_of(lab, gateway.name):
            tables.setdefault(switch, []).append(_table_text(f"{TABLE_PREFIX}part_{port}", ()))
    for switch, texts in tables.items():
        _nft(lab, switch, "".join(texts))
