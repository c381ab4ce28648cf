# SPDX-License-Identifier: Apache-2.0
"""Connection tables of a lab's gateways, through the pinned maps: made in bulk, and compared.

What a hundred thousand clients would need minutes for is written in one batch; from then on it is the gateways' own
business, as after packets.
"""

import time
from hashlib import sha256

import numpy as np

from ebpf.layout import CONNECTION, FLOW_KEY, SLOT_TARGET_MASK, STEERING_TABLE, State, endpoint, pack_address
from ebpf.maps import Maps
from netlab.lab import Lab
from netlab.state import LabError

TCP = 6
PORTS_PER_CLIENT = 50_000
PORT_FIRST = 1024


def _maps(lab: Lab, node: str) -> Maps:
    return Maps.open(lab.directory / node / "run" / "bpf" / node / "maps")


def make(lab: Lab, nodes: list[str], count: int, address: str, port: int) -> None:
    """Give these gateways the same `count` established TCP connections to a service; the first gateway owns them."""
    service, targets = _service(lab, nodes[0], address, port)
    owner = lab.topology.node(nodes[0]).number
    numbers = np.arange(count)
    keys, values = np.zeros(count, FLOW_KEY), np.zeros(count, CONNECTION)
    keys["source"][:] = pack_address("10.192.0.0")
    client = numbers // PORTS_PER_CLIENT
    keys["source"][:, 14], keys["source"][:, 15] = client >> 8, client & 0xFF
    keys["source_port"] = PORT_FIRST + numbers % PORTS_PER_CLIENT
    keys["destination"][:] = pack_address(address)
    keys["destination_port"], keys["protocol"] = port, TCP
    values["target"] = np.array(targets)[numbers % len(targets)]
    values["service"], values["owner"], values["state"] = service, owner, State.ESTABLISHED
    values["last_seen_s"] = values["opened_s"] = int(time.monotonic())
    for node in nodes:
        maps = _maps(lab, node)
        maps.connections.update(keys, values)
        maps.close()


def _service(lab: Lab, node: str, address: str, port: int) -> tuple[int, list[int]]:
    """The cluster-wide ids of a service and of its targets, as the packet path has them."""
    maps = _maps(lab, node)
    try:
        number, targets = maps.services.get(endpoint(address, port, TCP)), maps.targets.dump()[1]
    finally:
        maps.close()
    if number is None:
        raise LabError(f"{node} has no TCP service at {address} port {port}")
    return int(number), [int(each) for each in np.flatnonzero(targets["service"] == int(number))]


def digest(lab: Lab, node: str) -> tuple[int, str]:
    """How many established TCP connections a gateway has, and a hash of where each of them goes."""
    maps = _maps(lab, node)
    try:
        keys, values = maps.connections.dump()
    finally:
        maps.close()
    live = values["state"] == State.ESTABLISHED
    meant = np.stack([values[name][live].astype(np.uint32) for name in ("target", "owner", "service")], axis=1)
    rows = [key.tobytes() + value.tobytes() for key, value in zip(keys[live], meant, strict=True)]
    return len(rows), sha256(b"".join(sorted(rows))).hexdigest()


def sharing(lab: Lab, node: str) -> set[str]:
    """The gateways to which a gateway's packet path leads new connections of the gateways themselves."""
    maps = _maps(lab, node)
    try:
        slots = maps.read_table(STEERING_TABLE)
    finally:
        maps.close()
    numbers = set() if slots is None else {int(each) for each in np.unique(slots & SLOT_TARGET_MASK)}
    return {gateway.name for gateway in lab.gateways if gateway.number in numbers}
