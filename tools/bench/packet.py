# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per packet of the packet path, net of an empty program in the same run.

    python -m tools.bench packet [--json] [--case hit] [--method tunnel] [--family 4] [--quick]

A small program (ebpf/packet_bench.c) restores the packet before each of a million repetitions of one BPF_PROG_TEST_RUN
and gives it the addresses of one of N flows at random: the code is hot as under load, the tables are as cold as N
flows make them. The process is bound to one CPU; each figure is the median of five runs after a warm-up. Taking the
tunnel header off again is part of the figure.

Cases: `hit` established TCP connections; `syn` first packets of ever new connections; `establish` the packet that
opens a connection, with its replication record; `udp-new` first datagrams; `not-ours`.

`yardstick` (IPv4, `hit` and `syn`) is about the least a balancer can do (ebpf/packet_yardstick.c), measured in turn
with the path: `ratio` is the path's cost over it, and can be compared between machines. `live` is packets per second of
established flows through a veth pair, sent by BPF_PROG_TEST_RUN with live frames.
"""

import argparse
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ebpf import layout, libbpf, loader, test_run
from ebpf.layout import Method, Replicate, Scheduler, ServiceFlag, Setting, State, TargetFlag
from ebpf.maps import Maps
from ebpf.ring_buffer import RingBuffer

REPEAT = 1_000_000
WARM_UP = 2_000_000
RUNS = 5
# Fewer than the replication ring buffer holds, so that every opened connection's record finds room.
OPENED_PER_RUN = 50_000
FLOWS = (1, 16_384, 131_072, 1_048_576)
HEADER_BYTES = 80
TCP, UDP = 6, 17
SYN, ACK = 0x02, 0x10
SERVICE, TARGETS = 1, (1, 2, 3)
PICK_RANDOM, PICK_NEXT = 0, 1
NEW_FLOWS_MASK = 0xFFFFFF
LOOPBACK = 1
LIVE_FRAMES = 4_000_000
_CLONE_NEWNET = 0x40000000

_CONFIG = np.dtype(
    [
        ("header", "u1", (HEADER_BYTES,)),
        ("state", "u8"),
        ("mask", "u8"),
        ("pick", "u4"),
        ("length", "u4"),
        ("address_offset", "u4"),
        ("port_offset", "u4"),
    ],
    align=True,
)
_CLIENTS = {4: "10.0.0.0", 6: "2001:db8::"}
_VIPS = {4: "203.0.113.10", 6: "2001:db8:ffff::10"}
_BACKENDS = {4: "198.51.100.{}", 6: "2001:db8:eeee::{}"}


@dataclass(frozen=True)
class Result:
    """One line of the result; the field names are the interface of the JSON."""

    case: str
    method: str
    family: int
    flows: int
    ns_per_packet: float
    ratio: float | None = None
    packets_per_second: int | None = None


class Bench:
    """The path, the wrapper and the empty program, loaded side by side."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.maps: Maps = loader.create_maps(directory / "maps", {"tables": 16})
        loader.load_programs(directory)
        self.entry = loader.open_program(directory)
        self.config = libbpf.map_create(libbpf.MAP_ARRAY, "bench_config", 4, _CONFIG.itemsize, 1)
        self.next = libbpf.map_create(libbpf.MAP_PROG_ARRAY, "bench_next", 4, 4, 1)
        libbpf.object_pin(self.config, directory / "maps/bench_config")
        libbpf.object_pin(self.next, directory / "maps/bench_next")
        self.wrapper = self._load("packet_bench.c", "bench_wrap")
        self.empty = self._load("send_back.c", "send_back")
        self.yardstick = self._load("packet_yardstick.c", "yardstick")
        self.records = RingBuffer(self.maps.records)

    def _load(self, source: str, program: str) -> int:
        directory = self.directory / program
        directory.mkdir()
        loader.compile_source(source, self.directory / "maps", directory)
        return libbpf.object_get(directory / program)

    def configure(self, method: Method, family: int, protocol: int, ifindex: int = LOOPBACK) -> None:
        """One service with three backends of equal weight."""
        maps = self.maps
        for name in ("connections", "half_open", "services", "nat_return"):
            getattr(maps, name).clear()
        service = np.zeros((), layout.SERVICE)
        service["address"], service["port"] = layout.pack_address(_VIPS[family]), 80
        service["protocol"], service["method"], service["scheduler"] = protocol, int(method), int(Scheduler.MAGLEV)
        service["replicate"], service["table_slots"] = int(Replicate.ESTABLISHED), layout.TABLE_SLOTS_DEFAULT
        service["flags"] = int(ServiceFlag.REMEMBER_NEW) if method is Method.NAT else 0
        maps.service_table.set(SERVICE, service)
        for number in TARGETS:
            maps.targets.set(number, self._target(method, family, number, ifindex))
            backend = layout.endpoint(_BACKENDS[family].format(number), 80, protocol)
            maps.nat_return.set(backend, number)
        slots = np.resize(np.array(TARGETS, np.uint16), layout.TABLE_SLOTS_DEFAULT)
        maps.replace_table(SERVICE, slots)
        maps.services.set(layout.endpoint(_VIPS[family], 80, protocol), SERVICE)
        # All features in use, as on a gateway of a cluster.
        flags = Setting.RECORDS | Setting.NAT | Setting.ANY_PORT | Setting.STEERING
        maps.change_settings(
            hash_seed=(0x9E3779B97F4A7C15, 0xD1B54A32D192ED03),
            flags=int(flags),
            node=1,
            tunnel_source4=np.frombuffer(bytes([172, 16, 0, 0]), np.uint8),
            tunnel_vary4=0xFFFF,
            tunnel_source6=layout.pack_address("fd00::"),
            tunnel_vary6=0xFFFF,
        )

    @staticmethod
    def _target(method: Method, family: int, number: int, ifindex: int) -> npt.NDArray[np.void]:
        target = np.zeros((), layout.TARGET)
        target["address"] = layout.pack_address(_BACKENDS[family].format(number))
        target["mac"] = target["source_mac"] = (2, 0, 0, 0, 0, number)
        target["ifindex"], target["service"], target["method"], target["mtu"] = ifindex, SERVICE, int(method), 1500
        target["weight"], target["flags"] = 1, int(TargetFlag.ALIVE | TargetFlag.RESOLVED)
        return target

    def fill(self, family: int, protocol: int, flows: int) -> None:
        """Connections for flow numbers 0 to flows-1, as the wrapper will send them."""
        number = np.arange(flows, dtype=np.uint32)
        keys = np.zeros(flows, layout.FLOW_KEY)
        keys["source"] = layout.pack_address(_CLIENTS[family])
        last = keys["source"][:, 12:].copy().view(">u4")[:, 0] ^ number
        keys["source"][:, 12:] = last.astype(">u4").view(np.uint8).reshape(flows, 4)
        keys["destination"] = layout.pack_address(_VIPS[family])
        keys["source_port"], keys["destination_port"] = 1024 + (number & 0x3FFF), 80
        keys["protocol"] = protocol
        values = np.zeros(flows, layout.CONNECTION)
        values["target"], values["owner"], values["service"] = 1 + number % len(TARGETS), 1, SERVICE
        values["state"] = int(State.ESTABLISHED if protocol == TCP else State.UDP)
        self.maps.connections.update(keys, values)

    def prepare(self, packet: bytes, family: int, mask: int, pick: int) -> None:
        """Tells the wrapper what to send."""
        config = np.zeros(1, _CONFIG)
        config["header"] = np.frombuffer(packet[:HEADER_BYTES], np.uint8)
        config["mask"], config["pick"], config["length"] = mask, pick, len(packet)
        config["address_offset"], config["port_offset"] = (26, 34) if family == 4 else (34, 54)
        config["state"] = 1
        key = np.zeros(1, np.uint32)
        libbpf.update(self.config, key.ctypes.data, config.ctypes.data)

    def choose(self, program: int) -> None:
        """The program under test."""
        key, value = np.zeros(1, np.uint32), np.array([program], np.uint32)
        libbpf.update(self.next, key.ctypes.data, value.ctypes.data)

    def time(self, packet: bytes, repeat: int) -> int:
        """Mean nanoseconds of one repetition."""
        result = test_run.run(self.wrapper, packet, repeat=repeat)
        if result.verdict == test_run.Verdict.ABORTED:
            raise RuntimeError("the benchmark's wrapper could not restore the packet")
        return result.duration_ns

    def close(self) -> None:
        """Unpins everything."""
        self.records.close()
        self.maps.close()
        loader.remove(self.directory)


def tcp_or_udp(family: int, protocol: int, flags: int, destination: str) -> bytes:
    """A minimal frame with valid lengths; checksums are not looked at."""
    source, target = layout.pack_address(_CLIENTS[family]), layout.pack_address(destination)
    ports = (1024).to_bytes(2, "big") + (80).to_bytes(2, "big")
    if protocol == TCP:
        transport = ports + bytes(8) + bytes([0x50, flags, 0xFF, 0xFF]) + bytes(4)
    else:
        transport = ports + (20).to_bytes(2, "big") + bytes(2)
    transport += bytes(60 - len(transport))
    if family == 4:
        total = 20 + len(transport)
        header = b"\x45\0" + total.to_bytes(2, "big") + b"\0\0\x40\0\x40" + bytes([protocol]) + b"\0\0"
        header += source[12:].tobytes() + target[12:].tobytes()
    else:
        header = b"\x60\0\0\0" + len(transport).to_bytes(2, "big") + bytes([protocol, 64])
        header += source.tobytes() + target.tobytes()
    ethertype = b"\x08\x00" if family == 4 else b"\x86\xdd"
    return b"\x02\0\0\0\0\x01\x02\0\0\0\0\x09" + ethertype + header + transport


def net_ns(bench: Bench, packet: bytes, repeat: int, warm_up: int, programs: Sequence[int]) -> list[float]:
    """Median cost of each program less that of the empty one; run in turn, so that all see the same neighbours."""
    figures: dict[int, list[int]] = {program: [] for program in (bench.empty, *programs)}
    for run in range(RUNS + 1):
        for program, found in figures.items():
            bench.choose(program)
            bench.records.drain(1 << 20)
            if run == 0 and warm_up:
                bench.time(packet, warm_up)
            elif run:
                found.append(bench.time(packet, repeat))
    empty = statistics.median(figures[bench.empty])
    return [statistics.median(figures[program]) - empty for program in programs]


def run_case(bench: Bench, case: str, method: Method, family: int, flows: int, quick: bool) -> list[Result]:
    """Measures one combination; with the yardstick's figure where there is one."""
    protocol = UDP if case == "udp-new" else TCP
    flags = SYN if case == "syn" else ACK
    destination = _CLIENTS[family] if case == "not-ours" else _VIPS[family]
    bench.configure(method, family, protocol)
    packet = tcp_or_udp(family, protocol, flags, destination)
    repeat, warm_up = (REPEAT // 4, REPEAT // 2) if quick else (REPEAT, WARM_UP)
    programs = [bench.entry]
    if method is Method.TUNNEL and family == 4 and case in ("hit", "syn"):
        programs.append(bench.yardstick)
    if case == "hit":
        bench.fill(family, protocol, flows)
        bench.prepare(packet, family, flows - 1, PICK_RANDOM)
        warm_up = max(warm_up, 2 * flows)
    elif case == "establish":
        bench.prepare(packet, family, NEW_FLOWS_MASK, PICK_NEXT)
        repeat, warm_up = OPENED_PER_RUN, 0
    else:
        bench.prepare(packet, family, NEW_FLOWS_MASK, PICK_RANDOM)
    cost, *yardstick = net_ns(bench, packet, repeat, warm_up, programs)
    ratio = round(cost / yardstick[0], 2) if yardstick else None
    results = [Result(case, method.name.lower(), family, flows, round(cost, 1), ratio)]
    return results + [Result(case, "yardstick", family, flows, round(each, 1), 1.0) for each in yardstick]


def run_live(bench: Bench, frames: int) -> list[Result]:
    """Packets per second that really leave: one flow each of dsr and tunnel, IPv4, native XDP on a veth pair."""
    results = []
    interface, far = "bench0", "bench1"
    for command in (
        f"ip link add {interface} type veth peer name {far}",
        f"ip link set {interface} address 02:00:00:00:00:01",
        f"ip link set {interface} up",
        f"ip link set {far} up",
    ):
        subprocess.run(command.split(), check=True)
    sink = libbpf.object_get(loader.load_pass_all(bench.directory))
    ifindex = socket.if_nametoindex(interface)
    libbpf.xdp_attach(socket.if_nametoindex(far), sink, libbpf.XDP_FLAGS_DRV)
    loader.attach(interface, bench.directory, loader.Mode.NATIVE)
    for method in (Method.DSR, Method.TUNNEL):
        bench.configure(method, 4, TCP, ifindex)
        bench.fill(4, TCP, 1)
        packet = tcp_or_udp(4, TCP, ACK, _VIPS[4])
        begin = time.perf_counter()
        test_run.live(bench.entry, packet, count=frames, ifindex=ifindex)
        elapsed = time.perf_counter() - begin
        rate = int(frames / elapsed)
        results.append(Result("live", method.name.lower(), 4, 1, round(1e9 / rate, 1), None, rate))
    return results


@contextmanager
def own_network() -> Iterator[None]:
    """A network namespace of its own for the block."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "a network namespace of its own could not be made")
    try:
        yield
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(home)


def combinations(options: argparse.Namespace) -> Iterator[tuple[str, Method, int, int]]:
    """Everything asked for; flows 0 stands for ever new ones."""
    methods = [m for m in Method if not options.method or m.name.lower() in options.method]
    families = [f for f in (4, 6) if not options.family or f in options.family]
    for method in methods:
        for family in families:
            for case in ("hit", "syn", "establish", "udp-new", "not-ours"):
                if options.case and case not in options.case:
                    continue
                for flows in FLOWS if case == "hit" else (0,):
                    if flows <= options.flows_max:
                        yield case, method, family, flows


@contextmanager
def loaded() -> Iterator[Bench]:
    """A benchmark set-up with pins of its own, gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="rainlb-bench-") as name,
        loader.mounted_bpffs(Path(name)) as path,
        closing(Bench(path / "bench")) as bench,
    ):
        yield bench


def report(results: list[Result], quiet: bool) -> list[Result]:
    """Prints lines for people as they come."""
    for result in [] if quiet else results:
        flows = result.flows or "new"
        line = f"{result.case:10} {result.method:9} IPv{result.family} {flows:>8} {result.ns_per_packet:8.1f} ns"
        line += f"  {result.ratio:.2f} of the yardstick" if result.ratio else ""
        line += f"  {result.packets_per_second:,} packets/s" if result.packets_per_second else ""
        print(line, flush=True)
    return results


def main(argv: list[str]) -> int:
    """Prints a table, or with --json a list of objects."""
    parser = argparse.ArgumentParser(prog="packet", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a quarter of the repetitions")
    parser.add_argument("--case", action="append")
    parser.add_argument("--method", action="append")
    parser.add_argument("--family", action="append", type=int)
    parser.add_argument("--flows-max", type=int, default=max(FLOWS))
    options = parser.parse_args(argv)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results: list[Result] = []
    with own_network(), loaded() as bench:
        for case, method, family, flows in combinations(options):
            results += report(run_case(bench, case, method, family, flows, options.quick), options.json)
        if not options.case or "live" in options.case:
            results += report(run_live(bench, LIVE_FRAMES), options.json)
    if options.json:
        json.dump([asdict(result) for result in results], sys.stdout, indent=1)
        print()
    return 0
