# SPDX-License-Identifier: Apache-2.0
"""Runs the program and the oracle on the same frames and holds what they say against each other."""

import contextlib
import os
import random
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from ebpf import layout, loader, test_run
from ebpf.layout import AddressFlag, Setting, TargetFlag
from ebpf.maps import Maps
from ebpf.reasons import REASONS
from tests.packet.oracle import path
from tests.packet.oracle.choosing import Chance
from tests.packet.oracle.headers import (
    FRAGMENT,
    ICMP,
    ICMPV6,
    IN6,
    IPIP,
    TCP,
    UDP,
    Packet,
    Refused,
    add_words,
    fold,
    parse_ipv4,
    parse_ipv6,
    parse_link,
    pseudo_header,
)
from tests.packet.oracle.memory import Key, Result
from tests.packet.oracle.traffic import Sent, Traffic
from tests.packet.oracle.world import BY_MAC, World, install, make

MAP_SIZES = {"connections": 1 << 17, "half_open": 1 << 16, "fragments": 1 << 16, "persistence": 1 << 16}
ASK_EVERY = 5


class Disagreement(AssertionError):
    """Program and oracle differ; the text has all that is needed to see why."""


@dataclass
class Tally:
    """What a run has seen."""

    packets: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    verified: int = 0


def make_network() -> None:
    """Interfaces, routes and neighbours of the world, in the present (empty) network namespace."""
    script = """
    link set lo up
    link add wan type veth peer name wan-far
    link add lan type veth peer name lan-far
    link set wan address 02:00:00:00:00:01 mtu 1400 up
    link set lan address 02:00:00:00:00:02 mtu 1500 up
    link set wan-far up
    link set lan-far up
    address add 10.1.0.1/24 dev wan
    address add fd00:1::1/64 dev wan nodad
    address add 10.20.0.1/24 dev lan
    address add fd00:20::1/64 dev lan nodad
    neighbour add 10.1.0.254 lladdr 02:cc:00:00:00:01 dev wan nud permanent
    neighbour add fd00:1::fe lladdr 02:cc:00:00:00:01 dev wan nud permanent
    neighbour add 10.20.0.254 lladdr 02:cc:00:00:00:02 dev lan nud permanent
    neighbour add fd00:20::fe lladdr 02:cc:00:00:00:02 dev lan nud permanent
    route add default via 10.1.0.254
    route add default via fd00:1::fe
    route add 10.2.0.0/24 via 10.20.0.254
    route add 10.2.0.99/32 dev lan
    route add fd00:2::/64 via fd00:20::fe
    """
    commands = "\n".join(line.strip() for line in script.strip().splitlines())
    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        FilePath("/proc/sys/net", switch).write_text("1")
    subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)


@contextlib.contextmanager
def program(directory: FilePath) -> Iterator[tuple[Maps, int, int]]:
    """The path in the kernel, its maps, its entry and the entry that leaves no trace."""
    maps = loader.create_maps(directory / "maps", MAP_SIZES)
    loader.load_programs(directory)
    # The first and last reference to an XDP program cost the kernel milliseconds: keep one all the time.
    loader.attach("lo", directory, loader.Mode.GENERIC)
    try:
        yield maps, loader.open_program(directory), loader.open_program(directory, "lb_where")
    finally:
        loader.detach("lo", directory)
        maps.close()
        loader.remove(directory)


class Comparison:
    """One seeded run."""

    def __init__(self, seed: int, maps: Maps, entry: int, where: int) -> None:
        rng = random.Random(seed)
        self.seed, self.maps, self.entry, self.where = seed, maps, entry, where
        self.ifindex = {name: socket.if_nametoindex(name) for name in ("wan", "lan")}
        macs = {"wan": bytes.fromhex("020000000001"), "lan": bytes.fromhex("020000000002")}
        self.world: World = make(rng, self.ifindex, macs)
        install(maps, self.world)
        self.oracle = path.Path(self.world)
        self.traffic = Traffic(rng, self.world)
        self.tally = Tally()
        self.rng = rng
        # The path remembers flows per processor for up to a second, as a network card keeps a flow on one: the oracle
        # has one memory, so the run has one processor.
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[seed % len(processors)]})

    def run(self, count: int) -> Tally:
        """Compare `count` packets; the configuration changes on the way. Raises Disagreement."""
        changes = {count * (number + 1) // (len(CHANGES) + 1): change for number, change in enumerate(CHANGES)}
        for number in range(count):
            if number in changes:
                changes[number](self.world)
                install(self.maps, self.world)
                self.oracle.memory.seen.clear()
            self.compare(number, self.traffic.next())
        self.compare_tables()
        return self.tally

    def compare(self, number: int, sent: Sent) -> None:
        expected = self.expect(sent)
        if number % ASK_EVERY == 0 and len(expected) == 1 and not expected[0].by_turn:
            self.ask(number, sent, expected[0])
        done = test_run.run(self.entry, sent.frame, ifindex=self.ifindex[sent.ingress])
        verdict = test_run.Verdict(done.verdict).name
        # What is dropped may have been half rewritten: nobody sees it.
        fitting = [r for r in expected if r.verdict == verdict and (verdict == "DROP" or r.frame == done.packet)]
        if not fitting:
            raise Disagreement(self.describe(number, sent, expected, verdict, done.packet))
        result = fitting[0]
        for commit in result.commits:
            commit()
        self.settle(result)
        if sent.intact and verdict in ("TX", "REDIRECT"):
            self.verify(number, sent, done.packet)
        self.tally.packets += 1
        self.tally.verdicts[verdict] += 1
        self.tally.reasons[result.reason] += 1

    def expect(self, sent: Sent) -> list[Result]:
        try:
            return [self.oracle.handle(sent.frame, sent.ingress)]
        except Chance as chance:
            return [self.oracle.handle(sent.frame, sent.ingress, target) for target in chance.targets]

    def ask(self, number: int, sent: Sent, expected: Result) -> None:
        """The entry that leaves no trace gives the reason, service and target as well."""
        done = test_run.run(self.where, sent.frame, ifindex=self.ifindex[sent.ingress])
        found = self.maps.explain.get(0)
        assert found is not None
        reason = REASONS[int(found["reason"])].name
        if reason != expected.reason:
            verdict = test_run.Verdict(done.verdict).name
            raise Disagreement(f"reason {reason}\n" + self.describe(number, sent, [expected], verdict, done.packet))
        self.tally.asked += 1

    def settle(self, result: Result) -> None:
        """Take from the table what depends on how long ago a packet was seen, which the oracle does not follow."""
        memory = self.oracle.memory
        if result.unsure:
            value = self.look_up(result.unsure)
            assert value is not None, f"connection {result.unsure} is gone"
            memory.connections[result.unsure].state = layout.State(int(value["state"])).name
        if result.doubtful:
            key, entry = result.doubtful
            if self.look_up(key) is not None:
                memory.connections[key] = entry

    def look_up(self, key: Key) -> Any:
        packed = np.zeros((), layout.FLOW_KEY)
        packed["source"], packed["destination"] = np.frombuffer(key[0], "u1"), np.frombuffer(key[1], "u1")
        packed["source_port"], packed["destination_port"], packed["protocol"] = key[2:]
        return self.maps.connections.get(packed)

    def verify(self, number: int, sent: Sent, frame: bytes) -> None:
        problem = fault(frame)
        if problem:
            raise Disagreement(f"seed {self.seed}, packet {number} ({sent.kind}): what left is wrong: {problem}\n"
                               f"in  {sent.frame.hex()}\nout {frame.hex()}")  # fmt: skip
        self.tally.verified += 1

    def compare_tables(self) -> None:
        """At the end both remember the same connections, with the same targets, owners and states."""
        keys, values = self.maps.connections.dump()
        found = {}
        for key, value in zip(keys, values, strict=True):
            ends = bytes(key["source"]), bytes(key["destination"])
            ports = int(key["source_port"]), int(key["destination_port"]), int(key["protocol"])
            state = layout.State(int(value["state"])).name
            found[(*ends, *ports)] = (int(value["target"]), int(value["owner"]), state, int(value["service"]))
        expected = {
            key: (entry.target, entry.owner, entry.state, entry.service)
            for key, entry in self.oracle.memory.connections.items()
        }
        if found != expected:
            different = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
            shown = [f"{key}: program {found.get(key)}, oracle {expected.get(key)}" for key in different[:5]]
            raise Disagreement(f"seed {self.seed}: {len(different)} connections differ\n" + "\n".join(shown))

    def describe(self, number: int, sent: Sent, expected: list[Result], verdict: str, frame: bytes) -> str:
        lines = [
            f"seed {self.seed}, packet {number}: {sent.kind} on {sent.ingress}",
            f"replay: python -m tests.packet.oracle --seed {self.seed} --count {self.tally.packets + 1}",
            f"in       {sent.frame.hex()}",
            f"program  {verdict} {frame.hex()}",
        ]
        lines += [f"oracle   {result.verdict} {result.frame.hex()} ({result.reason})" for result in expected]
        return "\n".join(lines)


# ------------------------------------------------------------------------------------ changes while traffic goes on


def some_die(world: World) -> None:
    for target in world.targets.values():
        if target.id % 3 == 0:
            target.flags &= ~TargetFlag.ALIVE


def some_drain(world: World) -> None:
    for target in world.targets.values():
        target.flags |= TargetFlag.ALIVE
        if target.id % 4 == 1:
            target.flags |= TargetFlag.DRAINING
        if target.id % 5 == 2:
            target.flags |= TargetFlag.FULL


def a_node_leaves(world: World) -> None:
    world.members.discard(BY_MAC)
    for target in world.targets.values():
        target.flags &= ~(TargetFlag.DRAINING | TargetFlag.FULL)


def nothing_is_steered(world: World) -> None:
    world.members.add(BY_MAC)
    world.flags &= ~Setting.STEERING


def vips_move(world: World) -> None:
    world.flags |= Setting.STEERING
    for address in world.vips:
        world.vips[address] ^= AddressFlag.HELD


def nothing_is_routed(world: World) -> None:
    """What no service or backend claims is nobody's from here on."""
    world.flags &= ~Setting.ROUTED


CHANGES = (some_die, some_drain, a_node_leaves, nothing_is_steered, vips_move, nothing_is_routed)


# ------------------------------------------------------------------------------------------- what leaves must be right


def fault(frame: bytes) -> str:
    """What is wrong with the lengths and checksums of a frame; empty if nothing is."""
    packet = parse_link(frame)
    try:
        return _fault_of_ip(packet)
    except Refused as refusal:
        return str(refusal)


def _fault_of_ip(packet: Packet) -> str:
    if packet.ethertype == 0x0800:
        parse_ipv4(packet)
        head = packet.frame[packet.l3 : packet.l4]
        if fold(add_words(head)) != 0xFFFF:
            return "IPv4 header checksum"
    elif packet.ethertype == 0x86DD:
        parse_ipv6(packet)
    else:
        return f"ethertype {packet.ethertype:#x}"
    if packet.fragment or packet.protocol == FRAGMENT:
        return ""
    body = packet.frame[packet.l4 : packet.end]
    if packet.protocol in (IPIP, IN6):
        inner = Packet(packet.frame[packet.l4 :], ethertype=0x0800 if packet.protocol == IPIP else 0x86DD)
        return _fault_of_ip(inner)
    if packet.protocol not in (TCP, UDP, ICMP, ICMPV6):
        return ""
    if packet.protocol == UDP and not packet.v6 and body[6:8] == b"\0\0":
        return ""
    if packet.protocol != ICMP:
        body = pseudo_header(packet.source, packet.destination, len(body), packet.protocol) + body
    return "" if fold(add_words(body)) == 0xFFFF else f"checksum of protocol {packet.protocol}"


def pin_to_one_cpu() -> None:
    """Rotation and recent flows are kept per CPU; the oracle has one."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
