# SPDX-License-Identifier: Apache-2.0
"""The pinned maps of the packet path: what each is for, its kind, its key and value, and its size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ebpf import layout, libbpf


@dataclass(frozen=True)
class MapSpec:
    """One pinned map; ``max_entries`` is a default where the loader takes sizes."""

    kind: int
    key: np.dtype[Any]
    value: np.dtype[Any]
    max_entries: int
    purpose: str
    flags: int = 0


_HASH, _ARRAY, _LRU = libbpf.MAP_HASH, libbpf.MAP_ARRAY, libbpf.MAP_LRU_HASH
_PERCPU, _RING = libbpf.MAP_PERCPU_ARRAY, libbpf.MAP_RINGBUF
_L = layout
SPECS: Mapping[str, MapSpec] = {
    "settings": MapSpec(_ARRAY, _L.U32, _L.SETTINGS, 1, "what holds for the whole gateway; read for every packet"),
    "services": MapSpec(_HASH, _L.ENDPOINT, _L.U32, _L.SERVICE_COUNT_MAX, "address, port, protocol to service id"),
    "service_table": MapSpec(_ARRAY, _L.U32, _L.SERVICE, _L.SERVICE_COUNT_MAX, "services by id"),
    "targets": MapSpec(_ARRAY, _L.U32, _L.TARGET, _L.TARGET_COUNT_MAX, "backends of services by target id"),
    "tables": MapSpec(
        libbpf.MAP_ARRAY_OF_MAPS,
        _L.U32,
        _L.U32,
        _L.SERVICE_COUNT_MAX,
        "lookup table of each service; index 0 is the steering table",
    ),
    "nat_return": MapSpec(_HASH, _L.ENDPOINT, _L.U32, _L.TARGET_COUNT_MAX, "nat backend to its (first) target id"),
    "claims": MapSpec(_ARRAY, _L.U32, _L.U64, _L.CLAIM_WORDS, "endpoints of the two above as bits: no bit, nobody's"),
    "connections": MapSpec(_LRU, _L.FLOW_KEY, _L.CONNECTION, 1 << 20, "connections that are more than a first packet"),
    "half_open": MapSpec(_LRU, _L.FLOW_KEY, _L.CONNECTION, 1 << 16, "first packets whose target must be remembered"),
    "fragments": MapSpec(_LRU, _L.FRAGMENT_KEY, _L.FRAGMENT, 1 << 13, "ports of fragmented packets"),
    "persistence": MapSpec(_LRU, _L.PERSISTENCE_KEY, _L.PERSISTENCE, 1 << 16, "client and service to target"),
    "addresses": MapSpec(_HASH, _L.ADDRESS_KEY, _L.ADDRESS_ENTRY, 4096, "VIPs and own addresses"),
    "lease": MapSpec(_ARRAY, _L.U32, _L.U64, 1, "until when this node may answer for the VIPs it holds, ns"),
    "nodes": MapSpec(_ARRAY, _L.U32, _L.NODE_ENTRY, _L.NODE_COUNT_MAX, "gateways of the cluster by node id"),
    "node_paths": MapSpec(_HASH, _L.NODE_PATH_KEY, _L.NODE_PATH, 4096, "interface and node to its MAC address there"),
    "interface_macs": MapSpec(
        _ARRAY, _L.U32, _L.INTERFACE_MAC, _L.INTERFACE_COUNT_MAX, "own MAC address by interface index modulo the size"
    ),
    "peer_macs": MapSpec(_HASH, _L.MAC_KEY, _L.U32, 4096, "MAC address to the peer that has it"),
    "peer_addresses": MapSpec(_HASH, _L.ADDRESS_KEY, _L.U32, 1024, "tunnel source to the peer that has it"),
    "target_load": MapSpec(_ARRAY, _L.U32, _L.TARGET_LOAD, _L.TARGET_COUNT_MAX, "active connections, where counted"),
    "target_counters": MapSpec(_PERCPU, _L.U32, _L.TARGET_COUNTER, _L.TARGET_COUNT_MAX, "traffic per target"),
    "service_counters": MapSpec(_PERCPU, _L.U32, _L.SERVICE_COUNTER, _L.SERVICE_COUNT_MAX, "events per service"),
    "reason_counters": MapSpec(_PERCPU, _L.U32, _L.REASON_COUNTER, 64, "packets per reason"),
    "records": MapSpec(_RING, _L.U32, _L.RECORD, 1 << 22, "replication records"),
    "capture_control": MapSpec(_ARRAY, _L.U32, _L.CAPTURE_CONTROL, 1, "turns the mirror on for a while"),
    "explain": MapSpec(_ARRAY, _L.U32, _L.EXPLAIN, 1, "what lb_where found out last"),
    "captures": MapSpec(_RING, _L.U32, _L.CAPTURE, 1 << 20, "mirrored packets, while asked for"),
}


def create(spec: MapSpec, name: str, max_entries: int) -> int:
    """A new unpinned map; returns its descriptor."""
    if spec.kind == libbpf.MAP_RINGBUF:
        return libbpf.map_create(spec.kind, name, 0, 0, max_entries)
    if spec.kind == libbpf.MAP_ARRAY_OF_MAPS:
        template = create_table()
        try:
            return libbpf.map_create(spec.kind, name, spec.key.itemsize, 4, max_entries, inner_fd=template)
        finally:
            os.close(template)
    return libbpf.map_create(spec.kind, name, spec.key.itemsize, spec.value.itemsize, max_entries, spec.flags)


def create_table() -> int:
    """An empty lookup table for one slot of ``tables``."""
    return libbpf.map_create(libbpf.MAP_ARRAY, "table", 4, layout.TABLE_LINE.itemsize, layout.TABLE_LINES)


_KIND_NAMES = {
    libbpf.MAP_HASH: "hash",
    libbpf.MAP_ARRAY: "array",
    libbpf.MAP_LRU_HASH: "LRU hash",
    libbpf.MAP_PERCPU_ARRAY: "array per CPU",
    libbpf.MAP_ARRAY_OF_MAPS: "array of arrays",
    libbpf.MAP_RINGBUF: "ring buffer",
}


def markdown() -> str:
    """The table of docs/packet-path.md."""
    head = "| map | kind | entries (default) | what for |\n|---|---|---|---|\n"
    rows = (
        f"| `{name}` | {_KIND_NAMES[spec.kind]} | {spec.max_entries} | {spec.purpose} |\n"
        for name, spec in SPECS.items()
    )
    return head + "".join(rows)
