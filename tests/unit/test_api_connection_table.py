# SPDX-License-Identifier: Apache-2.0
"""Filtering, paging and grouping of connections against the same done entry by entry in plain Python."""

import ipaddress
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ebpf.layout import CONNECTION, FLOW_KEY, State, pack_address, unpack_address
from lb.api import connection_table
from lb.api.connection_table import Piece
from lb.api.datapath import Names
from lb.api.problems import ApiProblem
from lb.api.shapes import ConnectionFilter

NOW_S = 100_000
NAMES = Names(
    services={1: "web", 2: "dns"},
    backends={1: ("web", "b1"), 2: ("web", "b2"), 3: ("dns", "b1")},
    nodes={1: "gw1", 2: "gw2"},
)
ADDRESSES = ["192.0.2.1", "192.0.2.200", "10.1.2.3", "2001:db8::1", "2001:db8:1::1", "::1"]


@pytest.fixture(scope="module")
def table() -> tuple[Any, Any]:
    choose = random.Random(7)
    keys, values = np.zeros(2000, FLOW_KEY), np.zeros(2000, CONNECTION)
    for index in range(len(keys)):
        keys[index]["source"] = pack_address(choose.choice(ADDRESSES))
        keys[index]["destination"] = pack_address(choose.choice(ADDRESSES))
        keys[index]["source_port"], keys[index]["destination_port"] = choose.randrange(4), choose.choice([53, 80])
        keys[index]["protocol"] = choose.choice([6, 17, 47])
        values[index]["target"], values[index]["service"] = choose.randrange(5), choose.randrange(4)
        values[index]["owner"], values[index]["state"] = choose.randrange(4), choose.randrange(10)
        values[index]["origin"] = choose.randrange(4)
        values[index]["last_seen_s"] = NOW_S - choose.randrange(-2, 500)
        values[index]["opened_s"] = NOW_S - 500
    return keys, values


def pieces(table: tuple[Any, Any], size: int, start: int = 0) -> Iterator[Piece]:
    keys, values = table
    for begin in range(start, len(keys), size):
        end = begin + size
        yield Piece(f"{begin:x}", f"{end:x}" if end < len(keys) else None, keys[begin:end], values[begin:end])


FILTERS: list[dict[str, Any]] = [
    {},
    {"protocol": "udp", "source": "192.0.2.0/24"},
    {"source": "2001:db8::/32", "destination_port": 53},
    {"destination": "0.0.0.0/0"},
    {"destination": "::/0", "source_port": 3},
    {"backend": "b1"},
    {"service": "dns", "owner": "gw2"},
    {"owner": "gw1", "origin": "gw2"},
    {"state": "established", "idle_min_s": 10, "idle_max_s": 300},
    {"idle_min_s": 499.5},
]


def matches(wanted: dict[str, Any], key: Any, value: Any) -> bool:
    """One entry, one condition after the other."""
    for field in ("source", "destination"):
        if field in wanted:
            address, network = unpack_address(key[field]), ipaddress.ip_network(wanted[field])
            # every IPv4 address is a mapped IPv6 one to whoever asks for all of IPv6
            if address.version != network.version and wanted[field] != "::/0":
                return False
            if address.version == network.version and address not in network:
                return False
    for field in ("source_port", "destination_port"):
        if field in wanted and int(key[field]) != wanted[field]:
            return False
    if "protocol" in wanted and int(key["protocol"]) != {"tcp": 6, "udp": 17}[wanted["protocol"]]:
        return False
    idle = max(NOW_S - int(value["last_seen_s"]), 0)
    return (
        wanted.get("backend") in (None, NAMES.backends.get(int(value["target"]), (None, 0))[1])
        and wanted.get("service") in (None, NAMES.services.get(int(value["service"]), 0))
        and wanted.get("owner") in (None, NAMES.nodes.get(int(value["owner"]), 0))
        and wanted.get("origin") in (None, NAMES.nodes.get(int(value["origin"]), 0))
        and ("state" not in wanted or int(value["state"]) == State[wanted["state"].upper()])
        and wanted.get("idle_min_s", 0) <= idle <= wanted.get("idle_max_s", 10**9)
    )


@pytest.mark.parametrize("wanted", FILTERS)
def test_pages_together_are_the_filtered_table(table: tuple[Any, Any], wanted: dict[str, Any]) -> None:
    condition = connection_table.condition_of(ConnectionFilter.model_validate(wanted), NAMES)
    rows: list[dict[str, Any]] = []
    start, skip = 0, 0
    for _ in range(200):
        page = connection_table.page(pieces(table, 300, start), skip, 37, condition, NAMES, NOW_S)
        rows += page["connections"]
        assert len(page["connections"]) <= 37
        if page["cursor"] is None:
            break
        place, _, skipped = page["cursor"].partition(".")
        start, skip = int(place, 16), int(skipped or 0)
    keys, values = table
    expected = [index for index in range(len(keys)) if matches(wanted, keys[index], values[index])]
    assert rows == connection_table.described(keys[expected], values[expected], NAMES, NOW_S)


@pytest.mark.parametrize("by", ["source", "service,state", "protocol,source,destination_port,backend,owner"])
def test_groups_are_counted_rightly(table: tuple[Any, Any], by: str) -> None:
    fields = connection_table.group_fields(by)
    condition = connection_table.condition_of(ConnectionFilter.model_validate({}), NAMES)
    found = connection_table.top(pieces(table, 170), fields, 1000, condition, NAMES, NOW_S)
    counted: Counter[tuple[Any, ...]] = Counter()
    for key, value in zip(*table, strict=True):
        raw = {"backend": int(value["target"])} | {name: int(value[name]) for name in ("service", "owner", "state")}
        raw["protocol"] = int(key["protocol"])
        row: list[Any] = []
        for field in fields:
            if field in ("source", "destination"):
                row.append(str(unpack_address(key[field])))
            elif field.endswith("_port"):
                row.append(int(key[field]))
            else:
                row.append(connection_table.field_name(field, raw[field], NAMES))
        counted[tuple(row)] += 1
    assert {tuple(row["key"].values()): row["connections"] for row in found["rows"]} == counted
    assert [row["connections"] for row in found["rows"]] == sorted(counted.values(), reverse=True)


def test_groups_are_merged_while_they_pile_up(monkeypatch: pytest.MonkeyPatch, table: tuple[Any, Any]) -> None:
    monkeypatch.setattr(connection_table, "GROUPS_PENDING_MAX", 100)
    condition = connection_table.condition_of(ConnectionFilter.model_validate({}), NAMES)
    found = connection_table.top(pieces(table, 33), ("source",), 3, condition, NAMES, NOW_S)
    assert len(found["rows"]) == 3
    expected = Counter(str(unpack_address(key["source"])) for key in table[0])
    assert [row["connections"] for row in found["rows"]] == [count for _, count in expected.most_common(3)]


@pytest.mark.parametrize("by", ["", "colour", "source,source", "source,,state"])
def test_unknown_groupings_are_refused(by: str) -> None:
    with pytest.raises(ApiProblem) as caught:
        connection_table.group_fields(by)
    assert caught.value.field == "by"


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ApiProblem) as caught:
        connection_table.condition_of(ConnectionFilter.model_validate({"owner": "gw9"}), NAMES)
    assert (caught.value.code, caught.value.remedy) == ("not_found", "known: gw1, gw2")
