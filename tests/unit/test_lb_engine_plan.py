# SPDX-License-Identifier: Apache-2.0
"""From configuration to map contents, and the order of the writes between two contents."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpf import layout
from ebpf.layout import SLOT_MOVED, SLOT_TARGET_MASK, ServiceFlag, Setting, TargetFlag
from lb.configuration.model import Backend, ClusterConfig, Routed, Service, Vip
from lb.engine.plan import (
    DeleteEntries,
    Facts,
    Health,
    Hop,
    ReplaceTables,
    SetEntries,
    SetFlags,
    State,
    Write,
    desired_state,
    endpoint_bytes,
    marked,
    plan,
)

VIP = Vip("10.0.1.100/24", "outside")
HOP = Hop(7, b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", 1500)


def web(*backends: Backend, **changes: Any) -> Service:
    plain = Service("web", "10.0.1.100", "tcp", "dsr", 80, backends=backends, id=1)
    return replace(plain, **changes)


def config(*services: Service, routed: Routed | None = None) -> ClusterConfig:
    return ClusterConfig(vips=(VIP,), services=services, routed=routed)


B1, B2, B3 = (Backend(f"b{n}", f"10.0.2.{n}", id=n) for n in (1, 2, 3))


def row(data: bytes, dtype: np.dtype[Any]) -> Any:
    return np.frombuffer(data, dtype)[0]


def chosen(state: State, service: int = 1) -> set[int]:
    return set((state.tables[service] & SLOT_TARGET_MASK).tolist())


# --- what the maps should hold ----------------------------------------------------------------------------------------


def test_service_and_targets_are_laid_out() -> None:
    state = desired_state(config(web(B1, B2)), Facts(hops={1: HOP}))
    service = row(state.services[1], layout.SERVICE)
    assert layout.unpack_address(service["address"].tobytes()) == VIP.ip
    assert (int(service["port"]), int(service["protocol"]), int(service["table_slots"])) == (80, 6, 65537)
    target = row(state.targets[1], layout.TARGET)
    assert (int(target["service"]), int(target["ifindex"]), target["mac"].tobytes()) == (1, 7, HOP.mac)
    assert int(target["flags"]) == TargetFlag.ALIVE | TargetFlag.RESOLVED
    assert int(row(state.targets[2], layout.TARGET)["flags"]) == TargetFlag.ALIVE
    assert state.endpoints == {endpoint_bytes("10.0.1.100", 80, "tcp"): 1}
    assert chosen(state) == {1, 2}


# A sentence, the backends, what is known of their health, who may be chosen, and the flags of backend 1.
CHOICES = [
    ("both serve", (B1, B2), {}, {1, 2}, TargetFlag.ALIVE),
    ("a drained one takes nobody new", (replace(B1, drain=True), B2), {}, {2}, TargetFlag.ALIVE | TargetFlag.DRAINING),
    ("weight 0 is drained", (replace(B1, weight=0), B2), {}, {2}, TargetFlag.ALIVE | TargetFlag.DRAINING),
    ("a dead one is out", (B1, B2), {1: Health(False, 0)}, {2}, TargetFlag(0)),
    ("slow start at nothing", (B1, B2), {1: Health(True, 0)}, {2}, TargetFlag.ALIVE),
    (
        "a limited one is counted",
        (replace(B1, connections_max=9), B2),
        {},
        {1, 2},
        TargetFlag.ALIVE | TargetFlag.COUNTED,
    ),
]


@pytest.mark.parametrize(
    ("backends", "health", "expected", "flags"), [c[1:] for c in CHOICES], ids=[c[0] for c in CHOICES]
)
def test_who_is_chosen(
    backends: tuple[Backend, ...], health: dict[int, Health], expected: set[int], flags: TargetFlag
) -> None:
    state = desired_state(config(web(*backends)), Facts(health=health))
    assert chosen(state) == expected
    assert int(row(state.targets[1], layout.TARGET)["flags"]) == flags


def test_nobody_to_choose_means_no_slots() -> None:
    state = desired_state(config(web(B1)), Facts(health={1: Health(False, 0)}))
    assert int(row(state.services[1], layout.SERVICE)["table_slots"]) == 0


SERVICE_FLAGS = [
    (web(B1), ServiceFlag(0)),
    (web(B1, scheduler="rr"), ServiceFlag.REMEMBER_NEW),
    (web(B1, scheduler="wlc"), ServiceFlag.REMEMBER_NEW),
    (web(B1, forward="nat"), ServiceFlag.REMEMBER_NEW | ServiceFlag.STEERED),
    (web(B1, persistence_s=60), ServiceFlag.REMEMBER_NEW),
    (web(replace(B1, connections_max=5)), ServiceFlag.REMEMBER_NEW),
    (web(B1, on_backend_death="rechoose"), ServiceFlag.RECHOOSE_DEAD),
    (web(forward="local"), ServiceFlag.STEERED),
]


@pytest.mark.parametrize(("service", "flags"), SERVICE_FLAGS)
def test_service_flags(service: Service, flags: ServiceFlag) -> None:
    state = desired_state(config(service), Facts())
    assert int(row(state.services[1], layout.SERVICE)["flags"]) == flags


def test_features_in_use() -> None:
    assert desired_state(config(web(B1)), Facts()).flags == 0
    assert desired_state(config(web(B1)), Facts(records=True)).flags == Setting.RECORDS
    assert desired_state(config(web(B1, replicate="none")), Facts(records=True)).flags == 0
    assert desired_state(config(web(B1, forward="nat", port=0)), Facts()).flags == Setting.NAT | Setting.ANY_PORT
    assert desired_state(config(routed=Routed(id=9)), Facts()).flags == Setting.ROUTED


def test_wlc_lists_each_once_and_rr_by_weight() -> None:
    backends = (B1, replace(B2, weight=3))
    assert desired_state(config(web(*backends, scheduler="wlc")), Facts()).tables[1].tolist() == [1, 2]
    assert sorted(desired_state(config(web(*backends, scheduler="rr")), Facts()).tables[1].tolist()) == [1, 2, 2, 2]


def test_nat_services_that_share_a_backend_are_chained() -> None:
    first = web(B1, forward="nat")
    second = web(replace(B1, id=5, port=80), forward="nat", port=81, id=2, name="web2")
    state = desired_state(config(first, second), Facts())
    assert state.nat_return == {endpoint_bytes("10.0.2.1", 80, "tcp"): 1}
    assert [int(row(state.targets[t], layout.TARGET)["nat_next"]) for t in (1, 5)] == [5, 0]


# --- from one to another ----------------------------------------------------------------------------------------------


def applied(state: State, writes: list[Write]) -> State:
    """An independent interpreter of writes, that also demands that every reference holds after each of them."""
    for write in writes:
        match write:
            case SetEntries(name, entries):
                _held(state, name).update(entries)
            case DeleteEntries(name, keys):
                for key in keys:
                    _held(state, name).pop(key)
            case ReplaceTables(tables):
                state.tables.update(tables)
            case SetFlags(flags):
                state.flags = flags
        _references_hold(state)
    state.services = {key: value for key, value in state.services.items() if value.strip(b"\0")}
    state.targets = {key: value for key, value in state.targets.items() if value.strip(b"\0")}
    return state


def _held(state: State, name: str) -> dict[Any, Any]:
    held: dict[str, dict[Any, Any]] = {
        "services": state.endpoints,
        "service_table": state.services,
        "targets": state.targets,
        "nat_return": state.nat_return,
        "target_load": {},
    }
    return held[name]


def _references_hold(state: State) -> None:
    for service in state.endpoints.values():
        entry = row(state.services[service], layout.SERVICE)
        slots = int(entry["table_slots"])
        if slots:
            table = state.tables[service]
            assert len(table) >= slots, "a service sees more slots than its table has"
            for target in set((table[:slots] & SLOT_TARGET_MASK).tolist()):
                assert state.targets[target].strip(b"\0"), f"a table leads to target {target} that is not there"
    for target in state.nat_return.values():
        assert state.targets[target].strip(b"\0")


def same(left: State, right: State) -> bool:
    tables = all(
        np.array_equal(left.tables[key][: len(table)] & SLOT_TARGET_MASK, table)
        for key, table in right.tables.items()
        if len(table)
    )
    return tables and all(
        getattr(left, name) == getattr(right, name)
        for name in ("endpoints", "services", "targets", "nat_return", "flags")
    )


BACKENDS = st.lists(st.integers(1, 6), unique=True, max_size=4)
SERVICES = st.dictionaries(
    st.integers(1, 3),
    st.tuples(BACKENDS, st.sampled_from(["rr", "wlc"]), st.sampled_from(["dsr", "nat", "tunnel"]), st.booleans()),
    max_size=3,
)


def built(services: dict[int, Any]) -> ClusterConfig:
    return config(
        *(
            Service(
                f"s{n}", "10.0.1.100", "tcp", forward, 80 + n, scheduler=scheduler, id=n,
                backends=tuple(Backend(f"b{b}", f"10.0.2.{b}", id=n * 10 + b, drain=drained) for b in backends),
            )
            for n, (backends, scheduler, forward, drained) in services.items()
        )
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(SERVICES, min_size=2, max_size=4))
def test_every_step_between_any_two_configurations_is_safe(history: list[dict[int, Any]]) -> None:
    state = State()
    for services in history:
        wanted = desired_state(built(services), Facts())
        state = applied(state, plan(state, wanted))
        assert same(state, wanted)
        assert plan(state, wanted) == []


def test_only_what_differs_is_written() -> None:
    before = desired_state(config(web(B1, B2, scheduler="wlc")), Facts())
    after = desired_state(config(web(B1, replace(B2, weight=4), scheduler="wlc")), Facts())
    names = [(write.name, list(write.entries)) for write in plan(before, after) if isinstance(write, SetEntries)]
    assert names == [("targets", [2])]
    assert isinstance(plan(before, after)[-1], SetFlags), "the last write makes the path forget its short-cuts"


# --- marks ------------------------------------------------------------------------------------------------------------


def slots(*values: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.array(values, np.uint16)


M = SLOT_MOVED
MARKS = [
    ("nothing known before", None, slots(1, 2), slots(1 | M, 2 | M)),
    ("nothing changed", slots(1, 2), slots(1, 2), slots(1, 2)),
    ("one slot moved", slots(1, 2), slots(1, 3), slots(1, 3 | M)),
    ("moved back is still marked", slots(1, 3 | M), slots(1, 2), slots(1, 2 | M)),
    ("older marks stay", slots(1 | M, 2), slots(1, 2), slots(1 | M, 2)),
    ("the map has room for more", slots(1, 2, 0, 0), slots(1, 2), slots(1, 2)),
    ("longer than before", slots(1), slots(1, 2), slots(1 | M, 2 | M)),
]


@pytest.mark.parametrize(("before", "after", "expected"), [case[1:] for case in MARKS], ids=[case[0] for case in MARKS])
def test_marks(before: Any, after: Any, expected: Any) -> None:
    assert marked(before, after).tolist() == expected.tolist()
