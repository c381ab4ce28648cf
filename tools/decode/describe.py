# SPDX-License-Identifier: Apache-2.0
"""Messages of the ring in words."""

from sync.events import Order
from sync.events import Reason as RingReason
from sync.ring.lineage import EpochId
from sync.ring.messages import (
    CHANNEL_CONTROL,
    CHANNEL_TOKEN,
    Answer,
    Beacon,
    Call,
    Haste,
    Malformed,
    Message,
    Refuse,
    Relay,
    Relayed,
    decode,
)
from sync.ring.token import JOINER, Kind, Parcel, Proposal, Token
from sync.shared import CHANNEL as CHANNEL_SHARED
from sync.transport.wire import Buffer

PARCELS_SHOWN = 4


def describe(channel: int, payload: Buffer) -> str:
    """One line for a message on a channel of the transport."""
    if channel == CHANNEL_SHARED:
        return f"shared data, {len(payload)} bytes"
    if channel not in (CHANNEL_TOKEN, CHANNEL_CONTROL):
        return f"channel {channel}, {len(payload)} bytes"
    message = understand(payload)
    if message is None:
        return f"channel {channel}, {len(payload)} bytes that are no message of the ring (encrypted?)"
    return describe_token(message) if isinstance(message, Token) else describe_control(message)


def understand(payload: Buffer) -> Message | None:
    try:
        return decode(bytes(payload))
    except Malformed:
        return None


def describe_token(token: Token) -> str:
    ring = " ".join(f"{member.id}{'+' if member.flags & JOINER else ''}" for member in token.members)
    text = f"TOKEN hop {token.hop} epoch {epoch(token.lineage[-1].id)} view {token.view_number} [{ring}]"
    if token.farewells:
        text += f" merged {len(token.farewells)}"
    shown = [describe_parcel(parcel) for parcel in token.parcels[:PARCELS_SHOWN]]
    if len(token.parcels) > PARCELS_SHOWN:
        shown.append(f"{len(token.parcels) - PARCELS_SHOWN} more")
    return f"{text} · {', '.join(shown)}" if shown else text


def describe_parcel(parcel: Parcel) -> str:
    if parcel.kind == Kind.VIEW:
        proposal = Proposal.decode(parcel.body)
        members = " ".join(f"{node}{'+' if node in proposal.joined else ''}" for node, _ in proposal.members)
        return f"VIEW {proposal.number} [{members}] by {parcel.origin} at {parcel.position}"
    if parcel.kind == Kind.CANCELLED:
        return f"a cancelled view at {parcel.position}"
    order = " safe" if parcel.order == Order.SAFE else ""
    return (
        f"{parcel.count}{order} message{'s' if parcel.count > 1 else ''} of {parcel.origin} on {parcel.channel} "
        f"at {parcel.position} ({len(parcel.body)} bytes)"
    )


def describe_control(message: Message) -> str:
    match message:
        case Call(id, member, starved, of, hop, view_number, members):
            why = "starving" if starved else "member" if member else "asks to join"
            return f"911 call {id} ({why}): epoch {epoch(of)} hop {hop} view {view_number}, group of {members}"
        case Answer(id, verdict):
            return f"911 answer to {id}: {verdict.name}" if id else f"answer to the beacon: {verdict.name}"
        case Refuse(reason, of, hop, _, _):
            name = RingReason(reason).name if reason in set(RingReason) else str(reason)
            return f"REFUSES token hop {hop} epoch {epoch(of)}: {name}"
        case Haste():
            return "HASTE"
        case Beacon((standing, members, group), view_number):
            return f"BEACON group {group} of {members}, standing {standing}, view {view_number}"
        case Relay(tag, channel, _, payload):
            return f"RELAY {tag}: multicast {len(payload)} bytes on {channel} for me"
        case Relayed(tag, position, refusal):
            return f"RELAYED {tag}: {f'refused ({refusal})' if refusal else f'at {position}'}"
        case _:
            return type(message).__name__


def epoch(of: EpochId) -> str:
    """Number and creator; the incarnation tells only two lives of the creator apart."""
    return f"{of.number}.{of.creator}"
