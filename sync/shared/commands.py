# SPDX-License-Identifier: Apache-2.0
"""Commands of the shared data: their form on the wire and the one decoder that validates them.

A command is a msgpack array `[kind, stamp, session, ticket, ...]`. `stamp` is the origin's Lamport clock when it was
submitted (L. Lamport, "Time, clocks, and the ordering of events in a distributed system", CACM 21, 1978), `session`
the origin's incarnation and `ticket` its number for the request. A command that does not decode is counted and
ignored, by every replica alike.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgpack

from . import limits

INTEGER_MAX = (1 << 63) - 1


class MalformedCommand(ValueError):
    """A payload on the shared-data channel that is not a command; the text says what is wrong with it."""


class Kind(enum.IntEnum):
    """Kinds of command."""

    WRITE = 1
    ACQUIRE = 2
    RENEW = 3
    RELEASE = 4
    EXPIRE = 5
    ENTER = 6
    LEAVE = 7
    PUT = 8
    TAKE = 9
    ACKNOWLEDGE = 10
    WITHDRAW = 11
    REPORT = 12
    COMPARE = 13
    FETCHED = 14


class Operation(enum.IntEnum):
    """Inside a WRITE: `[SET, key, value]`, `[PATCH, key, offset, bytes]`, `[DELETE, key]`, `[ADD, key, n]`."""

    SET = 1
    PATCH = 2
    DELETE = 3
    ADD = 4


class BarrierMode(enum.IntEnum):
    """FIRST: one passes and acts, the others when it is done. ALL: all pass when `parties` are there (0: members)."""

    FIRST = 1
    ALL = 2


ANY_VERSION = -1  # condition: the item exists, whatever its version
ABSENT = 0  # condition: there is no such item


class Command(NamedTuple):
    """A validated command; `arguments` has the form its kind's checker states."""

    kind: int
    stamp: int
    session: int
    ticket: int
    arguments: Sequence[Any]


def check(kind: int, arguments: Sequence[Any]) -> None:
    """Raises MalformedCommand where a receiver would refuse these arguments."""
    checker = CHECKERS.get(kind)
    if checker is None:
        raise MalformedCommand(f"unknown kind {kind}")
    checker(arguments)


def encode(kind: int, stamp: int, session: int, ticket: int, *arguments: Any) -> bytes:
    """The bytes of a command. Raises MalformedCommand where a receiver would refuse them."""
    check(kind, arguments)
    payload: bytes = msgpack.packb([int(kind), stamp, session, ticket, *arguments])
    if len(payload) > limits.COMMAND_BYTES_MAX:
        raise MalformedCommand(f"{len(payload)} bytes exceed COMMAND_BYTES_MAX {limits.COMMAND_BYTES_MAX}")
    return payload


def decode(payload: bytes | bytearray | memoryview) -> Command:
    """The command in `payload`. Raises MalformedCommand for anything `encode` could not have made."""
    if len(payload) > limits.COMMAND_BYTES_MAX:
        raise MalformedCommand(f"{len(payload)} bytes exceed COMMAND_BYTES_MAX {limits.COMMAND_BYTES_MAX}")
    try:
        fields = msgpack.unpackb(payload, raw=False)
    except (ValueError, TypeError, RecursionError) as error:  # msgpack's own errors are ValueErrors
        raise MalformedCommand(f"not msgpack: {error}") from None
    if type(fields) is not list or len(fields) < 4:
        raise MalformedCommand("not an array of at least four")
    kind, stamp, session, ticket, *arguments = fields
    for value in (kind, stamp, session, ticket):
        if type(value) is not int or not 0 <= value <= INTEGER_MAX:
            raise MalformedCommand("kind, stamp, session and ticket are integers from 0 to 2^63-1")
    check(kind, arguments)
    return Command(kind, stamp, session, ticket, arguments)


# --- one checker a kind ---------------------------------------------------------------------------------------------


def _count(arguments: Sequence[Any], wanted: int) -> None:
    if len(arguments) != wanted:
        raise MalformedCommand(f"{len(arguments)} arguments, not {wanted}")


def _text(value: Any, bytes_max: int, what: str) -> None:
    if type(value) is not str or not value:
        raise MalformedCommand(f"{what} is a text that is not empty")
    if len(value) > bytes_max or (len(value) * 4 > bytes_max and len(_utf8(value)) > bytes_max):
        raise MalformedCommand(f"{what} is longer than {bytes_max} bytes")
    if not value.isascii():
        _utf8(value)


def _utf8(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise MalformedCommand("a text holds a lone surrogate") from None


def _integer(value: Any, low: int, high: int, what: str) -> None:
    if not isinstance(value, int) or type(value) is bool or not low <= value <= high:
        raise MalformedCommand(f"{what} is an integer from {low} to {high}")


def _blob(value: Any, what: str) -> None:
    if type(value) is not bytes:
        raise MalformedCommand(f"{what} is bytes")
    if len(value) > limits.VALUE_BYTES_MAX:
        raise MalformedCommand(f"{what} is longer than VALUE_BYTES_MAX {limits.VALUE_BYTES_MAX}")


def _flag(value: Any, what: str) -> None:
    if type(value) is not bool:
        raise MalformedCommand(f"{what} is true or false")


def _sequence(value: Any, most: int, what: str) -> None:
    if type(value) not in (list, tuple) or len(value) > most:
        raise MalformedCommand(f"{what} is an array of at most {most}")


def _check_operation(operation: Any) -> None:
    if type(operation) not in (list, tuple) or len(operation) < 2:
        raise MalformedCommand("an operation is an array of at least two")
    code = operation[0]
    _text(operation[1], limits.KEY_BYTES_MAX, "a key")
    if code == Operation.SET and len(operation) == 3:
        _blob(operation[2], "a value")
    elif code == Operation.PATCH and len(operation) == 4:
        _integer(operation[2], 0, limits.VALUE_BYTES_MAX, "an offset")
        _blob(operation[3], "a patch")
    elif code == Operation.ADD and len(operation) == 3:
        _integer(operation[2], -INTEGER_MAX, INTEGER_MAX, "an addend")
    elif code != Operation.DELETE or len(operation) != 2:
        raise MalformedCommand(f"no operation {code!r} with {len(operation) - 1} arguments")


def _check_write(arguments: Sequence[Any]) -> None:
    """conditions [[key, version]...], operations [[code, key, ...]...]"""
    _count(arguments, 2)
    conditions, operations = arguments
    _sequence(conditions, limits.CONDITIONS_MAX, "the conditions")
    for condition in conditions:
        _sequence(condition, 2, "a condition")
        _count(condition, 2)
        _text(condition[0], limits.KEY_BYTES_MAX, "a key")
        _integer(condition[1], ANY_VERSION, INTEGER_MAX, "a version")
    _sequence(operations, limits.OPERATIONS_MAX, "the operations")
    for operation in operations:
        _check_operation(operation)


def _check_acquire(arguments: Sequence[Any]) -> None:
    """name, lease in ms, wait"""
    _count(arguments, 3)
    _name(arguments[0])
    _integer(arguments[1], limits.LEASE_MS_MIN, limits.LEASE_MS_MAX, "a lease")
    _flag(arguments[2], "wait")


def _name(value: Any) -> None:
    _text(value, limits.NAME_BYTES_MAX, "a name")


def _check_name_and_ticket(arguments: Sequence[Any]) -> None:
    """name, ticket of the request it is about"""
    _count(arguments, 2)
    _name(arguments[0])
    _integer(arguments[1], 0, INTEGER_MAX, "a ticket")


def _check_expire(arguments: Sequence[Any]) -> None:
    """name, fencing, renewals seen"""
    _count(arguments, 3)
    _name(arguments[0])
    _integer(arguments[1], 0, INTEGER_MAX, "a fencing number")
    _integer(arguments[2], 0, INTEGER_MAX, "a number of renewals")


def _check_enter(arguments: Sequence[Any]) -> None:
    """name, mode, parties"""
    _count(arguments, 3)
    _name(arguments[0])
    _integer(arguments[1], BarrierMode.FIRST, BarrierMode.ALL, "a mode")
    _integer(arguments[2], 0, limits.WAITERS_MAX, "a number of parties")


def _check_put(arguments: Sequence[Any]) -> None:
    """name, value"""
    _count(arguments, 2)
    _name(arguments[0])
    _blob(arguments[1], "an element")


def _check_take(arguments: Sequence[Any]) -> None:
    """name, wait"""
    _count(arguments, 2)
    _name(arguments[0])
    _flag(arguments[1], "wait")


def _check_withdraw(arguments: Sequence[Any]) -> None:
    """ticket of a waiting request of the same origin"""
    _count(arguments, 1)
    _integer(arguments[0], 0, INTEGER_MAX, "a ticket")


def _check_report(arguments: Sequence[Any]) -> None:
    """view, comparison number, synchronised, lineage, clock, digest of 16 bytes"""
    _count(arguments, 6)
    view, comparison, synchronised, lineage, clock, digest = arguments
    for value in (view, comparison, lineage, clock):
        _integer(value, 0, INTEGER_MAX, "a view, comparison, lineage or clock")
    _flag(synchronised, "synchronised")
    if type(digest) is not bytes or len(digest) != 16:
        raise MalformedCommand("a digest is 16 bytes")


def _check_nothing(arguments: Sequence[Any]) -> None:
    """no arguments"""
    _count(arguments, 0)


CHECKERS: dict[int, Callable[[Sequence[Any]], None]] = {
    Kind.WRITE: _check_write,
    Kind.ACQUIRE: _check_acquire,
    Kind.RENEW: _check_name_and_ticket,
    Kind.RELEASE: _check_name_and_ticket,
    Kind.EXPIRE: _check_expire,
    Kind.ENTER: _check_enter,
    Kind.LEAVE: _check_name_and_ticket,
    Kind.PUT: _check_put,
    Kind.TAKE: _check_take,
    Kind.ACKNOWLEDGE: _check_name_and_ticket,
    Kind.WITHDRAW: _check_withdraw,
    Kind.REPORT: _check_report,
    Kind.COMPARE: _check_nothing,
    Kind.FETCHED: _check_nothing,
}
