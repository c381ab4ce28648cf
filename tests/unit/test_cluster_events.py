# SPDX-License-Identifier: Apache-2.0
"""The event journal: bounds, restart, damage."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb import events
from lb.events import Event, Journal, pack_event, unpack_event

MOVED = Event("vip.moved", "10.0.1.100 moved from gw1 to gw2", "gw2", "10.0.1.100", "owner_left")


def test_ids_grow_and_reading_goes_on_where_it_stopped() -> None:
    journal = Journal(None, clock=lambda: 5.0)
    for number in range(10):
        assert journal.append(Event("a.b", str(number))).id == number + 1
    assert [event.message for event in journal.after(7, 2)] == ["7", "8"]
    assert [event.message for event in journal.after(0, 2)] == ["8", "9"]
    assert journal.after(10, 5) == []
    assert journal.after(0, 1)[0].time == 5.0


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(events, "UNWRITTEN_MAX", 5)
    journal = Journal(tmp_path / "events.jsonl")
    for number in range(events.EVENTS_KEPT_MAX + 20):
        journal.append(Event("a.b", str(number)))
    assert len(journal) == events.EVENTS_KEPT_MAX
    assert len(journal.pending()) == 5
    assert journal.shed == events.EVENTS_KEPT_MAX + 15


def test_events_survive_a_restart_and_ids_go_on(tmp_path: Path) -> None:
    path = tmp_path / "state" / "events.jsonl"
    journal = Journal(path)
    journal.append(MOVED)
    journal.append(Event("node.left", "gw1 left"))
    journal.write(journal.pending())
    again = Journal(path)
    assert [event.kind for event in again.after(0, 10)] == ["vip.moved", "node.left"]
    assert again.append(MOVED).id == 3


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append(MOVED)
    journal.append(MOVED)
    journal.write(journal.pending())
    path.write_bytes(path.read_bytes()[:-20])
    again = Journal(path)
    assert (len(again), again.unreadable) == (1, 1)


def test_the_file_is_bounded_and_the_last_full_one_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FILE_BYTES_MAX", 2000)
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    for _ in range(100):
        journal.append(MOVED)
        journal.write(journal.pending())
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4000
    kept = Journal(path).after(0, 100)
    assert kept[-1].id == 100
    assert len(kept) > 5


def test_subscribers_hear_until_they_stop() -> None:
    journal, heard = Journal(None), []
    stop = journal.subscribe(lambda event: heard.append(event.id))
    journal.append(MOVED)
    stop()
    stop()
    journal.append(MOVED)
    assert heard == [1]


def test_events_travel() -> None:
    assert unpack_event(pack_event(MOVED)) == MOVED


@given(st.binary(max_size=100))
def test_no_bytes_from_a_peer_make_the_reader_fail(data: bytes) -> None:
    try:
        event = unpack_event(data)
    except ValueError:
        return
    assert event.kind


KEYS = ["kind", "message", "time", "severity", "x"]


@given(st.dictionaries(st.sampled_from(KEYS), st.integers() | st.sampled_from(["", "a.b", "error"])))
def test_no_map_from_a_peer_makes_the_reader_fail(plain: dict[str, object]) -> None:
    try:
        event = events.from_plain(plain)
    except ValueError:
        return
    assert event.severity in events.SEVERITIES
