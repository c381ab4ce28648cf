# SPDX-License-Identifier: Apache-2.0
"""Numbers of ctnetlink's messages and attributes (linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, netlink.h)."""

import struct
from enum import IntEnum
from typing import Final

HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port of who asked
GENERIC: Final = struct.Struct("!BBH")  # family, version, resource
ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
BODY: Final = HEADER.size + GENERIC.size

NLM_F_REQUEST, NLM_F_DUMP, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x300, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF
SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK


class Type(IntEnum):
    """Message types, the subsystem included."""

    NEW = SUBSYSTEM | 0
    GET = SUBSYSTEM | 1
    DELETE = SUBSYSTEM | 2
    GET_STATS = SUBSYSTEM | 5


class Group(IntEnum):
    """Multicast groups of events."""

    UPDATE = 2
    DESTROY = 3


class Cta(IntEnum):
    """Attributes of an entry."""

    TUPLE_ORIG = 1
    TUPLE_REPLY = 2
    STATUS = 3
    PROTOINFO = 4
    NAT_SRC = 6
    TIMEOUT = 7
    MARK = 8
    NAT_DST = 13
    ZONE = 18
    STATUS_MASK = 26


class Tuple(IntEnum):
    """Inside TUPLE_ORIG and TUPLE_REPLY."""

    IP = 1
    PROTO = 2
    ZONE = 3


class Ip(IntEnum):
    """Inside a tuple's IP."""

    V4_SRC = 1
    V4_DST = 2
    V6_SRC = 3
    V6_DST = 4


class Proto(IntEnum):
    """Inside a tuple's PROTO."""

    NUM = 1
    SRC_PORT = 2
    DST_PORT = 3


class Info(IntEnum):
    """Inside PROTOINFO, and inside its TCP."""

    TCP = 1
    STATE = 1
    WSCALE_ORIGINAL = 2
    WSCALE_REPLY = 3
    FLAGS_ORIGINAL = 4
    FLAGS_REPLY = 5


class Nat(IntEnum):
    """Inside NAT_SRC and NAT_DST; the ports are inside PROTO."""

    V4_MINIP = 1
    V4_MAXIP = 2
    PROTO = 3
    V6_MINIP = 4
    V6_MAXIP = 5
    PORT_MIN = 1
    PORT_MAX = 2


class TcpFlag(IntEnum):
    """Bits of FLAGS_ORIGINAL and FLAGS_REPLY."""

    WINDOW_SCALE = 0x01
    SACK_PERMITTED = 0x02
    BE_LIBERAL = 0x08
