# SPDX-License-Identifier: Apache-2.0
"""The transport's datagrams as scapy layers: `load_layer`-style import of this module binds them to UDP port 7400.

    >>> from scapy.all import rdpcap
    >>> import tools.decode.layers
    >>> rdpcap("ring.pcap")[0].show()

Field by field as in `sync/transport/wire.py`, from which the lengths are taken; a test keeps both in step.
"""

from typing import Any, ClassVar

from scapy.fields import (
    ByteEnumField,
    ByteField,
    ConditionalField,
    FieldLenField,
    FieldListField,
    FlagsField,
    IntField,
    LongField,
    ShortField,
    StrFixedLenField,
    StrLenField,
    XIntField,
    XLongField,
    XShortField,
    XStrFixedLenField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw, bind_layers

from sync.transport import wire

PORT = 7400
KINDS = {
    wire.WHOLE: "whole",
    wire.SEGMENT: "segment",
    wire.ACK: "ack",
    wire.HELLO: "hello",
    wire.UNRELIABLE: "unreliable",
}


def _is(*kinds: int) -> Any:
    return lambda packet: packet.kind in kinds


class RingDatagram(Packet):  # type: ignore[misc]
    """One datagram. `tag` is what is split off its end; the tag of a segmented payload travels in the slices."""

    name = "rainlb ring"
    fields_desc: ClassVar[list[Any]] = [
        ByteField("version", wire.VERSION),
        ByteEnumField("kind", wire.WHOLE, KINDS),
        ByteField("source", 1),
        ByteField("destination", 2),
        XIntField("cluster", 0),
        XShortField("key_id", 0),
        XLongField("source_incarnation", 1),
        XLongField("destination_incarnation", 0),
        LongField("sequence", 1),
        # WHOLE and SEGMENT
        ConditionalField(ShortField("floor_distance", 0), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(IntField("message_floor_distance", 0), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(ByteField("channel", 0), _is(wire.WHOLE, wire.SEGMENT, wire.UNRELIABLE)),
        ConditionalField(FlagsField("flags", 0, 8, ["prompt"]), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(ShortField("segment_size", 0), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(ShortField("length", 0), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(LongField("message", 1), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(IntField("message_length", 0), _is(wire.WHOLE, wire.SEGMENT)),
        ConditionalField(IntField("offset", 0), _is(wire.WHOLE, wire.SEGMENT)),
        # SEGMENT
        ConditionalField(XStrFixedLenField("header_tag", bytes(wire.TAG_LENGTH), wire.TAG_LENGTH), _is(wire.SEGMENT)),
        ConditionalField(ByteField("index", 0), _is(wire.SEGMENT)),
        ConditionalField(FlagsField("segment_flags", 0, 8, ["ask"]), _is(wire.SEGMENT)),
        # ACK
        ConditionalField(LongField("low", 0), _is(wire.ACK)),
        ConditionalField(FieldLenField("done_size", None, length_of="done", fmt="H"), _is(wire.ACK)),
        ConditionalField(FieldLenField("report_count", None, count_of="reports", fmt="B"), _is(wire.ACK)),
        ConditionalField(StrLenField("done", b"", length_from=lambda packet: packet.done_size), _is(wire.ACK)),
        ConditionalField(
            FieldListField(
                "reports",
                [],
                StrFixedLenField("report", bytes(16), 16),
                count_from=lambda packet: packet.report_count,
            ),
            _is(wire.ACK),
        ),
        # HELLO
        ConditionalField(XLongField("challenge", 0), _is(wire.HELLO)),
        ConditionalField(XLongField("echo", 0), _is(wire.HELLO)),
    ]
    tag = b""

    def pre_dissect(self, data: bytes) -> bytes:
        """Take the tag off the end of every kind but SEGMENT."""
        if len(data) > wire.PREFIX_LENGTH + wire.TAG_LENGTH and data[1] != wire.SEGMENT:
            self.tag = data[-wire.TAG_LENGTH :]
            return data[: -wire.TAG_LENGTH]
        return data

    def post_dissect(self, data: bytes) -> bytes:
        """Build anew when asked for bytes: what scapy keeps of the dissection lacks the tag."""
        self.raw_packet_cache = None
        return data

    def post_build(self, header: bytes, payload: bytes) -> bytes:
        return header + payload + self.tag

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        return Raw  # type: ignore[no-any-return]


bind_layers(UDP, RingDatagram, dport=PORT)
bind_layers(UDP, RingDatagram, sport=PORT)
