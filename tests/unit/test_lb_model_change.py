# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (tables: one case a line)
"""From one configuration to the next: identities stay, differences are told."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.configuration import change as model_change
from lb.configuration.change import IdentitiesExhausted, diff, succeed
from lb.configuration.model import EMPTY, Backend, ClusterConfig, Policy, Routed, Service, Vip


def config(*services: Service) -> ClusterConfig:
    return ClusterConfig(vips=(Vip("10.0.1.100/24", "outside"),), services=services)


def web(*backends: Backend, name: str = "web", port: int = 80) -> Service:
    return Service(name, "10.0.1.100", "tcp", "nat", port, backends=backends)


B1, B2, B3 = (Backend(f"b{n}", f"10.0.2.{n}") for n in (1, 2, 3))


def ids(value: ClusterConfig) -> dict[str, int]:
    return {backend.name: backend.id for service in value.services for backend in service.backends}


def test_identities_are_assigned_and_stay() -> None:
    first = succeed(EMPTY, config(web(B1, B2)))
    second = succeed(first, config(web(B3, replace(B2, weight=5))))
    assert (first.version, second.version) == (1, 2)
    assert ids(first) == {"b1": 1, "b2": 2}
    assert ids(second) == {"b3": 3, "b2": 2}
    assert second.services[0].id == first.services[0].id == 1


def test_backend_that_moves_to_another_address_is_another_backend() -> None:
    first = succeed(EMPTY, config(web(B1)))
    moved = succeed(first, config(web(replace(B1, address="10.0.2.99"))))
    translated = succeed(moved, config(web(replace(B1, address="10.0.2.99", port=8080))))
    assert ids(first)["b1"] != ids(moved)["b1"] != ids(translated)["b1"]


def test_freed_identity_is_used_again_only_after_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_change, "BACKEND_COUNT_MAX", 4)
    value = succeed(EMPTY, config(web(B1)))
    seen = [ids(value)["b1"]]
    for octet in range(10, 15):
        value = succeed(value, config(web(replace(B1, address=f"10.0.2.{octet}"))))
        seen.append(ids(value)["b1"])
    assert seen == [1, 2, 3, 4, 1, 2]


def test_hash_seed_is_drawn_once() -> None:
    first = succeed(EMPTY, config(), lambda: "aa")
    assert succeed(first, config(web(B1)), lambda: "bb").hash_seed == "aa" == first.hash_seed
    assert len(succeed(EMPTY, config()).hash_seed) == 32


def test_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_change, "BACKEND_COUNT_MAX", 2)
    with pytest.raises(IdentitiesExhausted, match="at most 2"):
        succeed(EMPTY, config(web(B1, B2, B3)))


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6)


@settings(max_examples=50)
@given(st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=8))
def test_identities_are_unique_and_stable_over_any_history(history: list[tuple[list[str], list[str]]]) -> None:
    value = EMPTY
    for services, backends in history:
        new = config(*(web(*(Backend(b, f"10.0.2.{ord(b)}") for b in backends), name=s, port=ord(s)) for s in services))
        after = succeed(value, new)
        backend_ids = [backend.id for service in after.services for backend in service.backends]
        assert len(set(backend_ids)) == len(backend_ids)
        assert len({service.id for service in after.services}) == len(after.services)
        assert 0 not in backend_ids
        for service in after.services:
            before = value.service(service.name)
            if before:
                assert before.id == service.id
                known = {backend.name: backend.id for backend in before.backends}
                assert all(known.get(backend.name, backend.id) == backend.id for backend in service.backends)
        value = after


def texts(old: ClusterConfig, new: ClusterConfig) -> list[str]:
    return [change.text for change in diff(old, new)]


def test_nothing_changed() -> None:
    first = succeed(EMPTY, config(web(B1)))
    assert diff(first, config(web(B1))) == []


DIFFERENCES = [
    (EMPTY, config(), ["+ vip[10.0.1.100] 10.0.1.100/24 on outside"]),
    (config(), config(web(B1)), ["+ service[web] tcp 10.0.1.100 port 80, nat, maglev", "+ service[web].backend[b1] 10.0.2.1 port as the service, weight 1"]),
    (config(web(B1)), config(), ["- service[web] tcp 10.0.1.100 port 80, nat, maglev"]),
    (config(web(B1)), config(web(B2)), ["- service[web].backend[b1] 10.0.2.1 port as the service, weight 1", "+ service[web].backend[b2] 10.0.2.2 port as the service, weight 1"]),
    (config(web(B1)), config(web(replace(B1, weight=3, drain=True))), ["~ service[web].backend[b1].weight: 1 → 3", "~ service[web].backend[b1].drain: False → True"]),
    (config(web(B1)), config(web(B1, port=81)), ["~ service[web].port: 80 → 81"]),
    (config(), replace(config(), policy=Policy(failback=True)), ["~ policy.failback: False → True"]),
    (config(), replace(config(), routed=Routed()), ["+ routed[all] all connections, replicate established"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "expected"), DIFFERENCES)
def test_differences_in_words(old: ClusterConfig, new: ClusterConfig, expected: list[str]) -> None:
    assert texts(old, new) == expected
