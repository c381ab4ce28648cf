# SPDX-License-Identifier: Apache-2.0
"""The product broken on purpose. Each break has a name and must be caught by the simulator's checkers.

Patches are put over the product from here; the product knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from sync.config import RingConfig
from sync.events import Order, TokenVisit
from sync.link import PeerLink
from sync.node import Node
from sync.ring import circulation, recovery, token
from sync.ring.discovery import Discovery
from sync.ring.multicast import Outbox, Stream
from sync.ring.quiet import RESTED_BITS, QuietTurn
from sync.ring.regeneration import Ring
from sync.ring.token import Kind, Member, Parcel, Token
from tests.sim.shared_mutations import SHARED_MUTATIONS, Patch


def _accept_any_token() -> list[Patch]:
    return [(Ring, "_objection", lambda self, offered: None)]


def _order_tokens_by_hop_alone() -> list[Patch]:
    def extends(lineage: Any, hop: int, epoch: Any, last_hop: int) -> bool:
        return hop > last_hop

    return [(circulation, "extends", extends), (recovery, "extends", extends)]


def _regenerate_in_the_same_epoch() -> list[Patch]:
    def fork(self: Token, creator: int, incarnation: int, number: int) -> None:
        self.hop += 1
        own = self.member(creator)
        if own is not None:
            own.last_hop = self.hop
        self.hasten()

    return [(Token, "fork", fork)]


def _deliver_safe_messages_early() -> list[Patch]:
    def ready(self: Stream) -> Iterator[Parcel]:
        pending = self._pending
        while pending:
            if pending[0].kind == Kind.VIEW and pending[0].position >= self.stable:
                return
            yield pending.popleft()

    return [(Stream, "ready", ready)]


def _commit_views_on_receipt() -> list[Patch]:
    def ready(self: Stream) -> Iterator[Parcel]:
        pending = self._pending
        while pending:
            head = pending[0]
            if head.kind == Kind.MESSAGES and head.order == Order.SAFE and head.position >= self.stable:
                return
            yield pending.popleft()

    return [(Stream, "ready", ready)]


def _prune_when_one_has_it() -> list[Patch]:
    return [(Token, "seen_by_all", lambda self: max(member.last_hop for member in self.members))]


def _keep_views_of_unreached_members() -> list[Patch]:
    def remove(self: Token, node: int) -> None:
        gone = self.member(node)
        if gone is not None:
            index = self.members.index(gone)
            self.members = self.members[index + 1 :] + self.members[:index]

    return [(Token, "remove", remove)]


def _propose_behind_cancelled_views() -> list[Patch]:
    cancel = Token.cancel

    def cancelled(self: Token, parcel: Parcel) -> Parcel:
        twin = cancel(self, parcel)
        twin.added_hop -= 1
        return twin

    return [(Token, "cancel", cancelled)]


def _keep_clashing_view_numbers() -> list[Patch]:
    def remember(self: Token, after: int, node: int, incarnation: int, view_number: int) -> None:
        invite(self, after, node, incarnation, 0)

    invite = Token.invite
    return [(Ring, "_settle_view_number", lambda self, since: None), (Token, "invite", remember)]


def _do_not_start_over() -> list[Patch]:
    return [(Ring, "_start_over", lambda self, offered, entry: None)]


def _merge_without_coming_to_rest() -> list[Patch]:
    return [(Token, "at_rest", property(lambda self: True))]


def _lose_track_of_lost_requests() -> list[Patch]:
    def forget(self: Ring, refusal: Any) -> None:
        self._inflight.clear()

    return [(Ring, "_lose_inflight", forget)]


def _deliver_twice() -> list[Patch]:
    def take(self: Stream, parcels: Any) -> None:
        for parcel in parcels:
            self._pending.append(parcel)
            self.next_position = max(self.next_position, parcel.position + parcel.count)

    return [(Stream, "take", take)]


def _last_in_first_out() -> list[Patch]:
    put = Outbox.put

    def shuffled(self: Outbox, *arguments: Any) -> Any:
        refusal = put(self, *arguments)
        if len(self._small) > 1 and not self._small[0].next:
            self._small.rotate(1)
        return refusal

    return [(Outbox, "put", shuffled)]


def _invite_nobody() -> list[Patch]:
    return [(Discovery, "take", lambda self, now: [])]


def _lease_from_the_last_pass() -> list[Patch]:
    renew = Ring._renew_lease

    def generous(self: Ring, held: Token) -> None:
        renew(self, held)
        if self.effects and isinstance(self.effects[-1], TokenVisit):
            visit = self.effects[-1]
            self.effects[-1] = visit._replace(lease_until=self.now + self.timers.failure_after)

    return [(Ring, "_renew_lease", generous)]


def _lease_for_rests_that_were_none() -> list[Patch]:
    return [(Ring, "_rested", lambda self, held: self.timers.turn_idle)]


def _keep_the_lease_when_others_defect() -> list[Patch]:
    return [(Ring, "defected", lambda self, members: None), (Ring, "revoke_lease", lambda self: None)]


def _welcome_everyone_at_once() -> list[Patch]:
    def invite(self: Token, after: int, node: int, incarnation: int, view_number: int) -> None:
        self.members = [*self.members, Member(node, incarnation, self.hop, token.JOINER)]
        self.view_number = max(self.view_number, view_number)
        self.hasten()

    return [(Token, "invite", invite)]


def _begin_with_a_view_of_the_past() -> list[Patch]:
    invite = Token.invite

    def forgetful(self: Token, after: int, node: int, incarnation: int, view_number: int) -> None:
        invite(self, after, node, incarnation, view_number)
        entry = self.member(node)
        assert entry is not None
        entry.since = 0

    return [(Token, "invite", forgetful)]


def _forget_a_dead_origins_messages() -> list[Patch]:
    remove = Token.remove

    def forget(self: Token, node: int) -> None:
        remove(self, node)
        self.parcels = [parcel for parcel in self.parcels if parcel.origin != node or parcel.kind != Kind.MESSAGES]

    return [(Token, "remove", forget)]


def _expel_without_asking() -> list[Patch]:
    def expel(self: Ring, offered: Token) -> None:
        wrong = [member.id for member in offered.members if member.id not in self.eligible | {self.local}]
        for node in wrong:
            self._remove(offered, node)
        if wrong:
            self.propose()

    return [(Ring, "_expel", expel)]


def _cut_off_who_is_struck() -> list[Patch]:
    """Unreachable from one moment to the next, and given up in that moment."""

    def fail_now(self: PeerLink, now: float, handle: int) -> None:
        self._hopeless.append((now, handle))

    def cut_off(self: Node) -> None:
        for peer in self._peers.keys() - self._ring.eligible:
            self._forget_peer(peer)

    return [(PeerLink, "fail_later", fail_now), (Node, "_forget_strangers", cut_off)]


def _pass_on_any_token_unseen() -> list[Patch]:
    whole = QuietTurn.returns

    def careless(self: QuietTurn, data: bytes | memoryview) -> bool:
        self._length, self._number = len(data), int.from_bytes(data, "little") & ~RESTED_BITS
        return whole(self, data)

    return [(QuietTurn, "returns", careless)]


def _serve_without_a_majority() -> list[Patch]:
    return [(RingConfig, "serving", lambda self, members, eligible: True)]


MUTATIONS: Mapping[str, tuple[Callable[[], list[Patch]], int]] = {
    "accept any token": (_accept_any_token, 7),
    "order tokens by hop alone": (_order_tokens_by_hop_alone, 63),
    "regenerate in the same epoch": (_regenerate_in_the_same_epoch, 2),
    "deliver safe messages early": (_deliver_safe_messages_early, 1),
    "commit views on receipt": (_commit_views_on_receipt, 1),
    "prune when one has it": (_prune_when_one_has_it, 1),
    "keep views of unreached members": (_keep_views_of_unreached_members, 4),
    "propose behind cancelled views": (_propose_behind_cancelled_views, 50),
    "keep clashing view numbers": (_keep_clashing_view_numbers, 1),
    "do not start over": (_do_not_start_over, 18),
    "merge without coming to rest": (_merge_without_coming_to_rest, 5),
    "lose track of lost requests": (_lose_track_of_lost_requests, 6),
    "deliver twice": (_deliver_twice, 4),
    "last in first out": (_last_in_first_out, 1),
    "invite nobody": (_invite_nobody, 2),
    "lease from the last pass": (_lease_from_the_last_pass, 9),
    "lease for rests that were none": (_lease_for_rests_that_were_none, 15),
    "keep the lease when others defect": (_keep_the_lease_when_others_defect, 180),
    "welcome everyone at once": (_welcome_everyone_at_once, 1),
    "forget a dead origin's messages": (_forget_a_dead_origins_messages, 65),
    "begin with a view of the past": (_begin_with_a_view_of_the_past, 1550),
    "expel without asking": (_expel_without_asking, 200008),
    "cut off who is struck": (_cut_off_who_is_struck, 200008),
    "pass on any token unseen": (_pass_on_any_token_unseen, 1),
    "serve without a majority": (_serve_without_a_majority, 300_010),
    **SHARED_MUTATIONS,
}
"""Name -> (patches, a seed that catches it, or one near it)."""


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The product with this break."""
    with ExitStack() as stack:
        for target, attribute, replacement in MUTATIONS[name][0]():
            stack.enter_context(patch.object(target, attribute, replacement))
        yield
