# SPDX-License-Identifier: Apache-2.0
"""Entries of the kernel's connection tracking: on the ring, from and to ctnetlink's messages, and what peers know."""

import struct
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.connections.batch import HEADER_BYTES
from lb.conntrack.attributes import BODY, GENERIC, HEADER, Cta, Type
from lb.conntrack.entries import (
    ENTRY,
    SEED_BYTES,
    Entries,
    EntriesError,
    Hasher,
    Kind,
    Status,
    TcpState,
    hash_addresses,
    latest,
    pack_addresses,
    pack_entries,
    to_tell,
    unpack_entries,
    well_formed,
)
from lb.conntrack.parsing import SHAPES_MAX, Parser, attributes_of
from lb.conntrack.requests import Ask, Rows, requests
from lb.conntrack.told import LEEWAY_S, Told

CLIENT, SERVER, VIP = "10.0.1.10", "10.0.2.20", "10.0.2.100"
HASHER = Hasher(bytes(range(SEED_BYTES)))


def some_entries(count: int, **values: object) -> Entries:
    """Established TCP connections from one client to one server; `values` replace fields."""
    entries = np.zeros(count, ENTRY)
    ends = pack_addresses([ip_address(CLIENT), ip_address(SERVER)])
    entries["source"], entries["destination"] = ends
    entries["reply_source"], entries["reply_destination"] = ends[::-1]
    entries["source_port"] = entries["reply_destination_port"] = np.arange(count) + 1024
    entries["destination_port"] = entries["reply_source_port"] = 443
    entries["family"], entries["protocol"], entries["kind"] = AF_INET, IPPROTO_TCP, Kind.CHANGED
    entries["tcp_state"], entries["status"] = TcpState.ESTABLISHED, Status.SEEN_REPLY | Status.ASSURED
    entries["timeout_s"], entries["mark"] = 1000, 7
    entries["scale"], entries["reply_scale"], entries["tcp_flags"], entries["reply_tcp_flags"] = 7, 9, 3, 1
    for name, value in values.items():
        entries[name] = value
    return entries


def v6_entries(count: int, **values: object) -> Entries:
    ends = pack_addresses([ip_address("fd00:1::10"), ip_address("fd00:2::20")])
    given = {"source": ends[0], "destination": ends[1], "reply_source": ends[1], "reply_destination": ends[0]}
    return some_entries(count, family=AF_INET6, **given, **values)


def udp_entries(count: int, **values: object) -> Entries:
    of_tcp = dict.fromkeys(("tcp_state", "scale", "reply_scale", "tcp_flags", "reply_tcp_flags"), 0)
    return some_entries(count, **{"protocol": IPPROTO_UDP, "timeout_s": 120} | of_tcp | values)


def messages_of(ask: Ask, entries: Entries) -> list[bytes]:
    """Each entry's request, in the entries' order."""
    found: dict[int, bytes] = {}
    for rows, places in requests(ask, entries):
        found.update({int(place): rows[row].tobytes() for row, place in enumerate(places)})
    return [found[place] for place in range(len(entries))]


def read(messages: list[bytes], parser: Parser | None = None) -> Entries:
    """What a parser makes of messages that lie behind each other."""
    starts = np.cumsum([0, *(len(message) for message in messages)])[:-1].astype(np.intp)
    lengths = np.array([len(message) for message in messages], np.intp)
    buffer = np.frombuffer(b"".join(messages) + bytes(8), np.uint8)
    return (parser or Parser()).read(buffer, starts, lengths)


# --- on the ring -----------------------------------------------------------------------------------------------------


def test_round_trip_also_from_a_strided_array() -> None:
    entries = some_entries(10)
    assert unpack_entries(pack_entries(entries[::3])).tobytes() == entries[::3].tobytes()


def test_the_layout_on_the_ring_is_not_that_of_the_machine() -> None:
    entries = some_entries(1).astype(ENTRY.newbyteorder(">"))
    assert pack_entries(entries) == pack_entries(some_entries(1))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "0 bytes are too few"),
        (b"CR" + pack_entries(some_entries(1))[2:], "not a message of this kind"),
        (b"KT\x63\x00" + pack_entries(some_entries(1))[4:], "upgrade the older gateway"),
        (pack_entries(some_entries(1))[:-1], "1 entries announced in 103 bytes"),
        (pack_entries(some_entries(1)) + b"\0", "1 entries announced in 105 bytes"),
    ],
)
def test_a_wrong_message_is_refused_with_the_reason(message: bytes, complaint: str) -> None:
    with pytest.raises(EntriesError, match=complaint):
        unpack_entries(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 0),
        ("kind", 4),
        ("family", 7),
        ("protocol", IPPROTO_ICMP),
        ("protocol", IPPROTO_UDP),  # with a TCP state
        ("tcp_state", 0),
        ("tcp_state", 9),
        ("timeout_s", 0),
        ("timeout_s", 1 << 31),
        ("status", Status.CONFIRMED | Status.ASSURED),
        ("status", 1),  # expected: the kernel refuses to make one so
        ("status", 1 << 9),  # dying
    ],
)
def test_an_entry_the_kernel_is_not_to_be_asked_for_is_picked_out(field: str, value: int) -> None:
    entries = some_entries(3)
    entries[field][1] = value
    assert well_formed(entries).tolist() == [True, False, True]


@given(st.binary(max_size=2 * ENTRY.itemsize))
def test_no_bytes_of_a_peer_make_a_request_that_is_malformed(data: bytes) -> None:
    count = len(data) // ENTRY.itemsize
    whole = pack_entries(some_entries(count))[:HEADER_BYTES] + data[: count * ENTRY.itemsize]
    entries = unpack_entries(whole)
    good = entries[well_formed(entries)]
    for ask in Ask:
        for message in messages_of(ask, good):
            assert HEADER.unpack_from(message)[0] == len(message)
            assert list(attributes_of(message, BODY, len(message)))


@given(st.lists(st.tuples(st.sampled_from(["kind", "family", "protocol", "tcp_state", "zone"]), st.integers(0, 255))))
def test_requests_are_whole_for_whatever_passes(changes: list[tuple[str, int]]) -> None:
    entries = some_entries(4)
    for field, value in changes:
        entries[field][value % 4] = value
    good = entries[well_formed(entries)]
    for ask in Ask:
        for message in messages_of(ask, good):
            assert HEADER.unpack_from(message)[0] == len(message)


# --- what is told ----------------------------------------------------------------------------------------------------

NOBODY = hash_addresses(pack_addresses(()))


def test_floods_are_not_told_and_the_status_is_stripped() -> None:
    entries = some_entries(3)
    entries["status"] |= np.uint32(Status.CONFIRMED | 1 << 7 | 1 << 8)
    entries["status"][1] = Status.SEEN_REPLY | Status.CONFIRMED
    told = to_tell(entries, NOBODY)
    assert told["source_port"].tolist() == [1024, 1026]
    assert set(told["status"].tolist()) == {Status.SEEN_REPLY | Status.ASSURED}


def test_connections_that_die_with_the_gateway_are_not_told() -> None:
    own = hash_addresses(pack_addresses([ip_address("10.0.2.1"), ip_address("fd00:2::1")]))
    entries = np.concatenate([some_entries(2), v6_entries(2)])
    translated = pack_addresses([ip_address("10.0.2.1")])[0]
    entries["reply_destination"][1] = translated  # translated to the gateway's own address
    entries["destination"][3] = pack_addresses([ip_address("fd00:2::1")])[0]
    assert len(to_tell(entries, own)) == 2
    assert len(to_tell(entries, NOBODY)) == 4


@pytest.mark.parametrize(
    ("source", "told"), [("127.0.0.1", 0), ("::1", 0), ("fe80::1", 0), ("febf::1", 0), ("fec0::1", 1)]
)
def test_what_concerns_one_host_or_link_is_not_told(source: str, told: int) -> None:
    address = ip_address(source)
    entries = some_entries(1) if address.version == 4 else v6_entries(1)
    entries["source"] = pack_addresses([address])[0]
    assert len(to_tell(entries, NOBODY)) == told


def test_shifted_sequence_numbers_are_known_to_one_kernel_only() -> None:
    assert not len(to_tell(some_entries(1, status=Status.ASSURED | Status.SEQUENCE_ADJUSTED), NOBODY))


def test_deletions_by_hand_are_told() -> None:
    assert len(to_tell(some_entries(1, status=0, timeout_s=0, kind=Kind.DELETED), NOBODY)) == 1


def test_of_several_changes_of_a_key_the_last_is_told() -> None:
    entries = some_entries(4)
    entries["source_port"] = [1, 2, 1, 3]
    assert latest(entries, HASHER(entries)).tolist() == [1, 2, 3]


def test_a_key_is_addresses_ports_protocol_family_and_zone() -> None:
    for field, same in (("zone", False), ("protocol", False), ("source_port", False), ("mark", True), ("kind", True)):
        entries = some_entries(2)
        entries["source_port"] = 1024
        entries[field][1] = 99
        hashes = HASHER(entries)
        assert (hashes[0] == hashes[1]) == same, field


# --- ctnetlink -------------------------------------------------------------------------------------------------------

FAMILIES = {"v4": some_entries, "v6": v6_entries, "udp": udp_entries}


@pytest.mark.parametrize("look", FAMILIES)
def test_what_is_asked_for_reads_back_as_asked(look: str) -> None:
    entries = FAMILIES[look](5)
    if look == "v4":
        entries["zone"][2:4] = 12
    again = read(messages_of(Ask.CREATE, entries))
    for field in ENTRY.names or ():
        if field not in ("status", "tcp_flags", "reply_tcp_flags"):
            assert again[field].tolist() == entries[field].tolist(), field
    assert set(again["status"].tolist()) == {Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED}
    if look != "udp":
        assert set(again["tcp_flags"].tolist()) == {3 | 8}, "windows are not replicated: be liberal"


def attributes_by_path(message: bytes) -> dict[tuple[int, ...], bytes]:
    return {path: message[start + 4 : start + size] for path, start, size in attributes_of(message, BODY, len(message))}


def test_a_translated_entry_is_made_from_the_untranslated_reply_and_the_new_address() -> None:
    to = pack_addresses([ip_address(VIP)])[0]
    status = Status.ASSURED | Status.SOURCE_TRANSLATED
    entries = some_entries(1, status=status, reply_destination=to, reply_destination_port=5000)
    found = attributes_by_path(messages_of(Ask.CREATE, entries)[0])
    assert found[(Cta.TUPLE_REPLY, 1, 2)] == ip_address(CLIENT).packed
    assert found[(Cta.TUPLE_REPLY, 2, 3)] == struct.pack("!H", 1024)
    # NAT_SRC is not descended into by the reader: least and greatest address, least and greatest port.
    address = ip_address(VIP).packed
    assert found[(Cta.NAT_SRC,)].count(address) == 2
    assert found[(Cta.NAT_SRC,)].count(struct.pack("!H", 5000)) == 2
    assert (Cta.NAT_DST,) not in found


def test_a_change_does_not_mention_the_translation_nor_a_deletion_the_state() -> None:
    entries = some_entries(1, status=Status.ASSURED | Status.SOURCE_TRANSLATED | Status.DESTINATION_TRANSLATED)
    changed = attributes_by_path(messages_of(Ask.UPDATE, entries)[0])
    assert {path[0] for path in changed} == {Cta.TUPLE_ORIG, Cta.STATUS, Cta.TIMEOUT, Cta.MARK, Cta.PROTOINFO}
    deleted = attributes_by_path(messages_of(Ask.DELETE, entries)[0])
    assert {path[0] for path in deleted} == {Cta.TUPLE_ORIG}
    created = attributes_by_path(messages_of(Ask.CREATE, entries)[0])
    assert {Cta.NAT_SRC, Cta.NAT_DST} <= {path[0] for path in created}


def test_a_batch_of_all_looks_keeps_its_order() -> None:
    entries = np.concatenate([some_entries(3), v6_entries(3), udp_entries(3)])
    entries = entries[np.random.default_rng(1).permutation(9)]
    parser = Parser()
    for _ in range(2):  # the second time all shapes are known
        again = read(messages_of(Ask.CREATE, entries), parser)
        assert again["source_port"].tolist() == entries["source_port"].tolist()
        assert again["protocol"].tolist() == entries["protocol"].tolist()
    assert parser.unread == 0


def test_deletions_are_read_without_a_state() -> None:
    again = read(messages_of(Ask.DELETE, some_entries(2)))
    # A request has the original tuple only; an event has both.
    assert len(again) == 0
    both = [delete_event(message) for message in messages_of(Ask.CREATE, some_entries(2))]
    assert read(both)["kind"].tolist() == [Kind.DELETED, Kind.DELETED]


def delete_event(created: bytes) -> bytes:
    length, _, flags, sequence, port = HEADER.unpack_from(created)
    return HEADER.pack(length, Type.DELETE, flags, sequence, port) + created[HEADER.size :]


def test_other_protocols_and_zones_of_one_direction_are_left_out() -> None:
    icmp = udp_entries(1, protocol=IPPROTO_ICMP)
    messages = messages_of(Ask.CREATE, np.concatenate([some_entries(2), icmp]))
    parser = Parser()
    assert read(messages, parser)["protocol"].tolist() == [IPPROTO_TCP, IPPROTO_TCP]
    assert parser.unread == 0


@given(st.lists(st.binary(max_size=120), max_size=8), st.booleans())
def test_no_bytes_make_the_parser_fail(bodies: list[bytes], like_ours: bool) -> None:
    generic = GENERIC.pack(AF_INET, 0, 0)
    messages = [
        HEADER.pack(BODY + len(body) if like_ours else 5000, Type.NEW, 0, 0, 0) + generic + body for body in bodies
    ]
    parser = Parser()
    assert len(read(messages, parser)) + parser.unread <= len(messages)


def test_an_attribute_cut_short_is_counted() -> None:
    message = bytearray(messages_of(Ask.CREATE, some_entries(1))[0])
    message[BODY : BODY + 2] = struct.pack("=H", 4000)
    parser = Parser()
    assert (len(read([bytes(message)], parser)), parser.unread) == (0, 1)


def test_shapes_are_bounded() -> None:
    parser, original = Parser(), messages_of(Ask.CREATE, some_entries(1))[0]
    for number in range(2 * SHAPES_MAX):
        extra = struct.pack("=HHI", 8, 100 + number, 0)
        length = len(original) + len(extra)
        message = struct.pack("=I", length) + original[4:] + extra
        assert len(read([message], parser)) == 1
    assert sum(len(shapes) for shapes in parser._shapes.values()) <= SHAPES_MAX


# --- what peers know -------------------------------------------------------------------------------------------------


def noted(entries: Entries, now_s: int = 100) -> Told:
    told = Told(HASHER)
    told.note(entries, HASHER(entries), now_s)
    return told


def news(told: Told, entries: Entries, now_s: int) -> list[bool]:
    told.begin_survey()
    found = told.news(entries, now_s).tolist()
    told.end_survey()
    return list(found)


def test_what_peers_know_is_not_told_again() -> None:
    entries = some_entries(3)
    assert news(noted(entries[:2]), entries, 100) == [False, False, True]


@pytest.mark.parametrize("field", ["mark", "tcp_state", "status"])
def test_what_has_changed_without_having_been_told_is_news(field: str) -> None:
    entries = some_entries(2)
    told = noted(entries.copy())
    entries[field][0] = 4
    assert news(told, entries, 100) == [True, False]


def test_an_entry_that_lives_on_is_told_when_half_of_what_peers_know_is_over() -> None:
    entries = some_entries(1)  # lives for 1000 s from now on, whenever now is
    told = noted(entries)
    assert news(told, entries, 100 + 500) == [False]
    assert news(told, entries, 100 + 501 + LEEWAY_S) == [True]


def test_a_copy_that_no_packet_passes_is_never_told() -> None:
    entries = some_entries(1)
    told = noted(entries.copy())
    for passed in range(0, 1000, 50):
        entries["timeout_s"] = 1000 - passed
        assert news(told, entries, 100 + passed) == [False]


def test_a_survey_forgets_what_is_gone_and_keeps_what_came_meanwhile() -> None:
    entries = some_entries(4)
    told = noted(entries[:3])
    told.begin_survey()
    told.news(entries[:2], 100)
    told.note(entries[3:], HASHER(entries[3:]), 100)
    told.end_survey()
    assert news(told, entries, 100) == [False, False, True, False]
    assert len(told) == 3


def test_an_abandoned_survey_forgets_nothing() -> None:
    entries = some_entries(2)
    told = noted(entries)
    told.begin_survey()
    told.news(entries[:1], 100)
    told.abandon_survey()
    assert len(told) == 2


def test_of_two_words_on_one_entry_the_later_counts() -> None:
    entries = some_entries(1)
    told = noted(entries)
    changed = some_entries(1, tcp_state=TcpState.TIME_WAIT)
    told.note(changed, HASHER(changed), 100)
    assert news(told, entries, 100) == [True]


def test_a_transferred_entry_is_older_than_what_was_told_meanwhile() -> None:
    entries = some_entries(3)
    hashes = HASHER(entries)
    told = noted(entries[:1])
    told.begin_transfer()
    told.note(entries[1:2], hashes[1:2], 100)
    told.note(entries[2:], hashes[2:], 100, transferred=True)
    assert told.older(hashes).tolist() == [False, True, False]
    told.end_transfer()
    assert told.older(hashes).tolist() == [False, False, False]


def test_request_rows_lie_behind_each_other() -> None:
    """Many requests are sent with one call: rows are contiguous and whole messages."""
    rows: list[Rows] = [rows for rows, _ in requests(Ask.CREATE, some_entries(7))]
    assert len(rows) == 1
    data, place, count = rows[0].tobytes(), 0, 0
    while place < len(data):
        length, _, _, sequence, _ = HEADER.unpack_from(data, place)
        assert (length % 4, sequence) == (0, count)
        place, count = place + length, count + 1
    assert count == 7
