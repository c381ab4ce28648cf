# SPDX-License-Identifier: Apache-2.0
"""The ring's messages on the wire: token, 911 call and answer, refusal, haste, beacon, relay.

Little-endian throughout. ``decode`` is the one place where a peer's bytes are judged: it raises ``Malformed`` and
nothing else. The transport below has authenticated the sender; cluster and protocol version are its concern.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from sync.events import Refusal, lengths
from sync.ring.lineage import Epoch, EpochId
from sync.ring.token import COUNT_MAX, Farewell, Kind, Member, Parcel, Proposal, Token

CHANNEL_TOKEN = 0
CHANNEL_CONTROL = 2
MEMBERS_MAX = 255
PARCELS_MAX = 4096
LINEAGE_MAX = 200
FAREWELLS_MAX = 16
CLAIM_MAX = COUNT_MAX >> 1
"""View numbers that newcomers claim lie below: a group that goes on from one has as many left."""
AHEAD_MAX = 2 * MEMBERS_MAX + 1
"""So many hops ahead a visit may ask for haste or quiet (``Token.hasten``)."""

Buffers = list[bytes | memoryview]


class Malformed(ValueError):
    """A peer's message that does not decode; says what is wrong with it."""


class Type(IntEnum):
    TOKEN = 1
    CALL = 2
    ANSWER = 3
    REFUSE = 4
    HASTE = 5
    BEACON = 6
    RELAY = 7
    RELAYED = 8


class Verdict(IntEnum):
    """Answers to a 911 call. The thesis has YES, NO and REJECT."""

    YES = 1
    """Regenerate, as far as I am concerned."""
    NO = 2
    """The token lives, or my copy is newer than yours."""
    REJECTED = 3
    """You are no (longer a) member of my group; I will invite you."""
    LEFT_OUT = 4
    """I belong to another branch than you; go on without me."""
    STARTING = 5
    """I am in no ring either."""
    WELCOME = 6
    """Unasked: I heard your beacon; your group will be merged into mine."""


class Call(NamedTuple):
    """The 911 message: asks for the right to regenerate the token, or to join."""

    id: int
    member: bool
    """False: the caller has no ring, it only asks to join."""
    starved: bool
    """The caller has waited for the token in vain; a member with a newer copy must call too."""
    epoch: EpochId
    hop: int
    view_number: int
    members: int
    """Of the caller's group."""


class Answer(NamedTuple):
    """To a call, or unasked (id 0) to a beacon."""

    id: int
    verdict: Verdict


class Refuse(NamedTuple):
    """The token of this epoch and hop was not accepted."""

    reason: int
    epoch: EpochId
    hop: int
    lineage: tuple[Epoch, ...]
    """The refuser's own branch; empty: it is in no ring."""
    followers: int
    """Members known to have followed the refuser's branch beyond the point where the token's began."""


class Haste(NamedTuple):
    """An urgent message waits for the token."""


class Beacon(NamedTuple):
    """Sent to eligible nodes outside of the group."""

    rank: tuple[int, int, int]
    """(standing, members, group id) of the sender's group."""
    view_number: int


class Relay(NamedTuple):
    """Multicast this for me: I am in no ring (open group)."""

    tag: int
    channel: int
    order: int
    payload: bytes | memoryview


class Relayed(NamedTuple):
    """What became of a relayed message: its position, or a refusal."""

    tag: int
    position: int
    refusal: int


Message = Token | Call | Answer | Refuse | Haste | Beacon | Relay | Relayed

_REFUSALS = frozenset(Refusal)

_LINE = struct.Struct("<QBQQ")
_TOKEN = struct.Struct("<BBBHHQIIQQQQQ")
_MEMBER = struct.Struct("<BBQQQ")
_PARCEL = struct.Struct("<QQIIBBBB")
_FAREWELL = struct.Struct("<QBQQQ")
_CALL = struct.Struct("<BIBBQBQQQB")
_ANSWER = struct.Struct("<BIB")
_REFUSE = struct.Struct("<BBQBQQBB")
_BEACON = struct.Struct("<BIBBQ")
RESTED_AT = struct.calcsize("<BBBHHQI")
"""Where a token on the wire has ``rested_us``, four bytes."""
HOP_AT = struct.calcsize("<BBBHHQII")
"""The same for ``hop``, eight bytes."""
_LAST_HOP_IN_MEMBER = struct.calcsize("<BBQ")
_RELAY = struct.Struct("<BQBB")
_RELAYED = struct.Struct("<BQqB")


def encode_token(token: Token, hop: int) -> Buffers:
    """The token as it is sent with ``hop``; bodies are passed through, not copied."""
    parcels = token.parcels
    parts: Buffers = [
        _TOKEN.pack(
            Type.TOKEN,
            len(token.lineage),
            len(token.members),
            len(parcels),
            len(token.farewells),
            token.view_number,
            token.standing,
            token.rested_us,
            hop,
            token.next_position,
            token.stable,
            token.busy_until,
            token.quiet_until,
        )
    ]
    parts += [_LINE.pack(*epoch.id, epoch.first_hop) for epoch in token.lineage]
    parts += [_MEMBER.pack(m.id, m.flags, m.incarnation, m.last_hop, m.since) for m in token.members]
    parts += [_FAREWELL.pack(*f.epoch, f.hop, f.position) for f in token.farewells]
    if not parcels:
        return [b"".join(parts)]
    parts += [
        _PARCEL.pack(p.position, p.added_hop, p.count, len(p.body), p.origin, p.channel, p.order, p.kind)
        for p in parcels
    ]
    return [b"".join(parts), *[p.body for p in parcels]]


def last_hop_at(token: Token, index: int) -> int:
    """Where a token on the wire has the ``last_hop`` of its member ``index``, eight bytes."""
    members_at = _TOKEN.size + len(token.lineage) * _LINE.size
    return members_at + index * _MEMBER.size + _LAST_HOP_IN_MEMBER


def encode(message: Message) -> Buffers:
    """Any message but the token."""
    match message:
        case Call(id, member, starved, epoch, hop, view_number, members):
            return [_CALL.pack(Type.CALL, id, member, starved, *epoch, hop, view_number, members)]
        case Answer(id, verdict):
            return [_ANSWER.pack(Type.ANSWER, id, verdict)]
        case Refuse(reason, epoch, hop, lineage, followers):
            head = _REFUSE.pack(Type.REFUSE, reason, *epoch, hop, followers, len(lineage))
            return [head + b"".join(_LINE.pack(*e.id, e.first_hop) for e in lineage)]
        case Haste():
            return [bytes([Type.HASTE])]
        case Beacon(rank, view_number):
            return [_BEACON.pack(Type.BEACON, rank[0], rank[1], rank[2], view_number)]
        case Relay(tag, channel, order, payload):
            return [_RELAY.pack(Type.RELAY, tag, channel, order), payload]
        case Relayed(tag, position, refusal):
            return [_RELAYED.pack(Type.RELAYED, tag, position, refusal)]
        case Token():
            return encode_token(message, message.hop)


def decode(data: bytes | memoryview) -> Message:
    """Raises ``Malformed``. Bodies of parcels are views into ``data``."""
    try:
        return _DECODERS[data[0]](data)
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise Malformed(f"{len(data)} bytes: {error!r}") from error


def _decode_token(data: bytes | memoryview) -> Token:
    (_, lines, members, parcels, farewells, view_number, standing, rested, hop, next_position, stable, busy, quiet) = (
        _TOKEN.unpack_from(data)
    )
    if not lines or not members or lines > LINEAGE_MAX or parcels > PARCELS_MAX or farewells > FAREWELLS_MAX:
        raise ValueError(f"token with {lines} epochs, {members} members, {parcels} parcels, {farewells} farewells")
    token = Token()
    token.hop, token.next_position, token.stable = hop, next_position, stable
    token.view_number, token.standing, token.rested_us = view_number, standing, rested
    token.busy_until, token.quiet_until = busy, quiet
    at = _TOKEN.size
    view = memoryview(data)
    end = at + lines * _LINE.size
    token.lineage = [Epoch(EpochId(n, c, i), f) for n, c, i, f in _LINE.iter_unpack(view[at:end])]
    at, end = end, end + members * _MEMBER.size
    token.members = [
        Member(id, inc, last, flags, since) for id, flags, inc, last, since in _MEMBER.iter_unpack(view[at:end])
    ]
    if len({member.id for member in token.members}) != members or token.member(0):
        raise ValueError("a member twice, or member 0")
    if farewells:
        at, end = end, end + farewells * _FAREWELL.size
        token.farewells = [Farewell(EpochId(n, c, i), h, p) for n, c, i, h, p in _FAREWELL.iter_unpack(view[at:end])]
    if len(token.lineage) != lines or len(view) < end:
        raise ValueError("token cut short")
    _check_counts(token)
    if parcels:
        end = _decode_parcels(token, view, end, parcels)
    elif token.stable > token.next_position:
        raise ValueError("stable beyond the end of the stream")
    if end != len(view):
        raise ValueError(f"{len(view) - end} bytes behind the token")
    return token


def _check_counts(token: Token) -> None:
    """Numbers this node will count on from, or wait for."""
    hop = token.hop
    if max(hop, token.next_position, token.view_number) > COUNT_MAX:
        raise ValueError(f"hop {hop}, position {token.next_position} or view {token.view_number} beyond {COUNT_MAX}")
    if max(token.busy_until, token.quiet_until) > hop + AHEAD_MAX:
        raise ValueError(f"haste until {token.busy_until}, quiet until {token.quiet_until} at hop {hop}")
    if any(epoch.first_hop > hop or epoch.id.number > COUNT_MAX for epoch in token.lineage):
        raise ValueError(f"an epoch that begins after hop {hop}, or one beyond {COUNT_MAX}")
    if any(member.last_hop > hop or member.since > hop for member in token.members):
        raise ValueError(f"a visit after hop {hop}")


def _decode_parcels(token: Token, view: memoryview, at: int, count: int) -> int:
    end = at + count * _PARCEL.size
    body = end
    position = None
    for place, added, messages, size, origin, channel, order, kind in _PARCEL.iter_unpack(view[at:end]):
        if position not in (None, place) or not messages or order > 1 or added > token.hop:
            raise ValueError(f"parcel of {messages} messages at {place}, order {order}, expected at {position}")
        content = view[body : body + size]
        body += size
        _check_body(kind, messages, content)
        position = place + messages
        token.parcels.append(Parcel(place, messages, origin, channel, order, kind, added, content))
    if position != token.next_position or token.stable > token.parcels[0].position:
        raise ValueError(f"stream ends at {position}, not {token.next_position}")
    return body


def payload_bytes(body: bytes | memoryview, messages: int) -> int:
    """Sum of the sizes in front of a parcel's payloads."""
    sizes = bytes(body[: 4 * messages])
    first = sizes[:4]
    if sizes == first * messages:  # mostly they are equal, and comparing them takes a tenth of the time of adding them
        return messages * int.from_bytes(first, "little")
    return sum(lengths(sizes))


def _check_body(kind: int, messages: int, body: memoryview) -> None:
    if kind != Kind.MESSAGES and messages != 1:
        raise ValueError(f"{messages} messages of kind {kind}")
    if kind == Kind.VIEW:
        Proposal.decode(body)
    elif kind == Kind.MESSAGES:
        if len(body) < 4 * messages or payload_bytes(body, messages) != len(body) - 4 * messages:
            raise ValueError(f"{messages} messages in {len(body)} bytes")
    elif kind != Kind.CANCELLED:
        raise ValueError(f"kind {kind}")


def _check_claim(view_number: int) -> None:
    if view_number > CLAIM_MAX:
        raise ValueError(f"view {view_number}, at most {CLAIM_MAX}")


def _decode_call(data: bytes | memoryview) -> Call:
    _, id, member, starved, number, creator, incarnation, hop, view_number, members = _CALL.unpack(data)
    _check_claim(view_number)
    return Call(id, bool(member), bool(starved), EpochId(number, creator, incarnation), hop, view_number, members)


def _decode_answer(data: bytes | memoryview) -> Answer:
    _, id, verdict = _ANSWER.unpack(data)
    return Answer(id, Verdict(verdict))


def _decode_refuse(data: bytes | memoryview) -> Refuse:
    _, reason, number, creator, incarnation, hop, followers, count = _REFUSE.unpack_from(data)
    lineage = tuple(Epoch(EpochId(n, c, i), f) for n, c, i, f in _LINE.iter_unpack(data[_REFUSE.size :]))
    if len(lineage) != count:
        raise ValueError(f"{count} epochs announced, {len(lineage)} there")
    return Refuse(reason, EpochId(number, creator, incarnation), hop, lineage, followers)


def _decode_haste(data: bytes | memoryview) -> Haste:
    return Haste()


def _decode_beacon(data: bytes | memoryview) -> Beacon:
    _, standing, members, group, view_number = _BEACON.unpack(data)
    _check_claim(view_number)
    return Beacon((standing, members, group), view_number)


def _decode_relay(data: bytes | memoryview) -> Relay:
    _, tag, channel, order = _RELAY.unpack_from(data)
    if order > 1:
        raise ValueError(f"order {order}")
    return Relay(tag, channel, order, data[_RELAY.size :])


def _decode_relayed(data: bytes | memoryview) -> Relayed:
    _, tag, position, refusal = _RELAYED.unpack(data)
    if not -1 <= position <= COUNT_MAX or (refusal and refusal not in _REFUSALS):
        raise ValueError(f"position {position}, refusal {refusal}")
    return Relayed(tag, position, refusal)


_DECODERS: dict[int, Callable[[bytes | memoryview], Message]] = {
    Type.TOKEN: _decode_token,
    Type.CALL: _decode_call,
    Type.ANSWER: _decode_answer,
    Type.REFUSE: _decode_refuse,
    Type.HASTE: _decode_haste,
    Type.BEACON: _decode_beacon,
    Type.RELAY: _decode_relay,
    Type.RELAYED: _decode_relayed,
}
