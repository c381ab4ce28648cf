# SPDX-License-Identifier: Apache-2.0
"""The command `lab`: networks of namespaces to try the gateways in.

lab up NAME [--topology T] [--no-daemons]   build and start; the topology is NAME unless told
lab down NAME | --all                       remove, whatever state it is in
lab list                                    labs on this machine, and the topologies there are
lab status NAME | --all                     nodes, processes, faults
lab exec NAME NODE -- COMMAND …             run a command in a node, as on that host
lab fault NAME FAULT [NODE…] [options]      kill stop cont start link-down link-up loss delay mtu partition heal
lab fault NAME switch-down|switch-up SWITCH a whole switch dies, or comes back
lab selftest                                check the lab itself, in less than a minute
"""

import argparse
import os
import signal
import sys

from netlab import faults, namespaces, services, state
from netlab.lab import Lab
from netlab.state import LabError
from netlab.topologies import TOPOLOGIES

FAULTS = ("kill", "stop", "cont", "start", "link-down", "link-up", "loss", "delay", "mtu", "partition", "heal")
SWITCH_FAULTS = ("switch-down", "switch-up")


def up(options: argparse.Namespace) -> None:
    lab = Lab.up(options.name, options.topology, daemons=not options.no_daemons)
    names = " ".join(node.name for node in lab.topology.nodes)
    print(f"lab {lab.name} ({lab.topology.name}) is up: {names}")
    print(f"files: {lab.directory}   try: lab exec {lab.name} client -- curl -s http://{lab.topology.vip(4)}/")


def down(options: argparse.Namespace) -> None:
    if options.all == bool(options.name):
        raise LabError("name a lab, or say --all")
    for name in state.known_labs() if options.all else [options.name]:
        state.clean_up(name)


def show_list(_: argparse.Namespace) -> None:
    for name in state.known_labs():
        try:
            print(f"{name}\t{state.load(name).topology}")
        except (LabError, ValueError):
            print(f"{name}\tincomplete: remove it with: lab down {name}")
    print("\ntopologies:")
    for topology in TOPOLOGIES.values():
        print(f"  {topology.name:26}{topology.summary}")


def status(options: argparse.Namespace) -> None:
    if options.all == bool(options.name):
        raise LabError("name a lab, or say --all")
    for name in state.known_labs() if options.all else [options.name]:
        show_one(name)


def show_one(name: str) -> None:
    lab = Lab.open(name)
    record = state.load(name)
    print(f"{lab.name}: {lab.topology.summary}\nfiles: {lab.directory}\n")
    for node in lab.topology.nodes:
        addresses = " ".join(
            f"{interface.name}={interface.segment.address(interface.host, 4)}" for interface in node.interfaces
        )
        running = [
            f"{key.partition('/')[2]}:{process.pid if process.alive() else 'ended'}"
            for key, process in record.processes.items()
            if key.startswith(f"{node.name}/")
        ]
        there = "" if namespaces.path_of(lab.namespace(node.name)).exists() else "  MISSING"
        print(f"  {node.name:8} {node.role:8} {addresses}  {' '.join(running)}{there}")
    for fault in record.faults:
        print(f"  fault: {fault}")


def execute(options: argparse.Namespace) -> None:
    """Become the command, in the node's network namespace: mounts, pins and files are the host's."""
    lab = Lab.open(options.name)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = command or [os.environ.get("SHELL", "/bin/sh")]
    namespace = namespaces.path_of(lab.namespace(options.node))
    environment = {**os.environ, **services.gateway_environment(lab.directory, options.node)}
    environment |= {"LAB": lab.name, "LAB_NODE": options.node}
    os.execvpe("nsenter", ["nsenter", f"--net={namespace}", "--", *command], environment)


def fault(options: argparse.Namespace) -> None:
    lab = Lab.open(options.name)
    kind, nodes, interfaces = options.fault, options.nodes, options.interface
    if kind == "heal":
        faults.heal(lab, nodes)
        return
    if not nodes:
        there = lab.topology.switches if kind in SWITCH_FAULTS else [node.name for node in lab.topology.nodes]
        raise LabError(f"{kind}: name at least one; there are {', '.join(there)}")
    if kind == "partition":
        faults.partition(lab, nodes, one_way=options.one_way, segments=interfaces)
        return
    for node in nodes:
        if kind in faults.PROCESS_SIGNALS:
            faults.signal_daemon(lab, node, kind)
        elif kind == "start":
            lab.start_daemon(node)
        elif kind in SWITCH_FAULTS:
            faults.set_switch(lab, node, kind == "switch-up")
        elif kind in ("link-down", "link-up"):
            faults.set_links(lab, node, kind == "link-up", interfaces)
        elif kind == "loss":
            faults.set_loss(lab, node, _needed(options.percent, "--percent"), interfaces)
        elif kind == "delay":
            faults.set_delay(lab, node, _needed(options.ms, "--ms"), interfaces)
        else:
            faults.set_mtu(lab, node, int(_needed(options.bytes, "--bytes")), interfaces)


def _needed(value: float | None, option: str) -> float:
    if value is None:
        raise LabError(f"this fault needs {option}")
    return value


def selftest(_: argparse.Namespace) -> None:
    from netlab import selftest as checks  # what it needs is not worth loading for the other commands

    checks.run()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object) -> argparse.ArgumentParser:
        added = commands.add_parser(name)
        added.set_defaults(function=function)
        return added

    making = command("up", up)
    making.add_argument("name")
    making.add_argument("--topology", choices=sorted(TOPOLOGIES))
    making.add_argument("--no-daemons", action="store_true", help="the network and its servers alone")
    ending = command("down", down)
    ending.add_argument("name", nargs="?")
    ending.add_argument("--all", action="store_true")
    command("list", show_list)
    looking = command("status", status)
    looking.add_argument("name", nargs="?")
    looking.add_argument("--all", action="store_true")
    running = command("exec", execute)
    running.add_argument("name")
    running.add_argument("node")
    running.add_argument("command", nargs=argparse.REMAINDER)
    failing = command("fault", fault)
    failing.add_argument("name")
    failing.add_argument("fault", choices=(*FAULTS, *SWITCH_FAULTS))
    failing.add_argument("nodes", nargs="*", metavar="NODE")
    failing.add_argument("--interface", action="append", default=[], help="this interface or segment only (repeatable)")
    failing.add_argument("--percent", type=float, help="loss: share of frames lost in each direction")
    failing.add_argument("--ms", type=float, help="delay: of each direction")
    failing.add_argument("--bytes", type=int, help="mtu: largest packet")
    failing.add_argument("--one-way", action="store_true", help="partition: what the nodes send is lost, the rest not")
    command("selftest", selftest)
    return top


def _terminate(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    if os.geteuid() != 0:
        print("lab: needs root: it makes network namespaces", file=sys.stderr)
        return 1
    # A request to end is an interruption like Ctrl-C: whoever is building cleans up.
    signal.signal(signal.SIGTERM, _terminate)
    options = parser().parse_args()
    try:
        options.function(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return 0
