# SPDX-License-Identifier: Apache-2.0
"""Metrics: lbd's registry, the page Prometheus scrapes, and that rules and dashboard ask for what is there."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ebpf.layout import CONNECTION, FLOW_KEY, State
from lb.api.exposition import from_lbd, vip_families
from lb.metrics import SERIES_MAX, Registry
from tests.unit.api_support import ROOT, RunningApi, running_api

RULES = ROOT / "docs" / "alerts" / "rainlb.rules.yml"
DASHBOARD = ROOT / "docs" / "grafana" / "rainlb.json"
# lbd's own metrics, which the control double does not count: where they are registered.
OF_LBD = {
    "loop_lag_seconds": "lb/upkeep/loop_lag.py",
    "ring_total": "lb/cluster/figures.py",
    "replication_total": "lb/cluster/figures.py",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_api(tmp_path_factory.mktemp("metrics") / "gw") as api:
        fill_counters(api)
        yield api.client().request("GET", "/metrics")[0]


COUNTED = {"packets": 1000, "bytes": 64_000, "opened": 30, "closed": 10, "refused": 3, "unreachable": 2}


def fill_counters(api: RunningApi) -> None:
    owner = api.maps.targets.get(2)
    counts = api.maps.target_counters.get(2)
    assert owner is not None
    assert counts is not None
    owner["service"] = 1
    for name, value in COUNTED.items():
        counts[name][0] = value
    settings = api.maps.settings.get(0)
    assert settings is not None
    settings["node"] = 1
    api.maps.settings.set(0, settings)
    keys, values = np.zeros(25, FLOW_KEY), np.zeros(25, CONNECTION)
    keys["source_port"] = np.arange(25)
    values["target"], values["service"], values["owner"], values["state"] = 2, 1, 1, int(State.ESTABLISHED)
    # handled elsewhere, and closed: not open here
    values["owner"][20:23], values["state"][23:] = 2, int(State.CLOSING)
    api.maps.connections.update(keys, values)
    api.maps.targets.set(2, owner)
    api.maps.target_counters.set(2, counts)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_traffic_is_what_the_maps_count(page: str) -> None:
    found = samples(page)
    assert found["rainlb_backend_packets_total", (("backend", "b2"), ("service", "web"))] == 1000
    assert found["rainlb_service_bytes_total", (("service", "web"),)] == 64_000
    assert found["rainlb_service_connections_active", (("service", "web"),)] == 20
    assert found["rainlb_backend_refused_total", (("backend", "b2"), ("service", "web"))] == 3
    assert found["rainlb_service_unreachable_total", (("service", "web"),)] == 2
    assert found["rainlb_backend_packets_total", (("backend", "b1"), ("service", "web"))] == 0


def test_names_and_units_are_conventional(page: str) -> None:
    promtool = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert promtool.returncode == 0, promtool.stdout + promtool.stderr


def test_alert_rules_are_valid_and_fire_when_they_should() -> None:
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(RULES.with_name("rainlb.test.yml"))]):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    found = re.findall(r"^\s+expr: (.*)$", RULES.read_text(), re.MULTILINE)
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found + [target["expr"] for panel in panels for target in panel["targets"]]


def test_rules_and_dashboard_ask_for_metrics_that_exist(page: str) -> None:
    exported = {name for name, _ in samples(page)} | {line.split()[2] for line in page.splitlines() if "# TYPE" in line}
    for name, place in OF_LBD.items():
        assert f'"{name}"' in (ROOT / place).read_text(), f"{place} no longer counts {name}"
        exported |= {f"rainlb_{name}", f"rainlb_{name}_bucket"}
    asked = {name for expression in expressions() for name in re.findall(r"\brainlb_\w+", expression)}
    assert len(asked) > 12
    assert asked <= exported


def test_dashboard_expressions_parse(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    rules = [
        {
            "record": f"check:{panel['id']}",
            "expr": target["expr"].replace("$__rate_interval", "1m").replace("$job", "x"),
        }
        for panel in panels
        for target in panel["targets"]
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_registry_counts_and_becomes_text() -> None:
    registry = Registry()
    moves = registry.counter("vip_moves_total", "Moves.", ["reason"])
    moves.add(1, "failure")
    moves.add(2, "failure")
    lag = registry.histogram("loop_lag_seconds", "Lag.", bounds=(0.001, 0.01))
    for value in (0.0005, 0.001, 0.005, 0.5):
        lag.observe(value)
    gauge = registry.gauge("ring_members", "Members.")
    registry.collect(lambda: gauge.set(3))
    registry.collect(lambda: registry.import_counts("ring_total", "Ring.", "what", {"tokens": 7}))
    plain = registry.as_plain() and registry.as_plain()
    found = {(s.name, tuple(s.labels.items())): s.value for family in from_lbd(plain) for s in family.samples}
    assert found["rainlb_vip_moves_total", (("reason", "failure"),)] == 3
    assert found["rainlb_loop_lag_seconds_bucket", (("le", "0.001"),)] == 2
    assert found["rainlb_loop_lag_seconds_bucket", (("le", "0.01"),)] == 3
    assert found["rainlb_loop_lag_seconds_bucket", (("le", "+Inf"),)] == 4
    assert found["rainlb_loop_lag_seconds_sum", ()] == pytest.approx(0.5065)
    assert found["rainlb_ring_members", ()] == 3
    assert found["rainlb_ring_total", (("what", "tokens"),)] == 7


def test_series_are_bounded_and_what_is_shed_is_counted() -> None:
    counter = Registry().counter("clients_total", "Clients.", ["address"])
    for number in range(SERIES_MAX + 5):
        counter.add(1, str(number))
    assert len(counter.as_plain()["series"]) == SERIES_MAX
    assert counter.shed == 5
    counter.forget("0")
    counter.add(1, "new")
    assert counter.value("new") == 1


def test_every_gateway_that_holds_a_vip_is_counted() -> None:
    rows = [
        {"address": "10.0.1.100/24", "owners": ["gw1"]},
        {"address": "198.51.100.7/32", "owners": ["gw1", "gw2"]},
        {"address": "198.51.100.8/32", "owners": []},
    ]
    found = {tuple(s.labels.values()): s.value for family in vip_families(rows) for s in family.samples}
    assert found == {
        ("10.0.1.100/24", "gw1"): 1, ("198.51.100.7/32", "gw1"): 1, ("198.51.100.7/32", "gw2"): 1,
        ("10.0.1.100/24",): 1, ("198.51.100.7/32",): 1, ("198.51.100.8/32",): 0,
    }  # fmt: skip
