# SPDX-License-Identifier: Apache-2.0
"""Shared data, locks and primitives over the ring's ordered stream: the Group Data Manager (thesis §3.10), sans I/O."""

from .commands import ABSENT, ANY_VERSION, BarrierMode, Kind, MalformedCommand, Operation
from .effects import (
    Answered,
    Changed,
    Complete,
    Effect,
    LockLost,
    MulticastCommand,
    QueuesChanged,
    Replaced,
    SendPeer,
    StandingChanged,
)
from .group import SharedData
from .items import Change, Item
from .limits import CHANNEL
from .own_copy import Phase
from .requests import TooManyRequests
from .results import Committed, ConditionFailed, Done, Granted, Owner, Passed, Refusal, Refused, Result, Taken, Unknown

__all__ = [
    "ABSENT",
    "ANY_VERSION",
    "CHANNEL",
    "Answered",
    "BarrierMode",
    "Change",
    "Changed",
    "Committed",
    "Complete",
    "ConditionFailed",
    "Done",
    "Effect",
    "Granted",
    "Item",
    "Kind",
    "LockLost",
    "MalformedCommand",
    "MulticastCommand",
    "Operation",
    "Owner",
    "Passed",
    "Phase",
    "QueuesChanged",
    "Refusal",
    "Refused",
    "Replaced",
    "Result",
    "SendPeer",
    "SharedData",
    "StandingChanged",
    "Taken",
    "TooManyRequests",
    "Unknown",
]
