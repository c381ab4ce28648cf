# SPDX-License-Identifier: Apache-2.0
"""The transport's codec and ciphers: round trips, and nothing that is not exactly right is accepted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync.transport import wire
from sync.transport.burst import gather, is_run, is_whole, lay_out, select
from sync.transport.keys import Cipher, Key, KeyRing, derive_cipher
from sync.transport.wire import Refused

U8 = st.integers(1, 255)
U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(1, 2**64 - 1)
KEY = Key(bytes(range(32)))
CIPHERS = st.sampled_from([derive_cipher(KEY, "test", 3, 99, encrypt=encrypt) for encrypt in (False, True)])


def prefix_bytes(kind: int, sequence: int = 9) -> bytes:
    return wire.PREFIX.pack(wire.VERSION, kind, 1, 2, 3, 4, 5, 6, sequence)


def chunk_bytes(kind: int, *, length: int, segment_size: int = 0, message_length: int | None = None) -> bytes:
    total = length if message_length is None else message_length
    return prefix_bytes(kind) + wire.CHUNK.pack(*[0] * 9, 0, 0, 7, 0, segment_size, length, 1, total, 0)[34:]


def chunk_header(length: int, segment_size: int) -> wire.ChunkHeader:
    return wire.ChunkHeader(0, 0, 7, 0, segment_size, length, 1, length, 0)


@given(U8, U8, U32, U16, U64, U64, st.integers(0, wire.SEQUENCE_MAX), st.integers(wire.WHOLE, wire.UNRELIABLE))
def test_prefix_round_trip(
    source: int, destination: int, cluster: int, key: int, ours: int, theirs: int, sequence: int, kind: int
) -> None:
    fields = (wire.VERSION, kind, source, destination, cluster, key, ours, theirs, sequence)
    assert wire.decode_prefix(wire.PREFIX.pack(*fields) + bytes(wire.TAG_LENGTH)) == fields


@given(
    U64,
    st.integers(0, (1 << wire.WINDOW_CHUNKS) - 1),
    st.lists(st.tuples(U64, U64), max_size=wire.REPORT_COUNT_MAX),
)
def test_acknowledgement_round_trip(low: int, done: int, reports: list[tuple[int, int]]) -> None:
    data = wire.encode_ack(prefix_bytes(wire.ACK), low, done, reports) + bytes(wire.TAG_LENGTH)
    assert wire.decode_ack(data) == (low, done, tuple(reports))


@given(U64, U64)
def test_greeting_round_trip(challenge: int, echo: int) -> None:
    data = wire.encode_hello(prefix_bytes(wire.HELLO), challenge, echo) + bytes(wire.TAG_LENGTH)
    assert wire.decode_hello(data) == (challenge, echo)


@given(st.binary(max_size=3000))
def test_no_bytes_crash_a_decoder(data: bytes) -> None:
    for decode in (wire.decode_prefix, wire.decode_ack, wire.decode_hello, wire.decode_unreliable):
        try:
            decode(data)
        except Refused as refused:
            assert refused.reason in {"too_short", "malformed", "other_version", "unknown_kind"}  # noqa: PT017


@given(st.binary(min_size=wire.CHUNK_LENGTH, max_size=3000), st.sampled_from([wire.WHOLE, wire.SEGMENT]))
def test_no_chunk_header_is_believed_beyond_its_datagram(rest: bytes, kind: int) -> None:
    data = prefix_bytes(kind) + rest
    try:
        header = wire.decode_chunk(data, wire.decode_prefix(data))
    except Refused:
        return
    assert header.offset + header.length <= header.message_length <= wire.MESSAGE_LENGTH_MAX
    if kind == wire.WHOLE:
        assert len(data) == wire.WHOLE_OVERHEAD + header.length
    else:
        assert data[wire.INDEX_AT] < wire.segment_count(header.length, header.segment_size) <= wire.SEGMENT_COUNT_MAX


@pytest.mark.parametrize(
    ("kind", "fields", "extra"),
    [
        pytest.param(wire.WHOLE, {"length": 10}, 9, id="one byte short"),
        pytest.param(wire.WHOLE, {"length": 10}, 11, id="one byte long"),
        pytest.param(wire.WHOLE, {"length": 10, "message_length": 9}, 10, id="chunk beyond its message"),
        pytest.param(wire.WHOLE, {"length": 10, "message_length": 64 << 20 | 1}, 10, id="message above the maximum"),
        pytest.param(wire.WHOLE, {"length": 0, "message_length": 5}, 0, id="empty part of a message"),
        pytest.param(wire.WHOLE, {"length": 10, "segment_size": 100}, 10, id="whole, yet cut"),
        pytest.param(wire.SEGMENT, {"length": 10, "segment_size": 80}, 2, id="segments without room for payload"),
        pytest.param(wire.SEGMENT, {"length": 60000, "segment_size": 100}, 22, id="too many segments"),
        pytest.param(wire.SEGMENT, {"length": 60000, "segment_size": 1472}, 1391, id="segment one byte short"),
    ],
)
def test_impossible_chunks_are_refused(kind: int, fields: dict[str, int], extra: int) -> None:
    data = chunk_bytes(kind, **fields) + bytes(wire.TAG_LENGTH + extra)
    with pytest.raises(Refused, match="malformed"):
        wire.decode_chunk(data, wire.decode_prefix(data))


@given(st.integers(wire.DATAGRAM_MIN, wire.BURST_LENGTH_MAX))
def test_largest_chunk_fits_a_burst_on_every_path(datagram_max: int) -> None:
    length = wire.chunk_length_max(datagram_max)
    if length + wire.WHOLE_OVERHEAD > datagram_max:
        count = wire.segment_count(length, datagram_max)
        assert 1 < count <= wire.SEGMENT_COUNT_MAX
        assert length + wire.TAG_LENGTH + count * wire.SEGMENT_OVERHEAD <= wire.BURST_LENGTH_MAX
    # Should large datagrams not get through, the same chunk can still be cut small.
    assert length <= 65535
    count = wire.segment_count(length, wire.DATAGRAM_MIN)
    assert count <= wire.SEGMENT_COUNT_MAX
    assert length + wire.TAG_LENGTH + count * wire.SEGMENT_OVERHEAD <= wire.BURST_LENGTH_MAX


@given(st.binary(min_size=1300, max_size=61000), st.sampled_from([1232, 1452, 1472]))
def test_burst_comes_back_out_of_its_segments(payload: bytes, segment_size: int) -> None:
    head, tag = bytes(range(wire.INDEX_AT)), b"T" * wire.TAG_LENGTH
    burst = lay_out(head, payload, tag, segment_size)
    header = chunk_header(len(payload), segment_size)
    assert is_run(burst, head, header)
    assert is_whole(burst, header)
    assert gather(burst, segment_size) == payload + tag
    segments = [bytes(burst[at : at + segment_size]) for at in range(0, len(burst), segment_size)]
    assert b"".join(segment[wire.SEGMENT_OVERHEAD :] for segment in segments) == payload + tag
    assert [segment[wire.INDEX_AT] for segment in segments] == list(range(len(segments)))
    assert [segment[wire.FLAGS_AT] for segment in segments] == [0] * (len(segments) - 1) + [wire.ASK]


def test_burst_with_a_foreign_or_exchanged_segment_is_not_taken_as_one() -> None:
    head, payload = bytes(range(wire.INDEX_AT)), bytes(5000)
    burst = bytes(lay_out(head, payload, bytes(16), 1472))
    foreign = burst[:1472] + b"x" + burst[1473:]
    exchanged = burst[1472:2944] + burst[:1472] + burst[2944:]
    header = chunk_header(5000, 1472)
    assert is_run(burst, head, header)
    for wrong in (foreign, exchanged, burst[:-1], burst + b"x", burst + burst[:1472]):
        assert not is_run(wrong, head, header)


@given(st.integers(0, 7), st.integers(1, 8), st.binary(min_size=9_800, max_size=10_000))
def test_runs_of_a_burst_give_their_part(first: int, count: int, payload: bytes) -> None:
    """Receive offload gives bursts in pieces; segments of 1,472 bytes carry 1,392, so there are eight."""
    head, tag, header = bytes(range(wire.INDEX_AT)), b"T" * wire.TAG_LENGTH, chunk_header(len(payload), 1472)
    burst = lay_out(head, payload, tag, 1472)
    run = burst[first * 1472 : (first + count) * 1472]
    assert is_run(run, head, header)
    assert is_whole(run, header) == (first == 0 and count == 8)
    assert gather(run, 1472) == (payload + tag)[first * 1392 : (first + count) * 1392]


def test_selected_segments_end_with_a_question() -> None:
    burst = bytes(lay_out(bytes(wire.INDEX_AT), bytes(5000), bytes(16), 1472))
    part = bytes(select(burst, 1472, 0b0101))
    assert [part[wire.INDEX_AT], part[1472 + wire.INDEX_AT]] == [0, 2]
    assert [part[wire.FLAGS_AT], part[1472 + wire.FLAGS_AT]] == [0, wire.ASK]
    assert len(part) == 2 * 1472


@given(CIPHERS, st.binary(max_size=200), st.binary(max_size=3000), st.integers(0, 2**64 - 1))
def test_sealed_datagram_opens(cipher: Cipher, header: bytes, payload: bytes, sequence: int) -> None:
    nonce = wire.nonce(wire.WHOLE, 2, 0, sequence)
    sealed = cipher.seal(nonce, header, payload)
    assert len(sealed) == len(header) + len(payload) + wire.TAG_LENGTH
    assert cipher.open(nonce, memoryview(sealed), len(header)) == payload
    body, tag = cipher.seal_body(nonce, payload)
    assert cipher.open_body(nonce, bytes(body) + tag) == payload
    assert cipher.open_body(nonce, bytearray(body) + tag) == payload
    cipher.check(nonce, header, cipher.tag(nonce, header))


@given(CIPHERS, st.binary(min_size=1, max_size=300), st.data())
def test_one_changed_bit_anywhere_does_not_open(cipher: Cipher, payload: bytes, data: st.DataObject) -> None:
    nonce = wire.nonce(wire.WHOLE, 2, 0, 1)
    sealed = bytearray(cipher.seal(nonce, b"header", payload))
    at = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[at // 8] ^= 1 << at % 8
    with pytest.raises(Refused, match="bad_tag"):
        cipher.open(nonce, bytes(sealed), 6)


def test_every_incarnation_node_cluster_and_mode_has_a_key_of_its_own() -> None:
    variants = [
        derive_cipher(KEY, "a", 1, 1, encrypt=False),
        derive_cipher(KEY, "b", 1, 1, encrypt=False),
        derive_cipher(KEY, "a", 2, 1, encrypt=False),
        derive_cipher(KEY, "a", 1, 2, encrypt=False),
        derive_cipher(Key(bytes(32)), "a", 1, 1, encrypt=False),
    ]
    assert len({cipher.tag(bytes(12), b"the same header") for cipher in variants}) == len(variants)


def test_encryption_hides_the_payload() -> None:
    cipher = derive_cipher(KEY, "a", 1, 1, encrypt=True)
    assert b"secret" not in cipher.seal(bytes(12), b"header", b"secret")
    assert b"secret" not in bytes(cipher.seal_body(bytes(12), b"secret")[0])


@pytest.mark.parametrize(
    ("secrets", "wrong"),
    [
        ([], "1 to 2 keys"),
        ([bytes(32), bytes([1]) * 32, bytes([2]) * 32], "1 to 2 keys"),
        ([bytes(31)], "32 to 64 bytes"),
        ([bytes(32), bytes(32)], "equal"),
    ],
)
def test_unusable_key_rings(secrets: list[bytes], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        KeyRing(secrets)


def test_keys_do_not_show_in_logs() -> None:
    assert "1f" * 32 not in repr(Key(bytes([0x1F]) * 32))
