# SPDX-License-Identifier: Apache-2.0
"""Atomic, acknowledged, connectionless unicast of messages to known peers, without sockets or clocks.

The transport of Raincore (C. C. Fan, "Fault-tolerant cluster of networking elements", Caltech 2001, section 3.2): a
message arrives whole or not at all; the sender is told when it has arrived, and told when every attempt on every
address of the peer has failed, which is the upper layer's failure detector. Added here: authentication of every
datagram and protection against replay and reflection, sessions bound to both sides' incarnations, adaptive
retransmission, congestion control, bursts for segmentation offload.

There is no order between messages: small ones overtake large ones. A message is given out at most once, over all
incarnations of the receiver. Times are monotonic seconds given by the caller; `deadline` says when to call `tick`.
After a pause, feed what has arrived before calling `tick`.
"""

from collections.abc import Hashable, Mapping, Sequence
from math import inf

from sync.transport import wire
from sync.transport.effects import (
    Backlogged,
    Counters,
    Effect,
    PeerConfig,
    PeerReport,
    Randomness,
    Reason,
    TransportConfig,
    TurnedAway,
)
from sync.transport.keys import KeyRing
from sync.transport.receiver import Receiver
from sync.transport.sender import Sender
from sync.transport.session import Local, Session
from sync.transport.window import Message
from sync.transport.wire import Buffer, Prefix, Refused


class _Peer:
    __slots__ = ("receiver", "sender", "session", "unreliable_waiting")

    def __init__(self, local: Local, node: int, config: PeerConfig) -> None:
        self.session = Session(local, node, config)
        self.sender = Sender(local, self.session)
        self.receiver = Receiver(local, self.session)
        self.unreliable_waiting: tuple[int, bytes] | None = None


class Transport:
    """One node's transport. `incarnation` (1..2^64-1) must never have been used by this node before."""

    def __init__(
        self,
        config: TransportConfig,
        *,
        local: int,
        incarnation: int,
        rng: Randomness,
        peers: Mapping[int, PeerConfig] | None = None,
    ) -> None:
        if not 1 <= local <= 255:
            raise ValueError(f"node id {local} is not in 1..255")
        if not 1 <= incarnation < 1 << 64:
            raise ValueError(f"incarnation {incarnation} is not in 1..2^64-1")
        self._local = Local(config, local, incarnation, lambda: rng.getrandbits(64))
        self._peers: dict[int, _Peer] = {}
        self._retired: dict[int, _Peer] = {}
        self._sources: dict[tuple[int, Hashable], _Peer] = {}
        self._next_handle = 1
        self._ack_due: list[Receiver] = []
        # By the reason's name in `Counters`, and the peer whose address it came from (0: nobody's).
        self.turned_away: dict[tuple[str, int], TurnedAway] = {}
        for node, peer in (peers or {}).items():
            self.set_peer(node, peer)

    @property
    def counters(self) -> Counters:
        return self._local.counters

    # Configuration, changeable while running

    def set_peer(self, node: int, config: PeerConfig) -> None:
        """Add a peer, or change how it is reached. What is under way stays under way."""
        if not 1 <= node <= 255 or node == self._local.node:
            raise ValueError(f"peer id {node} is not in 1..255 or is this node's own")
        for path in config.paths:
            owner = self._sources.get((path.link, path.address))
            if owner is not None and owner.session.node != node:
                raise ValueError(
                    f"address {path.address!r} on link {path.link} is already that of peer {owner.session.node}; "
                    f"give peer {node} another one"
                )
        peer = self._peers.get(node) or self._retired.pop(node, None)
        if peer is None:
            peer = _Peer(self._local, node, config)
        self._forget_sources(peer)
        peer.session.use_paths(config)
        peer.sender.round_trip.limit(*peer.session.rto_range())
        self._peers[node] = peer
        for path in config.paths:
            self._sources[path.link, path.address] = peer

    def remove_peer(self, node: int) -> None:
        """Stop talking to a peer; what was on the way to it comes back. Unknown peers are ignored."""
        peer = self._peers.pop(node, None)
        if peer is None:
            return
        peer.sender.fail(Reason.REMOVED, queued=True)
        peer.sender.timer = peer.session.greet_deadline = peer.receiver.ack_deadline = inf
        peer.unreliable_waiting = None
        self._forget_sources(peer)
        # Kept, so that the sequences in nonces and the window against replay go on should it come back.
        self._retired[node] = peer

    def set_keys(self, keys: KeyRing | None) -> None:
        """Change the valid keys. Everywhere: first add the new one as second, then make it first, then drop the old."""
        self._local.use_keys(keys)
        for peer in (*self._peers.values(), *self._retired.values()):
            peer.session.forget_ciphers()

    # What the upper layer does

    def send(
        self, now: float, peer: int, channel: int, payload: Buffer | Sequence[Buffer], *, patience: float = 0.0
    ) -> int:
        """Start sending a message; the handle comes back in Delivered or Undelivered.

        `patience` (seconds): the caller expects within that time to learn in another way that the message has
        arrived, and cancels it then. It is not acknowledged before it is repeated, and not repeated earlier unless
        `ask` says so. Failure on delivery comes later for it only if there would be less than half of the budget to
        answer the repetitions in. Without effect on messages of several chunks, and for LOSSY_S after
        the peer had to be asked twice.

        A payload given as bytes (or a read-only view of bytes) is not copied. Raises KeyError for an unknown peer,
        ValueError for a channel or size that cannot be, Backlogged when too much waits for this peer already.
        """
        if not isinstance(payload, bytes | memoryview) or (type(payload) is memoryview and not payload.readonly):
            # Sealed twice under one nonce, a payload that has changed in between would give the key away: copy.
            payload = bytes(payload) if isinstance(payload, bytearray | memoryview) else b"".join(payload)
        if not 0 <= channel <= 255 or len(payload) > wire.MESSAGE_LENGTH_MAX:
            raise ValueError(
                f"channel {channel} (0..255) or length {len(payload)} (0..{wire.MESSAGE_LENGTH_MAX}) cannot be sent"
            )
        target = self._peers[peer]
        window, config, counters = target.sender.window, self._local.config, self._local.counters
        if window.queued >= config.queue_message_max or window.queued_bytes + len(payload) > config.queue_bytes_max:
            counters.backlogged += 1
            raise Backlogged(
                f"{window.queued} messages ({window.queued_bytes} bytes) already wait for peer {peer}; "
                "wait until some are delivered"
            )
        handle = self._next_handle
        self._next_handle = handle + 1
        counters.sent += 1
        if len(payload) > wire.DATAGRAM_MIN and not isinstance(payload, memoryview):
            payload = memoryview(payload)
        target.sender.submit(now, Message(handle, channel, payload, patience))
        return handle

    def send_unreliable(self, now: float, peer: int, channel: int, payload: bytes) -> None:
        """Send one datagram on every path and forget it. Before the session exists, only the newest waits for it."""
        del now
        target = self._peers[peer]
        if not 0 <= channel <= 255 or len(payload) > wire.DATAGRAM_MIN - wire.UNRELIABLE_OVERHEAD:
            raise ValueError(
                f"channel {channel} (0..255) or length {len(payload)} "
                f"(at most {wire.DATAGRAM_MIN - wire.UNRELIABLE_OVERHEAD} bytes) cannot be sent unreliably"
            )
        session = target.session
        if not session.incarnation:
            if target.unreliable_waiting is not None:
                self._local.counters.unreliable_dropped += 1
            target.unreliable_waiting = (channel, payload)
            session.greet_once()
            return
        sequence = session.take_sequence(wire.UNRELIABLE)
        header = session.prefix(wire.UNRELIABLE, sequence) + bytes((channel,))
        session.transmit_everywhere(session.seal(wire.UNRELIABLE, sequence, header, payload))

    def seek(self, now: float, peer: int) -> None:
        """This peer is absent: what is sent to it next must not wait for a network that has asked for it in vain."""
        self._peers[peer].session.seek(now)

    def cancel(self, handle: int) -> bool:
        """Forget a message: no notice follows, though it may still arrive. False if it is settled already."""
        for peer in self._peers.values():
            if peer.sender.cancel(handle):
                self._local.counters.cancelled += 1
                return True
        return False

    def ask(self, now: float, peer: int, handle: int) -> None:
        """Repeat a message sent with patience now, if it is under way and has not been repeated yet."""
        target = self._peers.get(peer)
        if target is not None:
            target.sender.ask(now, handle)

    # What the surroundings do

    def receive(self, now: float, link: int, source: Hashable, data: Buffer, segment_size: int = 0) -> None:
        """Take what a socket received: one datagram, or (segment_size > 0) several of that size, the last one shorter.

        `data` is only borrowed for the call.
        """
        peer = self._sources.get((link, source))
        if peer is None:
            self._refuse("unknown_source", source, 0, data)
            return
        if segment_size and len(data) > segment_size:
            self._receive_burst(now, peer, link, source, memoryview(data), segment_size)
        else:
            self._receive_one(now, peer, link, source, data, 0)
        receiver = peer.receiver
        if receiver.ack_due and receiver not in self._ack_due:
            self._ack_due.append(receiver)

    def path_refused(self, link: int, address: Hashable) -> None:
        """An ICMP error says that nobody listens at this address: a hint that shortens the waiting, never a proof."""
        peer = self._sources.get((link, address))
        if peer is not None:
            peer.sender.hasten(link, address)

    def link_lost(self, now: float, link: int) -> None:
        """One of our links has no carrier: every peer that it was the first way to is told over another one."""
        for peer in self._peers.values():
            if peer.session.leave(link):
                peer.sender.begin_anew(now)

    def tick(self, now: float) -> None:
        """Do what is due."""
        for peer in self._peers.values():
            if peer.session.greet_deadline <= now:
                peer.sender.expire_waiting(now)
            if peer.receiver.ack_deadline <= now:
                peer.receiver.acknowledge()
            if peer.sender.timer <= now:
                peer.sender.expire(now)

    def deadline(self) -> float:
        """When `tick` is wanted next; infinity if not at all."""
        earliest = inf
        for peer in self._peers.values():
            if peer.sender.timer < earliest:
                earliest = peer.sender.timer
            if peer.session.greet_deadline < earliest:
                earliest = peer.session.greet_deadline
            if peer.receiver.ack_deadline < earliest:
                earliest = peer.receiver.ack_deadline
        return earliest

    def take(self) -> list[Effect]:
        """What is to be done now, in order; acknowledgements of everything received so far come last."""
        if self._ack_due:
            for receiver in self._ack_due:
                if receiver.ack_due:
                    receiver.acknowledge()
            self._ack_due.clear()
        effects, self._local.effects = self._local.effects, []
        return effects

    def report(self) -> dict[int, PeerReport]:
        """How every peer is doing."""
        return {node: self._report(peer) for node, peer in self._peers.items()}

    @staticmethod
    def _report(peer: _Peer) -> PeerReport:
        session, sender = peer.session, peer.sender
        return PeerReport(
            session.incarnation,
            session.heard_at,
            sender.round_trip.smoothed,
            sender.round_trip.timeout,
            int(sender.congestion.window),
            sender.window.bytes_in_flight,
            sender.window.queued,
            session.path(1),
        )

    # Reception

    def _receive_burst(
        self, now: float, peer: _Peer, link: int, source: Hashable, data: memoryview, segment_size: int
    ) -> None:
        if data[1] == wire.SEGMENT and self._receive_one(now, peer, link, source, data, segment_size):
            return
        for at in range(0, len(data), segment_size):
            self._receive_one(now, peer, link, source, data[at : at + segment_size], 0)

    def _receive_one(
        self, now: float, peer: _Peer, link: int, source: Hashable, data: Buffer, segment_size: int
    ) -> bool:
        """One datagram, or one chunk's burst; False if the buffer turned out not to be such a burst."""
        try:
            prefix = wire.decode_prefix(data)
            self._check_addressed(prefix, peer)
            if prefix.kind <= wire.SEGMENT:
                return peer.receiver.on_chunk(now, prefix, data, link, source, segment_size)
            if prefix.kind == wire.ACK:
                self._on_ack(now, peer, prefix, data, link, source)
            elif prefix.kind == wire.HELLO:
                self._on_hello(now, peer, prefix, data, link, source)
            else:
                peer.receiver.on_unreliable(now, prefix, data)
        except Refused as refused:
            if segment_size:
                return False  # one wrong segment must not take the others with it
            self._refuse(refused.reason, source, peer.session.node, data)
        return True

    def _refuse(self, reason: str, source: Hashable, peer: int, data: Buffer) -> None:
        self._local.counters.count(reason)
        version, claimed = (data[0], data[2]) if len(data) >= wire.PREFIX_LENGTH else (0, 0)
        before = self.turned_away.get((reason, peer))
        self.turned_away[reason, peer] = TurnedAway(before.total + 1 if before else 1, source, version, claimed)

    def _check_addressed(self, prefix: Prefix, peer: _Peer) -> None:
        local = self._local
        if prefix.cluster != local.cluster:
            raise Refused("other_cluster")
        if prefix.source != peer.session.node:
            raise Refused("reflected" if prefix.source == local.node else "impersonated")
        if prefix.destination != local.node:
            raise Refused("misdirected")

    def _on_ack(self, now: float, peer: _Peer, prefix: Prefix, data: Buffer, link: int, source: Hashable) -> None:
        ack = wire.decode_ack(data)
        self._authenticate(peer.session, prefix, data)
        peer.session.require_bound(now, prefix)
        peer.session.heard_at = now
        peer.sender.on_ack(now, ack, link, source)

    def _on_hello(self, now: float, peer: _Peer, prefix: Prefix, data: Buffer, link: int, source: Hashable) -> None:
        challenge, echo = wire.decode_hello(data)
        self._authenticate(peer.session, prefix, data)
        if not challenge and not echo:
            peer.session.require_bound(now, prefix)
            if peer.session.follow(prefix, link, source):
                peer.sender.begin_anew(now)
            return
        if not peer.session.on_hello(prefix, challenge, echo):
            return
        peer.session.heard_at = now
        if peer.session.confirm(prefix.source_incarnation):
            peer.receiver.reset()
            peer.sender.fail(Reason.RESTARTED, queued=False)
        waiting, peer.unreliable_waiting = peer.unreliable_waiting, None
        if waiting is not None:
            self.send_unreliable(now, peer.session.node, *waiting)
        peer.sender.pump(now)

    def _authenticate(self, session: Session, prefix: Prefix, data: Buffer) -> None:
        cipher = session.cipher_of(prefix)
        cipher.open(wire.nonce(prefix.kind, prefix.destination, 0, prefix.sequence), data, len(data) - wire.TAG_LENGTH)
        session.keep_cipher(prefix, cipher)

    def _forget_sources(self, peer: _Peer) -> None:
        for name in [name for name, owner in self._sources.items() if owner is peer]:
            del self._sources[name]
