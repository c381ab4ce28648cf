# SPDX-License-Identifier: Apache-2.0
"""How the work spreads when gateways are added: `python -m tools.bench scaling`.

Traffic for the gateways themselves (`local`) comes in over one VIP per gateway. A packet whose connection belongs to
another gateway is handed on once: that is the price of being several. Measured with the real packet path and steering
tables: which part of the connections is handed on (from counters), and what the path costs for a packet that is handed
on and for one that stays (TEST_RUN). With what a gateway then does with the packet (`--handling-ns`; the default is
plain kernel forwarding as measured on two cores) this gives the work per node and the efficiency, work at one
node ÷ (n × work per node). Two cores cannot show eight gateways side by side, so there is no wall-clock figure.
"""

import argparse
import json
import os
import statistics
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ebpf import layout, loader, test_run
from ebpf.layout import Method, Replicate, ServiceFlag, Setting
from ebpf.maps import Maps
from ebpf.reasons import BY_NAME
from lb.cluster.ownership import Cluster, NodeFacts
from lb.cluster.placement import Standing
from lb.cluster.steering import LocalLink, SteeringWriter, peering

NODE, SERVICE, LOOPBACK = 1, 1, 1
VIP, PORT = "10.0.1.100", 80
NODE_COUNTS = (1, 2, 4, 8)
# Plain kernel forwarding of a 64-byte packet on the machine the other figures come from.
HANDLING_NS = 990.0
REPEAT, RUNS = 100_000, 7


@contextmanager
def packet_path() -> Iterator[tuple[Maps, int]]:
    """A packet path of its own, and its entry program; gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="rainlb-scaling-") as name,
        loader.mounted_bpffs(Path(name)) as bpffs,
    ):
        maps = loader.create_maps(bpffs / "node/maps", {"connections": 1 << 16, "half_open": 1 << 10})
        loader.load_programs(bpffs / "node")
        entry = loader.open_program(bpffs / "node")
        yield maps, entry
        os.close(entry)
        maps.close()


def configure(maps: Maps) -> None:
    """One service on the gateways themselves."""
    row = np.zeros((), layout.SERVICE)
    row["address"], row["port"], row["protocol"] = layout.pack_address(VIP), PORT, layout.PROTOCOLS["tcp"]
    row["method"], row["replicate"], row["flags"] = Method.LOCAL, Replicate.ESTABLISHED, ServiceFlag.STEERED
    maps.service_table.set(SERVICE, row)
    maps.services.set(layout.endpoint(VIP, PORT, layout.PROTOCOLS["tcp"]), SERVICE)
    maps.change_settings(node=NODE, flags=int(Setting.STEERING), hash_seed=(1, 2))


def mac(node: int) -> bytes:
    """The MAC address of a gateway here."""
    return bytes([2, 0, 0, 0, 1, node])


def form_cluster(maps: Maps, count: int) -> None:
    """The steering of a cluster of `count` ready gateways, seen from the first."""
    facts = {n: NodeFacts(f"gw{n}", int(Standing.READY), "", ("lan",), (("lan", mac(n)),)) for n in range(1, count + 1)}
    cluster = Cluster(frozenset(facts), True, facts, frozenset(), {}, ())
    SteeringWriter(maps).write(peering(cluster, NODE, [LocalLink(LOOPBACK, "lan", mac(NODE))]))
    maps.change_settings()


def segment(client: int) -> bytes:
    """A TCP segment with ACK of one of many clients."""
    source = struct.pack("!I", (10 << 24) + 0x640000 + client)
    ethernet = bytes.fromhex("020000000101") + bytes.fromhex("020000000999") + b"\x08\x00"
    tcp = struct.pack("!HHIIBBHHH", 1024 + client % 60000, PORT, 1, 1, 0x50, 0x10, 65535, 0, 0)
    address = bytes(int(part) for part in VIP.split("."))
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, source, address)
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    return (ethernet + ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:] + tcp).ljust(64, b"\0")


def counted(maps: Maps, name: str) -> int:
    """Packets counted under a reason."""
    value = maps.reason_counters.get(BY_NAME[name].number)
    return int(value["packets"].sum()) if value is not None else 0


def sort_clients(maps: Maps, entry: int, clients: int) -> tuple[list[int], list[int]]:
    """Clients whose connection stays here, and those whose packets are handed on, by the path's own counters."""
    stay: list[int] = []
    go: list[int] = []
    for client in range(clients):
        before = counted(maps, "SENT_STEERED")
        test_run.run(entry, segment(client))
        (go if counted(maps, "SENT_STEERED") > before else stay).append(client)
    return stay, go


def cost_ns(entry: int, client: int) -> float:
    """Median nanoseconds of the path for one connection's packets."""
    packet = segment(client)
    return statistics.median(test_run.run(entry, packet, repeat=REPEAT).duration_ns for _ in range(RUNS))


def measure(clients: int, handling_ns: float) -> list[dict[str, Any]]:
    """One row per cluster size."""
    rows: list[dict[str, Any]] = []
    with packet_path() as (maps, entry):
        configure(maps)
        for count in NODE_COUNTS:
            maps.connections.clear()
            form_cluster(maps, count)
            stay, go = sort_clients(maps, entry, clients)
            stays_ns = cost_ns(entry, stay[0])
            handed_ns = cost_ns(entry, go[0]) if go else 0.0
            part = len(go) / clients
            # A packet that is handed on is seen twice: by who received it and by who handles it.
            per_packet = stays_ns + handling_ns + part * handed_ns
            alone = rows[0]["work_ns_per_packet"] if rows else per_packet
            rows.append(
                {
                    "nodes": count,
                    "handed_on": round(part, 4),
                    "packets_seen_per_packet": round(1 + part, 4),
                    "path_stays_ns": stays_ns,
                    "path_handed_on_ns": handed_ns,
                    "work_ns_per_packet": round(per_packet, 1),
                    "work_ns_per_node": round(per_packet / count, 1),
                    "efficiency": round(alone / per_packet, 4),
                    "throughput": round(count * alone / per_packet, 2),
                }
            )
    return rows


def main(arguments: list[str]) -> int:
    """Run and print one JSON document."""
    parser = argparse.ArgumentParser(prog="bench scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=4000)
    parser.add_argument("--handling-ns", type=float, default=HANDLING_NS)
    parser.add_argument("--json", action="store_true", help="on one line")
    options = parser.parse_args(arguments)
    rows = measure(options.clients, options.handling_ns)
    print(json.dumps({"handling_ns": options.handling_ns, "rows": rows}, indent=None if options.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
