# SPDX-License-Identifier: Apache-2.0
"""The ring's transport: atomic acknowledged unicast over datagrams, sans I/O. See `transport.py`."""

from sync.transport.effects import (
    Arrived,
    Asked,
    Backlogged,
    Counters,
    Delivered,
    Effect,
    Path,
    PeerConfig,
    PeerReport,
    Randomness,
    Reason,
    Resolve,
    Transmit,
    TransportConfig,
    TurnedAway,
    Undelivered,
)
from sync.transport.keys import Key, KeyRing
from sync.transport.transport import Transport
from sync.transport.wire import DATAGRAM_MIN, MESSAGE_LENGTH_MAX

__all__ = [
    "DATAGRAM_MIN",
    "MESSAGE_LENGTH_MAX",
    "Arrived",
    "Asked",
    "Backlogged",
    "Counters",
    "Delivered",
    "Effect",
    "Key",
    "KeyRing",
    "Path",
    "PeerConfig",
    "PeerReport",
    "Randomness",
    "Reason",
    "Resolve",
    "Transmit",
    "Transport",
    "TransportConfig",
    "TurnedAway",
    "Undelivered",
]
