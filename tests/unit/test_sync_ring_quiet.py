# SPDX-License-Identifier: Apache-2.0
"""Quiet turns: what is known for the same token is the same token, and taking it the short way changes nothing."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync.events import Effect, Eligible, Leave, Multicast, Standing
from sync.ring.circulation import Circulation
from sync.ring.lineage import Epoch, EpochId
from sync.ring.messages import RESTED_AT, decode, encode_token
from sync.ring.quiet import QuietTurn, settled
from sync.ring.token import FRESH, JOINER, STRUCK, Farewell, Member, Token
from sync.transport.effects import Path, PeerConfig
from tests.unit.test_sync_ring_node import Wire

LOCAL = 3
RESTED = range(8 * RESTED_AT, 8 * (RESTED_AT + 4))


def idle_token(members: int = 4, hop: int = 1000) -> Token:
    """As it is at the visit of member LOCAL, after whole turns in which nothing happened."""
    token = Token()
    token.hop, token.next_position, token.stable, token.view_number = hop, 77, 77, 5
    token.busy_until, token.rested_us = hop - 50, 123_456
    token.lineage = [Epoch(EpochId(2, 1, 9), 10), Epoch(EpochId(3, LOCAL, 11), 20)]
    order = [(LOCAL + i) % members + 1 for i in range(members)]
    token.members = [Member(node, node * 7, hop - members + 1 + i, 0, 8) for i, node in enumerate(order)]
    assert token.members[-1].id == LOCAL
    return token


def sent(token: Token) -> bytes:
    return bytes(b"".join(encode_token(token, token.hop + 1)))


def turned(data: bytes, rest_us: int = 22_000) -> bytes:
    """The token after the visits of all others."""
    token = decode(data)
    assert isinstance(token, Token)
    token.rested_us = (token.rested_us + rest_us) % 2**32
    for member in token.members[:-1]:
        member.last_hop = token.hop
        data = sent(token)
        token.hop += 1
    return data


@pytest.mark.parametrize("members", [3, 4, 9])
def test_an_idle_token_is_known_turn_after_turn_and_stays_exact(members: int) -> None:
    token = idle_token(members)
    data = sent(token)
    quiet = QuietTurn(token, LOCAL, {1, 2, 4}, data)
    for _ in range(5):
        data = turned(data)
        arrived = decode(data)
        assert isinstance(arrived, Token)
        assert quiet.returns(data)
        own = arrived.member(LOCAL)
        assert own is not None
        own.last_hop = arrived.hop
        assert sent(token) == sent(arrived), "its own copy is what arrived, visited"
        (data,) = map(bytes, quiet.sent_on())
        assert data == sent(arrived)


@settings(deadline=None)
@given(st.data())
def test_any_other_bit_makes_it_another_token(data: st.DataObject) -> None:
    token = idle_token()
    quiet = QuietTurn(token, LOCAL, set(), sent(token))
    before, back = sent(token), turned(sent(token))
    bit = data.draw(st.integers(0, 8 * len(back) - 1))
    changed = bytearray(back)
    changed[bit // 8] ^= 1 << bit % 8
    assert quiet.returns(memoryview(bytes(changed))) == (bit in RESTED)
    if bit not in RESTED:
        assert sent(token) == before, "nothing is taken of a token that is another"


@given(st.binary(max_size=300))
def test_bytes_that_are_no_token_are_not_known(data: bytes) -> None:
    token = idle_token()
    quiet = QuietTurn(token, LOCAL, set(), sent(token))
    back = turned(sent(token))
    assert not quiet.returns(data)
    assert not quiet.returns(back + bytes(8)), "as a number it is the same"
    assert not quiet.returns(back[:-1])
    assert quiet.returns(back)


@pytest.mark.parametrize("flag", [FRESH, JOINER, STRUCK])
def test_a_token_on_which_something_waits_is_not_settled(flag: int) -> None:
    token = idle_token()
    assert settled(token)
    token.members[1].flags = flag
    assert not settled(token)
    token = idle_token()
    token.farewells = [Farewell(EpochId(1, 1, 1), 5, 5)]
    assert not settled(token)
    token = idle_token()
    token.append(LOCAL, 20, 0, 1, b"\1\0\0\0x")
    assert not settled(token)


def lived(*, quiet: bool) -> tuple[list[list[Effect]], int]:
    """What happens to three nodes, and how often the short way was taken."""
    taken = 0
    whole = Circulation.accept_quietly

    def counted(self: Circulation, now: float, data: bytes) -> bool:
        nonlocal taken
        took = quiet and whole(self, now, data)
        taken += took
        return took

    with patch.object(Circulation, "accept_quietly", counted):
        ring = Wire(3, trace=True)
        ring.run(1.0)
        ring.feed(2, Multicast(1, 20, [b"a"]))
        ring.run(0.3)
        ring.feed(3, Multicast(2, 20, [b"b"], urgent=True))
        ring.run(0.3)
        ring.feed(2, Standing(9))
        ring.run(0.3)
        peers = {peer: PeerConfig((Path(0, peer),)) for peer in (1, 2)}
        for node in (1, 2):
            ring.feed(node, Eligible({peer: peers[peer] for peer in peers if peer != node}))
        ring.run(1.0)
        ring.start(3)
        for node in (1, 2):
            everyone = {peer: PeerConfig((Path(0, peer),)) for peer in (1, 2, 3) if peer != node}
            ring.feed(node, Eligible(everyone))
        ring.run(2.0)
        ring.feed(1, Leave())
        ring.run(0.5)
        ring.dead.add(2)
        ring.run(0.5)
        ring.start(2)
        ring.run(1.0)
    return [ring.seen[node] for node in (1, 2, 3)], taken


def test_the_short_way_leads_to_the_same_place() -> None:
    short, taken = lived(quiet=True)
    long, never = lived(quiet=False)
    assert short == long, "every effect of every node, transmissions and traces included"
    assert taken > 100
    assert never == 0
