# SPDX-License-Identifier: Apache-2.0
"""What the packet path has to know of the other gateways: who is a member, how to reach each, who gets new connections.

Everything follows from the committed view and what the nodes say of themselves, so all gateways compute the same
steering table for the same view. Pure rows first, then the writer that puts them into the maps.
"""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import numpy as np
import numpy.typing as npt

from ebpf import layout
from ebpf.layout import NODE_COUNT_MAX, STEERING_TABLE, NodeFlag
from ebpf.map_access import Map
from ebpf.maps import Maps
from lb.cluster.ownership import Cluster, NodeFacts, steering_nodes, working_nodes
from lb.configuration.fields import IpAddress
from lb.engine.backend_table import Choice, maglev

Array = npt.NDArray[Any]
# Tables kept ready for a node leaving; 128 KiB each.
PREPARED_MAX = 16


@dataclass(frozen=True, slots=True)
class LocalLink:
    """An interface of this gateway that carries packets: kernel index, segment, MAC address."""

    index: int
    segment: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class Peering:
    """What the maps are to hold about the gateways."""

    members: frozenset[int]
    sharing: tuple[int, ...]
    tunnel_addresses: tuple[tuple[int, str], ...]
    paths: tuple[tuple[int, int, bytes, bytes], ...]  # ifindex, node, its MAC, our MAC
    macs: tuple[tuple[bytes, int], ...]


def tunnel_end(listen: Iterable[str], addresses: Mapping[str, Iterable[IpAddress]]) -> str:
    """The address at which a gateway takes what peers without a common segment hand over; empty if it has none.

    `listen`: the ring's addresses with ports; `addresses`: the gateway's own, by interface of the packet path. An
    address of the ring comes first: the peers have a route to it, and its next hop is known all the time.
    """
    own = [str(address) for each in addresses.values() for address in each]
    ring = [str(ip_address(text.rpartition(":")[0].strip("[]"))) for text in listen]
    return next((address for address in ring if address in own), own[0] if own else "")


def peering(cluster: Cluster, node: int, links: Iterable[LocalLink]) -> Peering:
    """What follows from the cluster's state for this gateway."""
    # Where nobody may serve, each is left to itself: with steering off, answers of connections that it was not told of
    # would leave untranslated, and their clients would reset them.
    members = frozenset(working_nodes(cluster)) or frozenset({node})
    sharing = tuple(steering_nodes(cluster)) or (node,)
    facts = {number: cluster.facts.get(number, NodeFacts()) for number in sorted(cluster.members)}
    paths, macs = [], []
    for number, fact in facts.items():
        if number == node:
            continue
        for segment, mac in fact.macs:
            if len(mac) == 6:
                macs.append((mac, number))
                paths += [(link.index, number, mac, link.mac) for link in links if link.segment == segment]
    tunnels = tuple((number, fact.tunnel_address) for number, fact in facts.items() if fact.tunnel_address)
    return Peering(members, sharing, tunnels, tuple(paths), tuple(macs))


def steering_slots(sharing: Iterable[int]) -> Array:
    """The steering table: Maglev over the nodes, keyed by their ids, so that it does not depend on names or order."""
    return maglev([Choice(number, f"node {number}", 1) for number in sharing]).astype(np.uint16)


class SteeringWriter:
    """Puts a peering into the maps.

    Making a table takes some ten milliseconds of a worker; those for the cases that must be quick, one of the nodes
    leaving, are made beforehand (`prepare`). Packets see a table as soon as it is written; the call returns only when
    no packet can be using the one before, which takes the kernel a while (about ten milliseconds).
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._sharing: tuple[int, ...] | None = None
        self._prepared: dict[tuple[int, ...], Array] = {}
        self._lock = threading.Lock()
        self.tables_written = 0

    def write(self, wanted: Peering) -> bool:
        """Make the maps hold `wanted`; True when the steering table changed. Blocks, also for the kernel."""
        with self._lock:
            self._write_ways(wanted)
            return self._write_table(wanted.sharing)

    def write_ways(self, wanted: Peering) -> bool:
        """Who is a member and the ways there, without the table: never blocks. False when a table is being written."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._write_ways(wanted)
        finally:
            self._lock.release()
        return True

    def prepare(self, present: Peering) -> None:
        """Make the tables for any one of the sharing nodes leaving."""
        with self._lock:
            less = [tuple(n for n in present.sharing if n != gone) for gone in present.sharing]
            wanted = [sharing for sharing in less[:PREPARED_MAX] if sharing]
            kept = {sharing: self._prepared[sharing] for sharing in wanted if sharing in self._prepared}
        for sharing in wanted:
            if sharing not in kept:
                kept[sharing] = steering_slots(sharing)
        with self._lock:
            self._prepared = kept

    def _write_ways(self, wanted: Peering) -> None:
        self._write_nodes(wanted)
        _exactly(self._maps.node_paths, *_path_rows(wanted))
        _exactly(self._maps.peer_macs, *_mac_rows(wanted))
        _exactly(self._maps.peer_addresses, *_address_rows(wanted))

    def _write_table(self, sharing: tuple[int, ...]) -> bool:
        # After the ways: nothing is sent where the way is not known yet.
        if sharing == self._sharing:
            return False
        slots = self._prepared.get(sharing)
        self._maps.replace_table(STEERING_TABLE, slots if slots is not None else steering_slots(sharing))
        self._sharing = sharing
        self.tables_written += 1
        return True

    def _write_nodes(self, wanted: Peering) -> None:
        rows = np.zeros(NODE_COUNT_MAX, layout.NODE_ENTRY)
        for number, address in wanted.tunnel_addresses:
            rows["address"][number] = layout.pack_address(address)
        rows["flags"][sorted(wanted.members)] = NodeFlag.MEMBER
        self._maps.nodes.update(np.arange(NODE_COUNT_MAX, dtype=np.uint32), rows)


def _path_rows(wanted: Peering) -> tuple[Array, Array]:
    keys = np.zeros(len(wanted.paths), layout.NODE_PATH_KEY)
    values = np.zeros(len(wanted.paths), layout.NODE_PATH)
    for row, (index, number, mac, own) in enumerate(wanted.paths):
        keys[row] = (index, number)
        values["mac"][row], values["source_mac"][row] = np.frombuffer(mac, np.uint8), np.frombuffer(own, np.uint8)
    return keys, values


def _mac_rows(wanted: Peering) -> tuple[Array, Array]:
    keys = np.zeros(len(wanted.macs), layout.MAC_KEY)
    for row, (mac, _) in enumerate(wanted.macs):
        keys["mac"][row] = np.frombuffer(mac, np.uint8)
    return keys, np.array([number for _, number in wanted.macs], np.uint32)


def _address_rows(wanted: Peering) -> tuple[Array, Array]:
    keys = np.zeros(len(wanted.tunnel_addresses), layout.ADDRESS_KEY)
    for row, (_, address) in enumerate(wanted.tunnel_addresses):
        keys["address"][row] = layout.pack_address(address)
    return keys, np.array([number for number, _ in wanted.tunnel_addresses], np.uint32)


def _exactly(target: Map, keys: Array, values: Array) -> None:
    """Make a hash map hold these entries and no others; what stays is never absent in between."""
    target.update(keys, values)
    present, _ = target.dump()
    wanted = {key.tobytes() for key in keys}
    gone = [key.tobytes() not in wanted for key in present]
    if any(gone):
        target.delete(present[np.array(gone)])
