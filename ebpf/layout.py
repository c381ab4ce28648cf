# SPDX-License-Identifier: Apache-2.0
"""The numpy view of layout.h: keys, values and records of the maps, and the numbers in them.

layout.h is the definition; ``static_assertions`` turns everything here into C assertions that the loader compiles
together with the packet path, so a difference in any size, offset or constant refuses to load. Addresses are 16
bytes (IPv4 as ``::ffff:a.b.c.d``) and, like ports, in network byte order.
"""

from __future__ import annotations

import ipaddress
import socket
from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt

LAYOUT_VERSION = 1
SERVICE_COUNT_MAX = 4096
TARGET_COUNT_MAX = 16384
NODE_COUNT_MAX = 256
INTERFACE_COUNT_MAX = 256
TABLE_LINE_SLOTS = 32
TABLE_LINES = 2049
TABLE_SLOTS_DEFAULT = 65537
STEERING_TABLE = 0
CLAIM_WORDS = 2048
CLAIM_BITS_LOG2 = 17
SLOT_MOVED = 0x8000
SLOT_TARGET_MASK = 0x7FFF
CAPTURE_BYTES = 256

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Method(IntEnum):
    """How a service reaches its targets."""

    DSR = 1
    TUNNEL = 2
    NAT = 3
    LOCAL = 4


class Scheduler(IntEnum):
    """How a service chooses the target of a new connection."""

    MAGLEV = 1
    ROUND_ROBIN = 2
    LEAST_CONNECTIONS = 3
    SOURCE = 4


class Replicate(IntEnum):
    """Which connections of a service are told to the peers."""

    NONE = 0
    ESTABLISHED = 1
    ALL = 2


class State(IntEnum):
    """State of a connection."""

    SYN = 1
    UDP_ONCE = 2
    ESTABLISHED = 3
    UDP = 4
    FIN_CLIENT = 5
    FIN_SERVER = 6
    CLOSING = 7
    RESET = 8


class Setting(IntFlag):
    """``settings.flags``: what the configuration makes use of."""

    ANY_PORT = 0x1
    NAT = 0x2
    ROUTED = 0x4
    STEERING = 0x8
    RECORDS = 0x10


class ServiceFlag(IntFlag):
    """``service.flags``; see layout.h for when each is due."""

    REMEMBER_NEW = 0x1
    RECHOOSE_DEAD = 0x2
    STEERED = 0x4


class TargetFlag(IntFlag):
    """``target.flags``."""

    ALIVE = 0x1
    DRAINING = 0x2
    RESOLVED = 0x4
    FULL = 0x8
    COUNTED = 0x10


class AddressFlag(IntFlag):
    """``address_entry.flags``."""

    VIP = 0x1
    OWN = 0x2
    HELD = 0x4


class NodeFlag(IntFlag):
    """``node_entry.flags``."""

    MEMBER = 0x1


class RecordKind(IntEnum):
    """``record.kind``."""

    OPENED = 1
    CLOSED = 2
    MOVED = 3


def _dtype(*fields: tuple[Any, ...]) -> np.dtype[np.void]:
    return np.dtype(list(fields), align=True)


ADDRESS = ("u1", (16,))
FLOW_KEY = _dtype(
    ("source", *ADDRESS),
    ("destination", *ADDRESS),
    ("source_port", ">u2"),
    ("destination_port", ">u2"),
    ("protocol", "u1"),
    ("pad", "u1", (3,)),
)
ENDPOINT = _dtype(("address", *ADDRESS), ("port", ">u2"), ("protocol", "u1"), ("pad", "u1"))
CONNECTION = _dtype(
    ("last_seen_s", "u4"),
    ("target", "u2"),
    ("owner", "u1"),
    ("state", "u1"),
    ("service", "u2"),
    ("origin", "u1"),
    ("pad", "u1"),
    ("opened_s", "u4"),
)
RECORD = _dtype(
    ("key", FLOW_KEY), ("value", CONNECTION), ("kind", "u1"), ("node", "u1"), ("replicate", "u1"), ("pad", "u1", (5,))
)
SERVICE = _dtype(
    ("address", *ADDRESS),
    ("port", ">u2"),
    ("protocol", "u1"),
    ("method", "u1"),
    ("scheduler", "u1"),
    ("replicate", "u1"),
    ("flags", "u2"),
    ("table_slots", "u4"),
    ("persistence_s", "u4"),
    ("pad", "u1", (32,)),
)
TARGET = _dtype(
    ("address", *ADDRESS),
    ("mac", "u1", (6,)),
    ("source_mac", "u1", (6,)),
    ("ifindex", "u4"),
    ("port", ">u2"),
    ("service", "u2"),
    ("flags", "u1"),
    ("method", "u1"),
    ("mtu", "u2"),
    ("connections_max", "u4"),
    ("weight", "u2"),
    ("nat_next", "u2"),
    ("vlan", ">u2"),
    ("pad", "u1", (14,)),
)
SETTINGS = _dtype(
    ("hash_seed", "u8", (2,)),
    ("epoch", "u8"),
    ("flags", "u4"),
    ("node", "u1"),
    ("pad", "u1", (3,)),
    ("tunnel_source4", "u1", (4,)),
    ("tunnel_vary4", ">u4"),
    ("tunnel_source6", *ADDRESS),
    ("tunnel_vary6", ">u4"),
    ("admissions_per_s", "u4"),
    ("layout", "u4"),
    ("pad2", "u1", (12,)),
)
TABLE_LINE = _dtype(("slot", "u2", (TABLE_LINE_SLOTS,)))
ADDRESS_KEY = _dtype(("address", *ADDRESS))
ADDRESS_ENTRY = _dtype(("lease_until_ns", "u8"), ("flags", "u4"), ("pad", "u4"))
NODE_ENTRY = _dtype(("address", *ADDRESS), ("flags", "u4"), ("pad", "u4"))
NODE_PATH_KEY = _dtype(("ifindex", "u4"), ("node", "u4"))
NODE_PATH = _dtype(("mac", "u1", (6,)), ("source_mac", "u1", (6,)), ("pad", "u4"))
INTERFACE_MAC = _dtype(("ifindex", "u4"), ("mac", "u1", (6,)), ("pad", "u1", (2,)))
MAC_KEY = _dtype(("mac", "u1", (6,)), ("pad", "u1", (2,)))
TARGET_COUNTER = _dtype(
    ("packets", "u8"),
    ("bytes", "u8"),
    ("opened", "u8"),
    ("closed", "u8"),
    ("refused", "u8"),
    ("unreachable", "u8"),
)
SERVICE_COUNTER = _dtype(("opened", "u8"), ("refused", "u8"), ("steered", "u8"), ("round", "u8"))
REASON_COUNTER = _dtype(("packets", "u8"), ("bytes", "u8"))
TARGET_LOAD = _dtype(("active", "u4"), ("pad", "u4"))
FRAGMENT_KEY = _dtype(
    ("source", *ADDRESS), ("destination", *ADDRESS), ("id", ">u4"), ("protocol", "u1"), ("pad", "u1", (3,))
)
FRAGMENT = _dtype(("source_port", ">u2"), ("destination_port", ">u2"), ("seen_s", "u4"))
PERSISTENCE_KEY = _dtype(("client", *ADDRESS), ("service", "u2"), ("pad", "u2"))
PERSISTENCE = _dtype(("seen_s", "u4"), ("target", "u2"), ("pad", "u2"))
CAPTURE = _dtype(
    ("time_ns", "u8"),
    ("length", "u4"),
    ("kept", "u2"),
    ("verdict", "u1"),
    ("reason", "u1"),
    ("ifindex", "u4"),
    ("service", "u2"),
    ("target", "u2"),
    ("bytes", "u1", (CAPTURE_BYTES,)),
)
CAPTURE_CONTROL = _dtype(("until_ns", "u8"), ("service", "u4"), ("pad", "u4"))
EXPLAIN = _dtype(
    ("verdict", "u1"), ("reason", "u1"), ("service", "u2"), ("target", "u2"), ("owner", "u1"), ("state", "u1")
)
U32 = np.dtype("u4")
U64 = np.dtype("u8")

STRUCTS: dict[str, np.dtype[np.void]] = {
    "flow_key": FLOW_KEY,
    "endpoint": ENDPOINT,
    "connection": CONNECTION,
    "record": RECORD,
    "service": SERVICE,
    "target": TARGET,
    "settings": SETTINGS,
    "table_line": TABLE_LINE,
    "address_key": ADDRESS_KEY,
    "address_entry": ADDRESS_ENTRY,
    "node_entry": NODE_ENTRY,
    "node_path_key": NODE_PATH_KEY,
    "node_path": NODE_PATH,
    "interface_mac": INTERFACE_MAC,
    "mac_key": MAC_KEY,
    "target_counter": TARGET_COUNTER,
    "service_counter": SERVICE_COUNTER,
    "reason_counter": REASON_COUNTER,
    "target_load": TARGET_LOAD,
    "fragment_key": FRAGMENT_KEY,
    "fragment": FRAGMENT,
    "persistence_key": PERSISTENCE_KEY,
    "persistence": PERSISTENCE,
    "capture": CAPTURE,
    "capture_control": CAPTURE_CONTROL,
    "explain": EXPLAIN,
}

_PLAIN_CONSTANTS = {
    name: globals()[name]
    for name in (
        "LAYOUT_VERSION",
        "SERVICE_COUNT_MAX",
        "TARGET_COUNT_MAX",
        "NODE_COUNT_MAX",
        "INTERFACE_COUNT_MAX",
        "TABLE_LINE_SLOTS",
        "TABLE_LINES",
        "TABLE_SLOTS_DEFAULT",
        "STEERING_TABLE",
        "CLAIM_WORDS",
        "CLAIM_BITS_LOG2",
        "SLOT_MOVED",
        "SLOT_TARGET_MASK",
        "CAPTURE_BYTES",
    )
}
_ENUMS: dict[str, type[IntEnum] | type[IntFlag]] = {
    "METHOD": Method,
    "SCHEDULER": Scheduler,
    "REPLICATE": Replicate,
    "STATE": State,
    "SETTING": Setting,
    "SERVICE": ServiceFlag,
    "TARGET": TargetFlag,
    "ADDRESS": AddressFlag,
    "NODE": NodeFlag,
    "RECORD": RecordKind,
}


def constants() -> dict[str, int]:
    """Every number shared with layout.h, by its C name."""
    members = {f"{prefix}_{member.name}": int(member) for prefix, enum in _ENUMS.items() for member in enum}
    return _PLAIN_CONSTANTS | members


def static_assertions() -> str:
    """C source that fails to compile where layout.h and this module differ, naming the struct and field."""
    lines = []
    for name, dtype in STRUCTS.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "layout: size of {name}");')
        assert dtype.fields is not None
        for field, (_, offset, *_rest) in dtype.fields.items():
            where = f"__builtin_offsetof(struct {name}, {field})"
            lines.append(f'_Static_assert({where} == {offset}, "layout: offset of {name}.{field}");')
    for name, value in constants().items():
        lines.append(f'_Static_assert({name} == {value}, "layout: value of {name}");')
    return "\n".join(lines) + "\n"


def pack_address(address: Address | str) -> npt.NDArray[np.uint8]:
    """16 bytes in network order; IPv4 as ::ffff:a.b.c.d."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return np.frombuffer(b"\0" * 10 + b"\xff\xff" + parsed.packed, np.uint8)
    return np.frombuffer(parsed.packed, np.uint8)


def unpack_address(packed: npt.NDArray[np.uint8] | bytes) -> Address:
    """The inverse of ``pack_address``."""
    address = ipaddress.IPv6Address(bytes(packed))
    return address.ipv4_mapped or address


def flow_key(
    source: Address | str, source_port: int, destination: Address | str, destination_port: int, protocol: int
) -> npt.NDArray[np.void]:
    """One connection key, shape ()."""
    key = np.zeros((), FLOW_KEY)
    key["source"], key["destination"] = pack_address(source), pack_address(destination)
    key["source_port"], key["destination_port"], key["protocol"] = source_port, destination_port, protocol
    return key


def endpoint(address: Address | str, port: int, protocol: int) -> npt.NDArray[np.void]:
    """One key of ``services`` or ``nat_return``, shape ()."""
    key = np.zeros((), ENDPOINT)
    key["address"], key["port"], key["protocol"] = pack_address(address), port, protocol
    return key


_MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def claim_bits(endpoints: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The bits of `claims` that stand for packed ENDPOINTs, shape (n,): as hash_endpoint in hash_flow.h."""
    # Whatever byte order numpy has given the ports meanwhile (it does when it joins arrays): as bytes, as in the map.
    words = np.ascontiguousarray(endpoints, ENDPOINT).reshape(-1).view("u4").reshape(-1, 5).astype(np.uint64)
    half = np.uint64(32)
    mixed = (words[:, 0] << half | words[:, 1]) * _MIX_2 ^ (words[:, 2] << half | words[:, 3])
    # The last word is port, protocol and padding, as the packet path puts them together.
    hashes: npt.NDArray[np.uint64] = (mixed ^ words[:, 4] << half) * _MIX_1
    return hashes >> np.uint64(64 - CLAIM_BITS_LOG2)


# "Routed through me" in `services`: everything zero.
ROUTED_ENDPOINT = np.zeros((), ENDPOINT)

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}


def table_lines(slots: npt.NDArray[np.uint16]) -> npt.NDArray[np.void]:
    """Slots (at most TABLE_LINES * TABLE_LINE_SLOTS, uint16) as the TABLE_LINES values of one lookup table."""
    room = TABLE_LINES * TABLE_LINE_SLOTS
    if len(slots) > room:
        raise ValueError(f"a lookup table holds at most {room} slots, {len(slots)} given")
    padded = np.zeros(room, np.uint16)
    padded[: len(slots)] = slots
    return padded.view(TABLE_LINE)
