# SPDX-License-Identifier: Apache-2.0
"""What the kernel drops before it wakes this process: a classic BPF program on the socket of conntrack events.

Let through: changes of assured entries, and deletions that somebody asked for. An entry that ends by itself ends by
itself at peers too, which have its timeout. What this daemon writes (`own_port`) goes no further: a peer said it.
"""

import socket
import struct

from lb.conntrack.attributes import BODY, Cta, Type
from lb.conntrack.entries import Status

_LOAD_WORD, _LOAD_HALF, _LOAD_WORD_AT = 0x20, 0x28, 0x40  # BPF_LD | BPF_W or BPF_H | BPF_ABS; BPF_W | BPF_IND
_LOAD_VALUE, _LOAD_INDEX, _TO_INDEX = 0x00, 0x01, 0x07  # BPF_LD | BPF_IMM, BPF_LDX | BPF_IMM, BPF_MISC | BPF_TAX
_IF_EQUAL, _IF_SET, _RETURN = 0x15, 0x45, 0x06
# A pseudo-address: searches for the attribute numbered X from offset A on (SKF_AD_OFF + SKF_AD_NLATTR).
_FIND_ATTRIBUTE = 0xFFFFF000 + 12
_TYPE_AT, _PORT_AT, _VALUE_IN_ATTRIBUTE = 4, 12, 4
_ALL = 0xFFFFFFFF


def event_filter(own_port: int) -> bytes:
    """The program, as SO_ATTACH_FILTER takes it. Loads are in network order; the header is in the host's."""
    # A jump's two numbers are how many instructions to leave out if it holds, and if it does not.
    steps = [
        (_LOAD_WORD, 0, 0, _PORT_AT),
        (_IF_EQUAL, 9, 0, socket.htonl(own_port)),
        (_LOAD_HALF, 0, 0, _TYPE_AT),
        (_IF_EQUAL, 8, 0, socket.htons(Type.DELETE)),
        (_LOAD_VALUE, 0, 0, BODY),
        (_LOAD_INDEX, 0, 0, Cta.STATUS),
        (_LOAD_WORD, 0, 0, _FIND_ATTRIBUTE),
        (_IF_EQUAL, 3, 0, 0),
        (_TO_INDEX, 0, 0, 0),
        (_LOAD_WORD_AT, 0, 0, _VALUE_IN_ATTRIBUTE),
        (_IF_SET, 3, 0, Status.ASSURED),
        (_RETURN, 0, 0, 0),
        (_LOAD_WORD, 0, 0, _PORT_AT),
        (_IF_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, _ALL),
        (_RETURN, 0, 0, 0),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
