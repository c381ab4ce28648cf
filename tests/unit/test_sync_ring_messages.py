# SPDX-License-Identifier: Apache-2.0
"""The ring's messages: round trips, and a decoder that raises Malformed and nothing else."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.events import Order
from sync.ring.lineage import Epoch, EpochId
from sync.ring.messages import (
    Answer,
    Beacon,
    Call,
    Haste,
    Malformed,
    Message,
    Refuse,
    Relay,
    Relayed,
    Verdict,
    decode,
    encode,
    encode_token,
)
from sync.ring.multicast import pack
from sync.ring.token import FRESH, JOINER, Farewell, Kind, Member, Token

u8 = st.integers(1, 255)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
epoch_ids = st.builds(EpochId, u32, u8, u64)
epochs = st.builds(Epoch, epoch_ids, u64)
messages = st.one_of(
    st.builds(Call, u32, st.booleans(), st.booleans(), epoch_ids, u64, u32, st.integers(0, 255)),
    st.builds(Answer, u32, st.sampled_from(Verdict)),
    st.builds(Refuse, u8, epoch_ids, u64, st.lists(epochs, max_size=4).map(tuple), st.integers(0, 255)),
    st.just(Haste()),
    st.builds(Beacon, st.tuples(u32, st.integers(0, 255), st.integers(0, 255)), u32),
    st.builds(Relay, u64, u8, st.sampled_from(Order), st.binary(max_size=50)),
    st.builds(Relayed, u64, st.integers(-1, 2**62), st.integers(0, 255)),
)


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    token = Token()
    token.hop = draw(st.integers(1, 2**63))
    token.lineage = draw(st.lists(epochs, min_size=1, max_size=5))
    token.members = [
        Member(node, draw(u64), draw(u64), draw(st.sampled_from([0, FRESH, JOINER | FRESH])))
        for node in draw(st.lists(u8, min_size=1, max_size=9, unique=True))
    ]
    token.next_position = token.stable = draw(st.integers(0, 2**50))
    # A proposal takes the next number: at one view a second the last one is 136 years away.
    token.view_number, token.standing = draw(st.integers(0, 2**32 - 2)), draw(u32)
    token.busy_until, token.quiet_until = draw(u64), draw(u64)
    token.farewells = draw(st.lists(st.builds(Farewell, epoch_ids, u64, u64), max_size=3))
    for payloads in draw(st.lists(st.lists(st.binary(max_size=20), min_size=1, max_size=5), max_size=4)):
        token.append(draw(u8), draw(u8), draw(st.sampled_from(Order)), len(payloads), pack(payloads))
    if draw(st.booleans()):
        token.propose(token.members[0].id, Order.SAFE, True)
    return token


def plain(token: Token) -> tuple[object, ...]:
    return (
        token.hop,
        token.lineage,
        [(m.id, m.incarnation, m.last_hop, m.flags) for m in token.members],
        (token.next_position, token.stable, token.view_number, token.standing, token.busy_until, token.quiet_until),
        [(f.epoch, f.hop, f.position) for f in token.farewells],
        [
            (p.position, p.count, p.origin, p.channel, p.order, p.kind, p.added_hop, bytes(p.body))
            for p in token.parcels
        ],
    )


@given(messages)
def test_messages_come_back_as_they_went(message: Message) -> None:
    assert decode(b"".join(encode(message))) == message


@given(tokens())
def test_tokens_come_back_as_they_went(token: Token) -> None:
    back = decode(b"".join(encode_token(token, token.hop)))
    assert isinstance(back, Token)
    assert plain(back) == plain(token)


@settings(max_examples=400)
@given(tokens(), st.data())
def test_a_damaged_token_is_malformed_or_a_token(token: Token, data: st.DataObject) -> None:
    raw = bytearray(b"".join(encode_token(token, token.hop)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    for damaged in (bytes(raw), cut):
        try:
            message = decode(damaged)
        except Malformed:
            continue
        if isinstance(message, Token):
            assert message.members
            assert sum(parcel.count for parcel in message.parcels) <= message.next_position + 2**32


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_malformed(noise: bytes) -> None:
    with suppress(Malformed):
        decode(noise)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw + b"x", "behind the token"),
        (lambda raw: raw[:-1], "Malformed|bytes"),
        (lambda raw: bytes([99]) + raw[1:], "99"),
    ],
)
def test_the_error_says_what_is_wrong(change: object, words: str) -> None:
    token = Token()
    token.hop = 1
    token.lineage = [Epoch(EpochId(1, 1, 1), 1)]
    token.members = [Member(1, 1, 1)]
    assert callable(change)
    with pytest.raises(Malformed, match=words):
        decode(change(b"".join(encode_token(token, 1))))


def test_sizes_that_do_not_fit_the_payloads_are_malformed() -> None:
    token = Token()
    token.hop = 1
    token.lineage = [Epoch(EpochId(1, 1, 1), 1)]
    token.members = [Member(1, 1, 1)]
    token.append(1, 16, Order.AGREED, 2, struct.pack("<2I", 3, 4) + b"1234567")
    assert isinstance(decode(b"".join(encode_token(token, 1))), Token)
    token.parcels[0].body = struct.pack("<2I", 3, 5) + b"1234567"
    with pytest.raises(Malformed, match="2 messages"):
        decode(b"".join(encode_token(token, 1)))
    assert token.parcels[0].kind is Kind.MESSAGES
