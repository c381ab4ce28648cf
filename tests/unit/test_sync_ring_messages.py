# SPDX-License-Identifier: Apache-2.0
"""The ring's messages: round trips, and a decoder that raises Malformed and nothing else."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.events import Order, Refusal, lengths
from sync.ring.lineage import Epoch, EpochId
from sync.ring.messages import (
    AHEAD_MAX,
    CLAIM_MAX,
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
    payload_bytes,
)
from sync.ring.multicast import pack
from sync.ring.token import COUNT_MAX, FRESH, JOINER, Farewell, Kind, Member, Proposal, Token

u8 = st.integers(1, 255)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
counts = st.integers(0, COUNT_MAX)
claims = st.integers(0, CLAIM_MAX)
epoch_ids = st.builds(EpochId, u64, u8, u64)
epochs = st.builds(Epoch, epoch_ids, u64)
messages = st.one_of(
    st.builds(Call, u32, st.booleans(), st.booleans(), epoch_ids, u64, claims, st.integers(0, 255)),
    st.builds(Answer, u32, st.sampled_from(Verdict)),
    st.builds(Refuse, u8, epoch_ids, u64, st.lists(epochs, max_size=4).map(tuple), st.integers(0, 255)),
    st.just(Haste()),
    st.builds(Beacon, st.tuples(u32, st.integers(0, 255), st.integers(0, 255)), claims),
    st.builds(Relay, u64, u8, st.sampled_from(Order), st.binary(max_size=50)),
    st.builds(Relayed, u64, st.integers(-1, COUNT_MAX), st.sampled_from([0, *Refusal])),
)


@st.composite
def tokens(draw: st.DrawFn) -> Token:
    token = Token()
    token.hop = draw(st.integers(1, COUNT_MAX))
    hops = st.integers(0, token.hop)
    ids = st.builds(EpochId, counts, u8, u64)
    token.lineage = draw(st.lists(st.builds(Epoch, ids, hops), min_size=1, max_size=5))
    token.members = [
        Member(node, draw(u64), draw(hops), draw(st.sampled_from([0, FRESH, JOINER | FRESH])), draw(hops))
        for node in draw(st.lists(u8, min_size=1, max_size=9, unique=True))
    ]
    token.next_position = token.stable = draw(st.integers(0, 2**50))
    token.view_number, token.standing = draw(st.integers(0, COUNT_MAX - 1)), draw(u32)
    token.busy_until, token.quiet_until = draw(hops), draw(hops)
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
        [(m.id, m.incarnation, m.last_hop, m.flags, m.since) for m in token.members],
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


def smallest_token() -> Token:
    token = Token()
    token.hop = 1000
    token.lineage = [Epoch(EpochId(1, 1, 1), 1)]
    token.members = [Member(1, 1, 999)]
    token.append(1, 16, Order.AGREED, 1, pack([b"x"]))
    return token


def extreme(path: str, value: object) -> Token:
    """The token with one number changed; ``path`` as in ``members.0.last_hop``."""
    token = smallest_token()
    *way, name = path.split(".")
    target: object = token
    for step in way:
        target = target[int(step)] if isinstance(target, list) else getattr(target, step)
    setattr(target, name, value)
    return token


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("hop", COUNT_MAX + 1, "beyond"),
        ("view_number", COUNT_MAX + 1, "beyond"),
        ("view_number", 2**64 - 1, "beyond"),
        ("next_position", COUNT_MAX + 1, "beyond"),
        ("busy_until", 1000 + AHEAD_MAX + 1, "haste until"),
        ("quiet_until", 2**64 - 1, "quiet until"),
        ("lineage", [Epoch(EpochId(1, 1, 1), 1001)], "epoch that begins after"),
        ("lineage", [Epoch(EpochId(COUNT_MAX + 1, 1, 1), 1)], "epoch"),
        ("members.0.last_hop", 1001, "visit after"),
        ("members.0.since", 1001, "visit after"),
        ("parcels.0.added_hop", 1001, "parcel"),
        ("parcels.0.position", 2**64 - 1, "stream ends at"),
        ("parcels.0.kind", Kind.CANCELLED + 1, "kind"),
        ("parcels.0.count", 2**32 - 1, "messages in"),
    ],
)
def test_numbers_nobody_could_count_on_from_are_malformed(path: str, value: object, words: str) -> None:
    assert isinstance(decode(b"".join(encode_token(smallest_token(), 1000))), Token)
    token = extreme(path, value)
    with pytest.raises(Malformed, match=words):
        decode(b"".join(encode_token(token, token.hop)))


@pytest.mark.parametrize(
    "proposal",
    [
        Proposal(COUNT_MAX + 1, True, [(1, 1)], frozenset()),
        Proposal(1, True, [(1, 1), (1, 2)], frozenset()),
        Proposal(1, True, [(1, 1), (0, 2)], frozenset()),
    ],
)
def test_a_view_that_cannot_be_is_malformed(proposal: Proposal) -> None:
    token = smallest_token()
    token.append(1, 0, Order.SAFE, 1, proposal.encode(), Kind.VIEW)
    with pytest.raises(Malformed, match="member"):
        decode(b"".join(encode_token(token, 1000)))


def test_a_view_takes_one_position() -> None:
    token = smallest_token()
    body = Proposal(1, True, [(1, 1)], frozenset()).encode()
    token.append(1, 0, Order.SAFE, 2, body, Kind.VIEW)
    with pytest.raises(Malformed, match="2 messages of kind"):
        decode(b"".join(encode_token(token, 1000)))


@pytest.mark.parametrize(
    "message",
    [
        Call(1, True, True, EpochId(1, 1, 1), 1, CLAIM_MAX + 1, 3),
        Beacon((0, 1, 1), CLAIM_MAX + 1),
        Relayed(1, -2, 0),
        Relayed(1, 5, max(Refusal) + 1),
    ],
)
def test_claims_nobody_could_go_on_from_are_malformed(message: Message) -> None:
    with pytest.raises(Malformed):
        decode(b"".join(encode(message)))


def test_the_largest_numbers_that_are_taken_leave_room_to_go_on() -> None:
    """A ring that has accepted them changes its view, begins an epoch and sends messages without an overflow."""
    token = smallest_token()
    token.parcels.clear()
    token.hop = token.next_position = token.view_number = COUNT_MAX
    token.lineage = [Epoch(EpochId(COUNT_MAX, 1, 1), COUNT_MAX)]
    taken = decode(b"".join(encode_token(token, COUNT_MAX)))
    assert isinstance(taken, Token)
    taken.fork(1, 1, COUNT_MAX + 1)
    taken.invite(1, 2, 7, CLAIM_MAX)
    taken.propose(1, Order.SAFE, True)
    taken.append(1, 16, Order.AGREED, 1, pack([b"x"]))
    assert encode_token(taken, taken.hop + 1)


@pytest.mark.parametrize("sizes", [(5,), (7, 7, 7), (0, 0), (1, 2, 300, 70_000)])
def test_sizes_of_payloads_are_added_at_any_alignment(sizes: tuple[int, ...]) -> None:
    packed = struct.pack(f"<{len(sizes)}I", *sizes)
    for shift in range(4):
        body = memoryview(bytes(shift) + packed + b"payloads")[shift:]
        assert payload_bytes(body, len(sizes)) == sum(sizes)
        assert list(lengths(body[: len(packed)])) == list(sizes)


@pytest.mark.parametrize("sizes", [(3, 5), (4, 4), (2**32 - 1, 8), (2**32 - 1, 2**32 - 1)])
def test_sizes_that_do_not_fit_the_payloads_are_malformed(sizes: tuple[int, int]) -> None:
    token = Token()
    token.hop = 1
    token.lineage = [Epoch(EpochId(1, 1, 1), 1)]
    token.members = [Member(1, 1, 1)]
    token.append(1, 16, Order.AGREED, 2, struct.pack("<2I", 3, 4) + b"1234567")
    assert isinstance(decode(b"".join(encode_token(token, 1))), Token)
    token.parcels[0].body = struct.pack("<2I", *sizes) + b"1234567"
    with pytest.raises(Malformed, match="2 messages"):
        decode(b"".join(encode_token(token, 1)))
    assert token.parcels[0].kind is Kind.MESSAGES
