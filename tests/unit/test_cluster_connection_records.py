# SPDX-License-Identifier: Apache-2.0
"""Connection records on the wire and the digests that compare tables."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf import layout
from ebpf.layout import CONNECTION, FLOW_KEY, RECORD, RecordKind, Replicate, State, flow_key
from lb.connections.records import (
    Digest,
    Records,
    RecordsError,
    bucket_of,
    from_entries,
    hash_entries,
    hash_keys,
    live,
    pack_records,
    to_entries,
    to_send,
    unpack_records,
    well_formed,
)


def some_records(count: int, *, node: int = 1, first: int = 0) -> Records:
    """Distinct TCP connections from 10.0.0.0/8 to one service."""
    records = np.zeros(count, RECORD)
    base = flow_key("10.0.0.1", 40000, "10.0.1.100", 80, 6)
    records["key"] = base
    numbers = np.arange(first, first + count)
    records["key"]["source_port"] = numbers % 60000 + 1024
    for byte, shift in ((13, 32), (14, 24), (15, 16)):
        records["key"]["source"][:, byte] = numbers >> shift - 16 & 0xFF
    records["value"]["target"] = numbers % 7 + 1
    records["value"]["owner"] = node
    records["value"]["service"] = 1
    records["value"]["state"] = State.ESTABLISHED
    records["kind"], records["node"], records["replicate"] = RecordKind.OPENED, node, Replicate.ESTABLISHED
    return records


def test_round_trip_also_from_a_strided_array() -> None:
    records = some_records(10)
    assert (unpack_records(pack_records(records[::3])) == records[::3]).all()


def test_concatenated_records_and_entries_keep_their_byte_order() -> None:
    records = some_records(10)
    joined = np.concatenate([records[:4], records[4:]])
    assert unpack_records(pack_records(joined)).tobytes() == records.tobytes()
    keys, values = joined["key"], joined["value"]
    assert from_entries(keys, values, 1).tobytes() == from_entries(records["key"], records["value"], 1).tobytes()


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"", "too few"),
        (b"XX\x01\x00\x00\x00\x00\x00", "not a message"),
        (b"CR\xff\x00\x00\x00\x00\x00", "layout 255"),
        (b"CR\x01\x00\x02\x00\x00\x00" + bytes(64), "2 records"),
    ],
)
def test_a_wrong_message_is_refused_with_the_reason(message: bytes, complaint: str) -> None:
    with pytest.raises(RecordsError, match=complaint):
        unpack_records(message)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail(data: bytes) -> None:
    try:
        records = unpack_records(b"CR\x01\x00" + data)
    except RecordsError:
        return
    assert well_formed(records).sum() <= len(records)


def test_only_own_records_of_replicating_services_are_sent() -> None:
    records = some_records(4)
    records["replicate"][1] = Replicate.NONE
    records["node"][2] = 9
    assert list(to_send(records, 1)["key"]["source_port"]) == [1024, 1027]
    whole = some_records(4)
    assert to_send(whole, 1) is whole


def test_a_receiver_stamps_its_own_time_and_zeroes_padding() -> None:
    records = some_records(3)
    records["key"]["pad"] = 7
    records["value"]["last_seen_s"] = 999
    keys, values = to_entries(records, 50)
    assert keys.tobytes() == some_records(3)["key"].copy().tobytes()
    assert set(values["last_seen_s"]) == set(values["opened_s"]) == {50}
    assert list(values["target"]) == [1, 2, 3]


def test_malformed_records_are_picked_out() -> None:
    records = some_records(6)
    records["kind"][0] = 9
    records["value"]["state"][1] = 0
    records["value"]["owner"][2] = 0
    records["value"]["service"][3] = 0
    records["kind"][4] = RecordKind.CLOSED
    assert list(well_formed(records)) == [False, False, False, False, True, True]


def test_live_leaves_out_half_open_and_closing() -> None:
    values = np.zeros(8, CONNECTION)
    values["state"] = list(State)
    assert [State(s) for s in values["state"][live(values)]] == [State.ESTABLISHED, State.UDP]


@given(st.permutations(range(50)), st.integers(1, 49))
def test_a_digest_depends_neither_on_order_nor_on_how_it_was_read(order: list[int], cut: int) -> None:
    keys, values = to_entries(some_records(50), 1)
    one, other = Digest(), Digest()
    one.add(keys, values)
    for part in (order[:cut], order[cut:]):
        other.add(keys[part], values[part])
    assert one == other
    assert one == Digest.unpack(one.pack())


@pytest.mark.parametrize("field", ["target", "owner", "service"])
def test_a_digest_shows_which_bucket_differs(field: str) -> None:
    keys, values = to_entries(some_records(1000), 1)
    one, other = Digest(), Digest()
    one.add(keys, values)
    values[field][500] += 1
    other.add(keys, values)
    assert list(one.differing(other)) == [bucket_of(hash_keys(keys))[500]]


def test_times_and_progress_of_a_connection_do_not_show() -> None:
    keys, values = to_entries(some_records(10), 1)
    one = Digest()
    one.add(keys, values)
    values["last_seen_s"] = 9
    values["state"] = State.FIN_CLIENT
    other = Digest()
    other.add(keys, values)
    assert one == other


def test_hashes_are_distinct_and_spread() -> None:
    keys, values = to_entries(some_records(200_000), 1)
    assert len(np.unique(hash_keys(keys))) == len(keys)
    assert len(np.unique(hash_entries(keys, values))) == len(keys)
    counts = np.bincount(bucket_of(hash_keys(keys)), minlength=256)
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()


def test_records_made_from_entries_read_back_as_the_same_entries() -> None:
    keys, values = to_entries(some_records(20), 7)
    again_keys, again_values = to_entries(from_entries(keys, values, 3), 7)
    assert (again_keys == keys).all()
    assert (again_values == values).all()
    assert well_formed(from_entries(keys, values, 3)).all()


def test_layout_has_the_sizes_the_wire_format_counts_on() -> None:
    assert (RECORD.itemsize, FLOW_KEY.itemsize % 8, layout.LAYOUT_VERSION < 1 << 16) == (64, 0, True)
