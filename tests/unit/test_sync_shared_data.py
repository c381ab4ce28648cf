# SPDX-License-Identifier: Apache-2.0
"""Data items and transactions: against a dictionary, and between replicas."""

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sync.shared import (
    ABSENT,
    ANY_VERSION,
    Committed,
    ConditionFailed,
    Kind,
    MalformedCommand,
    Operation,
    Refusal,
    Refused,
    TooManyRequests,
    commands,
    limits,
)
from sync.shared.items import ItemStore, RefusedWrite
from tests.unit.sync_shared_bus import Bus

SET, PATCH, DELETE, ADD = Operation.SET, Operation.PATCH, Operation.DELETE, Operation.ADD


def write(bus: Bus, node: int, *operations: Any, conditions: Any = ()) -> Any:
    ticket = bus.shared(node).write(bus.now, operations, conditions)
    bus.settle()
    return bus.answer(node, ticket)


def test_a_write_is_visible_everywhere_with_one_version() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    result = write(bus, 2, (SET, "a", b"1"), (SET, "b", b"2"))
    assert isinstance(result, Committed)
    for node in (1, 2, 3):
        assert bus.items(node) == {"a": b"1", "b": b"2"}
        item = bus.shared(node).replica.items.get("a")
        assert item is not None
        assert (item.version, item.writer) == (result.version, 2)
    bus.assert_equal()


def test_compare_and_set_has_one_winner_among_racing_nodes() -> None:
    bus = Bus()
    bus.form(1, 2, 3)
    tickets = {n: bus.shared(n).write(bus.now, [(SET, "x", b"%d" % n)], [("x", ABSENT)]) for n in (1, 2, 3)}
    bus.settle()
    results = {node: bus.answer(node, ticket) for node, ticket in tickets.items()}
    winners = [node for node, result in results.items() if isinstance(result, Committed)]
    assert len(winners) == 1
    assert bus.items(1) == {"x": b"%d" % winners[0]}
    version = bus.shared(1).replica.items.version("x")
    assert [r for r in results.values() if isinstance(r, ConditionFailed)] == [ConditionFailed(0, version)] * 2


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        ([(SET, "kept", b"new"), (PATCH, "missing", 0, b"x")], Refusal.NO_SUCH_ITEM),
        ([(SET, "kept", b"new"), (PATCH, "kept", 4, b"x")], Refusal.PATCH_BEYOND_END),
        ([(DELETE, "kept"), (PATCH, "kept", 0, b"x")], Refusal.NO_SUCH_ITEM),
        ([(SET, "kept", b"123"), (ADD, "kept", 1)], Refusal.NOT_A_COUNTER),
        ([(ADD, "n", limits.VALUE_BYTES_MAX), (ADD, "n", (1 << 63) - 1)], Refusal.COUNTER_OVERFLOW),
        ([(SET, "n", b"x" * limits.VALUE_BYTES_MAX), (PATCH, "n", 1, b"y" * limits.VALUE_BYTES_MAX)],
         Refusal.VALUE_TOO_LARGE),
    ],
)  # fmt: skip
def test_a_transaction_that_fails_anywhere_changes_nothing(operations: list[Any], reason: Refusal) -> None:
    bus = Bus()
    bus.form(1, 2)
    write(bus, 1, (SET, "kept", b"old"))
    assert write(bus, 2, *operations) == Refused(reason)
    assert bus.items(1) == {"kept": b"old"}
    bus.assert_equal()


def test_a_transaction_whose_condition_fails_changes_nothing() -> None:
    bus = Bus()
    bus.form(1, 2)
    first = write(bus, 1, (SET, "a", b"1"))
    conditions = [("a", ANY_VERSION), ("b", ANY_VERSION)]
    assert write(bus, 2, (SET, "a", b"2"), conditions=conditions) == ConditionFailed(1, 0)
    assert isinstance(write(bus, 2, (SET, "a", b"2"), conditions=[("a", first.version)]), Committed)
    assert bus.items(2) == {"a": b"2"}


def test_partial_writes_and_counters() -> None:
    bus = Bus()
    bus.form(1, 2)
    write(bus, 1, (SET, "a", b"hello"))
    write(bus, 2, (PATCH, "a", 1, b"EL"), (PATCH, "a", 5, b"!"))
    assert bus.items(1)["a"] == b"hELlo!"
    totals = [write(bus, node, (ADD, "n", step)).counters for node, step in ((1, 5), (2, -7), (1, 1))]
    assert totals == [(5,), (-2,), (-1,)]


def test_the_store_refuses_to_grow_past_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ITEMS_MAX", 2)
    store = ItemStore()
    planned, _ = store.plan([(SET, "a", b"1"), (SET, "b", b"2")])
    store.commit(planned, 1, 1)
    with pytest.raises(RefusedWrite):
        store.plan([(SET, "c", b"3")])
    store.plan([(SET, "c", b"3"), (DELETE, "a")])
    monkeypatch.setattr(limits, "STORE_BYTES_MAX", 3)
    with pytest.raises(RefusedWrite):
        store.plan([(SET, "a", b"1234")])


def test_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS_MAX", 3)
    bus = Bus()
    bus.form(1)
    for _ in range(3):
        bus.shared(1).write(bus.now, [(SET, "a", b"")])
    with pytest.raises(TooManyRequests):
        bus.shared(1).write(bus.now, [(SET, "a", b"")])
    bus.settle()
    bus.shared(1).write(bus.now, [(SET, "a", b"")])


def test_changes_from_a_version_are_served_while_they_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHANGES_KEPT", 4)
    store = ItemStore()
    for version in range(1, 4):
        store.commit({f"k{version}": b"v"}, version, 1)
    store.commit({"k1": None}, 4, 1)
    changes = store.changes_since(1, "k")
    assert changes is not None
    assert [(c.key, c.item is None, c.version) for c in changes] == [
        ("k2", False, 2),
        ("k3", False, 3),
        ("k1", True, 4),
    ]
    store.commit({"k5": b""}, 5, 1)
    assert store.changes_since(0) is None, "version 1 is no longer remembered"
    assert [c.key for c in store.changes_since(1) or []] == ["k2", "k3", "k1", "k5"]


def test_a_snapshot_keeps_its_moment_while_writes_go_on() -> None:
    store = ItemStore()
    store.commit({f"{n}": b"old" for n in range(1000)}, 1, 1)
    frozen = store.freeze()
    store.commit({f"{n}": b"new" for n in range(500)}, 2, 1)
    store.commit({"999": None}, 3, 1)
    assert {item.value for bucket in frozen for item in bucket.values()} == {b"old"}
    assert sum(len(bucket) for bucket in frozen) == 1000
    assert len(store) == 999


@pytest.mark.parametrize(
    "fields",
    [
        b"\xc1", b"", msgpack.packb(7), msgpack.packb([1, 2, 3]), msgpack.packb([99, 0, 0, 0]),
        msgpack.packb([Kind.WRITE, -1, 0, 0, [], []]),
        msgpack.packb([Kind.WRITE, 0, 0, 1 << 63, [], []]),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [], [[SET, "", b""]]]),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [], [[SET, "é" * 257, b""]]]),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [], [[SET, "a", "text"]]]),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [], [[SET, "a"]]]),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [], [[True, "a", b""]]]).replace(b"\xc3", b"\xc2"),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [["a"]], []]),
        msgpack.packb([Kind.WRITE, 0, 0, 0, [["a", -2]], []]),
        msgpack.packb([Kind.ACQUIRE, 0, 0, 0, "l", 1, True]),
        msgpack.packb([Kind.ACQUIRE, 0, 0, 0, "l", 1000, 1]),
        msgpack.packb([Kind.ENTER, 0, 0, 0, "b", 3, 0]),
        msgpack.packb([Kind.REPORT, 0, 0, 0, 1, 1, True, 1, 1, b"short"]),
        msgpack.packb([Kind.COMPARE, 0, 0, 0, 1]),
    ],
)  # fmt: skip
def test_malformed_commands_are_refused_and_counted(fields: bytes) -> None:
    with pytest.raises(MalformedCommand):
        commands.decode(fields)
    bus = Bus()
    bus.form(1, 2)
    before = bus.shared(1).digest()
    bus.multicast(1, [fields])
    bus.settle()
    assert bus.shared(1).digest() == before
    assert bus.shared(2).counters["malformed_commands"] == 1


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_crash_the_decoder(payload: bytes) -> None:
    try:
        command = commands.decode(payload)
    except MalformedCommand:
        return
    again = commands.encode(command.kind, command.stamp, command.session, command.ticket, *command.arguments)
    assert commands.decode(again) == command


KEYS = st.sampled_from(["a", "b", "config/x", "config/y", "é"])
OPERATIONS = st.one_of(
    st.tuples(st.just(SET), KEYS, st.binary(max_size=12)),
    st.tuples(st.just(DELETE), KEYS),
    st.tuples(st.just(PATCH), KEYS, st.integers(0, 12), st.binary(max_size=4)),
    st.tuples(st.just(ADD), KEYS, st.integers(-(1 << 62), 1 << 62)),
)


def model_apply(model: dict[str, bytes], operations: Any) -> dict[str, bytes] | None:
    """The same transaction on a plain dictionary; None: it must be refused."""
    after = dict(model)
    for operation in operations:
        code, key = operation[0], operation[1]
        value = after.get(key)
        if code == SET:
            after[key] = operation[2]
        elif code == DELETE:
            after.pop(key, None)
        elif code == PATCH:
            if value is None or operation[2] > len(value):
                return None
            after[key] = value[: operation[2]] + operation[3] + value[operation[2] + len(operation[3]) :]
        else:
            if value is not None and len(value) != 8:
                return None
            total = int.from_bytes(value or b"", "big", signed=True) + operation[2]
            if not -(1 << 63) <= total < 1 << 63:
                return None
            after[key] = total.to_bytes(8, "big", signed=True)
    return after


class AgainstDictionary(RuleBasedStateMachine):
    """Three replicas whose members come and go, against one dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.bus = Bus()
        self.bus.form(1, 2, 3)
        self.model: dict[str, bytes] = {}
        self.versions: dict[str, int] = {}

    @rule(node=st.sampled_from([1, 2]), operations=st.lists(OPERATIONS, min_size=1, max_size=4))
    def transaction(self, node: int, operations: Any) -> None:
        after = model_apply(self.model, operations)
        result = write(self.bus, node, *operations)
        assert isinstance(result, Refused if after is None else Committed)
        self._adopt(after, result)

    @rule(node=st.sampled_from([1, 2]), key=KEYS, value=st.binary(max_size=4), stale=st.booleans())
    def compare_and_set(self, node: int, key: str, value: bytes, stale: bool) -> None:
        wanted = self.versions.get(key, 0) + (1 if stale else 0)
        result = write(self.bus, node, (SET, key, value), conditions=[(key, wanted)])
        if stale:
            assert result == ConditionFailed(0, self.versions.get(key, 0))
        else:
            self._adopt({**self.model, key: value}, result)

    def _adopt(self, after: dict[str, bytes] | None, result: Any) -> None:
        if after is None:
            return
        store = self.bus.shared(1).replica.items
        touched = {key for key, _ in store.scan() if store.version(key) == result.version}
        assert {key for key in after if after[key] != self.model.get(key)} <= touched
        self.model = after
        self.versions = {key: store.version(key) for key in after}

    @rule()
    def third_leaves_and_returns_empty(self) -> None:
        self.bus.kill(3)
        self.bus.commit([1, 2])
        self.bus.settle()
        self.bus.start(3)
        self.bus.commit([1, 2, 3], joined=[3])

    @rule(key=KEYS)
    def third_writes_alone_and_is_absorbed(self, key: str) -> None:
        self.bus.commit([1, 2])
        self.bus.commit([3])
        write(self.bus, 3, (SET, key, b"lost"))
        self.bus.commit([1, 2, 3], joined=[3])

    @invariant()
    def all_equal_the_model(self) -> None:
        self.bus.settle()
        assert self.bus.items(1) == self.model
        self.bus.assert_equal()


AgainstDictionary.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAgainstDictionary = AgainstDictionary.TestCase
