# SPDX-License-Identifier: Apache-2.0
"""Who checks a backend, and what the reports add up to."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.configuration.model import Backend, ClusterConfig, HealthCheck, Service
from lb.health.agreement import CHECKERS_PER_BACKEND, Report, checkers, slow_start_weight, verdict
from lb.health.board import FULL, HealthBoard

UP, DOWN = Report(True, "status 200", 1.0), Report(False, "refused", 1.0)


@pytest.mark.parametrize(
    ("reports", "checking", "alive"),
    [
        ({}, (1, 2, 3), True),
        ({1: DOWN}, (1,), False),
        ({1: UP}, (1,), True),
        ({1: DOWN, 2: UP}, (1, 2), True),
        ({1: DOWN, 2: DOWN, 3: UP}, (1, 2, 3), False),
        ({1: DOWN, 2: UP, 3: UP}, (1, 2, 3), True),
        ({1: DOWN}, (1, 2, 3), True),
        ({1: DOWN, 2: DOWN}, (1, 2, 3), False),
        ({4: DOWN, 5: DOWN, 6: DOWN}, (1, 2, 3), False),
        ({1: UP, 2: UP, 4: DOWN, 5: DOWN}, (1, 2, 3), True),
    ],
)
def test_most_checkers_decide(reports: dict[int, Report], checking: tuple[int, ...], alive: bool) -> None:
    assert verdict(reports, checking) is alive


def test_the_newest_report_of_a_former_checker_fills_a_gap() -> None:
    reports = {1: DOWN, 4: Report(True, "", 5.0), 5: Report(False, "", 9.0)}
    assert verdict(reports, (1, 2)) is False
    assert verdict(reports | {4: Report(True, "", 10.0)}, (1, 2)) is True


@given(st.integers(1, 65534), st.sets(st.integers(1, 255), min_size=1, max_size=12))
def test_checkers_are_members_and_stay_when_an_uninvolved_member_leaves(backend_id: int, members: set[int]) -> None:
    chosen = checkers(backend_id, members)
    assert set(chosen) <= members
    assert len(chosen) == min(CHECKERS_PER_BACKEND, len(members))
    for gone in members - set(chosen):
        assert checkers(backend_id, members - {gone}) == chosen


def test_checks_are_spread_evenly_over_the_gateways() -> None:
    load = Counter(node for backend_id in range(1, 3001) for node in checkers(backend_id, range(1, 9)))
    assert min(load.values()) > 0.85 * max(load.values())


@given(st.integers(0, 65535), st.floats(0, 1000), st.integers(0, 600))
def test_slow_start_stays_within_the_configured_weight(weight: int, seconds: float, slow_start_s: int) -> None:
    given_weight = slow_start_weight(weight, seconds, slow_start_s)
    assert (given_weight == 0) == (weight == 0)
    assert given_weight <= weight
    if seconds >= slow_start_s:
        assert given_weight == weight


class Cluster:
    """Boards of several gateways over one ordered stream of shared items."""

    def __init__(self, members: tuple[int, ...], slow_start_s: int = 0) -> None:
        self.now = 1000.0
        health = HealthCheck(kind="tcp", slow_start_s=slow_start_s)
        backend = Backend(name="b1", address="10.0.2.11", weight=100, id=7)
        service = Service("web", "10.0.1.100", "tcp", "nat", port=80, health=health, backends=(backend,), id=1)
        self.boards = {
            node: HealthBoard(node, self.share, lambda changed: None, clock=lambda: self.now) for node in members
        }
        for board in self.boards.values():
            board.configure(ClusterConfig(services=(service,)))
            board.members_changed(members)

    def share(self, key: str, value: bytes | None) -> None:
        for board in self.boards.values():
            board.shared(key, value)

    def report(self, node: int, alive: bool) -> None:
        finding = {"backend_id": 7, "alive": alive, "detail": "seen", "since": self.now}
        self.boards[node].report([finding])

    def states(self) -> set[tuple[bool, int]]:
        return {(b.condition(7).alive, b.condition(7).tenths) for b in self.boards.values()}


def test_one_broken_gateway_does_not_eject_a_backend() -> None:
    cluster = Cluster((1, 2, 3))
    cluster.report(1, False)
    assert cluster.states() == {(True, FULL)}
    cluster.report(2, False)
    assert cluster.states() == {(False, FULL)}
    cluster.report(2, True)
    assert cluster.states() == {(True, FULL)}


def test_a_gateway_that_leaves_takes_its_vote_along() -> None:
    cluster = Cluster((1, 2, 3))
    for node in (1, 2, 3):
        cluster.report(node, node == 3)
    assert cluster.states() == {(False, FULL)}
    for board in cluster.boards.values():
        board.members_changed((2, 3))
    assert cluster.states() == {(True, FULL)}


def test_a_returned_backend_starts_slowly_and_alike_everywhere() -> None:
    cluster = Cluster((1, 2, 3), slow_start_s=90)
    for alive in (False, True):
        for node in (1, 2, 3):
            cluster.report(node, alive)
    assert cluster.states() == {(True, 1)}
    seen = []
    for _ in range(100):
        cluster.now += 1
        for board in cluster.boards.values():
            board.tick()
        ((alive, tenths),) = cluster.states()
        assert alive
        seen.append(tenths)
    assert seen == sorted(seen)
    assert seen[40] == 5
    assert seen[-1] == FULL
    assert cluster.boards[1].condition(7).weight(100) == 100


def test_malformed_shared_items_are_counted_and_change_nothing() -> None:
    cluster = Cluster((1, 2, 3))
    board = cluster.boards[1]
    for key, value in [
        ("health/7", b"\x01"),
        ("health/x/1", b"\x93\xc3\xa1a\x01"),
        ("slow-start/7", b"\xa1x"),
        ("health/7/1", b""),
    ]:
        board.shared(key, value)
    assert board.malformed == 4
    assert cluster.states() == {(True, FULL)}
    with pytest.raises(KeyError):
        board.report([{"alive": True}])


def test_targets_are_only_what_this_gateway_is_to_check() -> None:
    cluster = Cluster((1, 2, 3, 4, 5))
    checking = [node for node, board in cluster.boards.items() if board.targets()]
    assert checking == list(checkers(7, (1, 2, 3, 4, 5)))
    (target,) = cluster.boards[checking[0]].targets()
    assert (target["address"], target["port"], target["check"]["kind"]) == ("10.0.2.11", 80, "tcp")
