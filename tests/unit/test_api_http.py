# SPDX-License-Identifier: Apache-2.0
"""The API process over its Unix socket: every call, against a control socket and real pinned maps."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from netlab.waiting import eventually
from pydantic import TypeAdapter

from ebpf.layout import CONNECTION, FLOW_KEY, PROTOCOLS, State, pack_address
from lb.api.routes import ENDPOINTS, description
from tests.unit.api_support import RunningApi, running_api
from tools.lbctl.client import ApiError

CONNECTIONS = 5000


def fill_connections(api: RunningApi) -> None:
    """CONNECTIONS entries: client 192.0.2.(i%250), backends 1 and 2 in turn, every tenth UDP, owners 1..3."""
    number = np.arange(CONNECTIONS)
    keys, values = np.zeros(CONNECTIONS, FLOW_KEY), np.zeros(CONNECTIONS, CONNECTION)
    clients = np.array([pack_address(f"192.0.2.{host}") for host in range(250)])
    keys["source"] = clients[number % 250]
    keys["destination"] = pack_address("10.0.1.100")
    keys["source_port"] = 10000 + number
    keys["destination_port"] = 80
    keys["protocol"] = np.where(number % 10 == 0, PROTOCOLS["udp"], PROTOCOLS["tcp"])
    values["target"] = 1 + number % 2
    values["service"] = 1
    values["owner"] = 1 + number % 3
    values["origin"] = 1 + number % 2
    values["state"] = np.where(number % 10 == 0, State.UDP, State.ESTABLISHED)
    values["last_seen_s"] = int(time.monotonic()) - number % 100
    assert api.maps.connections.update(keys, values) == CONNECTIONS


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with running_api(tmp_path_factory.mktemp("api") / "gw") as running:
        fill_connections(running)
        running.control.emit("node.joined", "gw1 formed a group", node="gw1")
        yield running


PLAIN_GETS = [
    endpoint
    for endpoint in ENDPOINTS
    if endpoint.method == "GET" and endpoint.answer_media == "application/json" and endpoint.path != "/openapi.json"
]


@pytest.mark.parametrize("endpoint", PLAIN_GETS, ids=lambda endpoint: endpoint.path)
def test_answer_has_the_documented_shape(api: RunningApi, endpoint: Any) -> None:
    answer = api.client().get(endpoint.path)
    assert answer, "an empty answer proves nothing"
    TypeAdapter(endpoint.answer).validate_python(answer)


def test_events_have_the_documented_shape(api: RunningApi) -> None:
    api.control.emit("node.joined", "gw3 joined", node="gw3")
    events = api.client().get("/v1/events", after=0)
    assert events[-1]["message"] == "gw3 joined"
    assert api.client().get("/v1/events", after=events[-1]["id"]) == []


def test_connections_are_paged_without_loss_or_repetition(api: RunningApi) -> None:
    seen: list[int] = []
    cursor: str | None = None
    pages = 0
    while True:
        page = api.client().get("/v1/connections", limit=777, cursor=cursor)
        seen += [row["source_port"] for row in page["connections"]]
        pages += 1
        cursor = page["cursor"]
        if cursor is None:
            break
    assert pages >= CONNECTIONS // 777
    assert sorted(seen) == list(range(10000, 10000 + CONNECTIONS))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"protocol": "udp"}, CONNECTIONS // 10),
        ({"source": "192.0.2.7"}, CONNECTIONS // 250),
        ({"source": "192.0.2.0/25"}, 128 * CONNECTIONS // 250),
        ({"destination": "2001:db8::/32"}, 0),
        ({"source_port": 10001}, 1),
        ({"backend": "b1"}, CONNECTIONS // 2),
        ({"service": "web", "state": "established"}, CONNECTIONS * 9 // 10),
        ({"owner": "gw2", "destination_port": 80}, len([i for i in range(CONNECTIONS) if i % 3 == 1])),
        ({"idle_min_s": 1000}, 0),
        ({"idle_max_s": 200}, CONNECTIONS),
    ],
)
def test_filters(api: RunningApi, query: dict[str, Any], expected: int) -> None:
    page = api.client().get("/v1/connections", limit=10_000, **query)
    assert len(page["connections"]) == expected
    assert page["scanned"] == CONNECTIONS


def test_row_says_all_there_is_to_know(api: RunningApi) -> None:
    (row,) = api.client().get("/v1/connections", source_port=10013)["connections"]
    idle, age = row.pop("idle_s"), row.pop("age_s")
    assert 13 <= idle <= 43
    assert age > 0
    assert row == {
        "protocol": "tcp", "source": "192.0.2.13", "source_port": 10013, "destination": "10.0.1.100",
        "destination_port": 80, "service": "web", "backend": "b2", "target_id": 2, "owner": "gw2",
        "origin": "gw2", "state": "established",
    }  # fmt: skip


def test_top_groups_by_any_fields(api: RunningApi) -> None:
    top = api.client().get("/v1/connections/top", by="backend,protocol", limit=3)
    assert top["matched"] == CONNECTIONS
    assert [row["connections"] for row in top["rows"]] == [2500, 2000, 500]
    assert top["rows"][0]["key"] == {"backend": "web/b2", "protocol": "tcp"}
    hosts = api.client().get("/v1/connections/top", by="source", limit=1000)["rows"]
    assert len(hosts) == 250
    assert {row["connections"] for row in hosts} == {20}


def test_top_of_nothing_is_empty(api: RunningApi) -> None:
    top = api.client().get("/v1/connections/top", state="syn")
    assert (top["rows"], top["matched"], top["scanned"]) == ([], 0, CONNECTIONS)


def refused(api: RunningApi, method: str, path: str, **more: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        api.client().request(method, path, **more)
    return caught.value


TOML = {"headers": {"content-type": "application/toml"}}


@pytest.mark.parametrize(
    ("method", "path", "more", "code", "field"),
    [
        ("GET", "/v1/nowhere", {}, "not_found", None),
        ("GET", "/v1/connections?limit=0", {}, "invalid", "limit"),
        ("GET", "/v1/connections?colour=red", {}, "invalid", "colour"),
        ("GET", "/v1/connections?limit=1&limit=2", {}, "invalid", None),
        ("GET", "/v1/connections?source=nonsense", {}, "invalid", "source"),
        ("GET", "/v1/connections?service=nobody", {}, "not_found", "service"),
        ("GET", "/v1/connections/top?by=colour", {}, "invalid", "by"),
        ("GET", "/v1/status?x=1", {}, "invalid", None),
        ("PUT", "/v1/status", {"document": {}}, "method_not_allowed", None),
        ("POST", "/v1/backends/web/b1/weight", {"document": {"weight": -1}}, "invalid", "weight"),
        ("POST", "/v1/backends/web/b1/weight", {"document": {"weight": 1, "x": 2}}, "invalid", "x"),
        ("POST", "/v1/backends/web/b1/weight", {"text": "{"}, "bad_request", None),
        ("POST", "/v1/backends/web/nobody/drain", {}, "not_found", None),
        ("POST", "/v1/vips/nonsense/unpin", {}, "invalid", "address"),
        ("POST", "/v1/backends/web/b1/drain", {"document": {"a": 1}}, "invalid", None),
        ("POST", "/v1/detach", {"document": {"confirm": False}}, "invalid", "confirm"),
        ("PUT", "/v1/config", {"text": "", "headers": {"content-type": "text/html"}}, "unsupported_media_type", None),
        ("PUT", "/v1/config", {"text": "x", **TOML}, "version_required", "If-Match"),
        ("POST", "/v1/config/diff", {"text": "x" * (5 << 20), **TOML}, "too_large", None),
    ],
)  # fmt: skip
def test_refusals_name_code_and_field(
    api: RunningApi, method: str, path: str, more: dict[str, Any], code: str, field: str | None
) -> None:
    problem = refused(api, method, path, **more)
    assert (problem.code, problem.field) == (code, field), problem.message


def test_a_wrong_method_is_told_the_right_ones(api: RunningApi) -> None:
    for method, path, allowed in (("DELETE", "/v1/vips/10.0.1.100/move", "POST"), ("PATCH", "/v1/config", "GET, PUT")):
        response = api.client().raw(method, path, None, {}, 5.0)
        assert (response.status, response.getheader("allow")) == (405, allowed)
        response.close()


def test_configuration_is_changed_only_from_the_version_it_was_made_from(api: RunningApi) -> None:
    client = api.client()
    current, headers = client.request("GET", "/v1/config")
    assert headers["etag"] == f'"{current["version"]}"'
    text = '[[vip]]\naddress = "10.0.1.100/24"\nsegment = "inside"\n'
    media = {"content-type": "application/toml", "x-source": "my.toml"}
    difference, _ = client.request("POST", "/v1/config/diff", text=text, headers=media)
    assert difference["version"] == current["version"]
    conditional = {**media, "if-match": headers["etag"]}
    applied, after = client.request("PUT", "/v1/config", text=text, headers=conditional)
    assert applied["version"] == current["version"] + 1
    assert after["etag"] == f'"{applied["version"]}"'
    assert refused(api, "PUT", "/v1/config", text=text, headers=conditional).code == "version_mismatch"


def test_bad_configuration_names_file_and_field(api: RunningApi) -> None:
    media = {"content-type": "application/toml", "x-source": "my.toml"}
    problem = refused(api, "POST", "/v1/config/diff", text="a = = 1", headers=media)
    assert problem.code == "invalid"
    assert "my.toml" in problem.message
    assert problem.field


def test_changes_reach_lbd_with_who_asked_and_are_audited(api: RunningApi) -> None:
    client = api.client()
    client.post("/v1/backends/web/b1/weight", {"weight": 7})
    assert api.control.weight["web", "b1"] == 7
    method, caller = api.control.callers[-1]
    assert method == "backend.weight"
    assert caller["who"] == "root"
    assert caller["role"] == "configure"
    with pytest.raises(ApiError):
        client.post("/v1/nodes/nobody/drain")
    lines = [json.loads(line) for line in api.audit_file.read_text().splitlines()]
    assert lines[-2]["action"] == "backend.weight"
    assert lines[-2]["request"] == {"service": "web", "backend": "b1", "weight": 7}
    assert lines[-2]["outcome"] == "done"
    assert lines[-1]["outcome"].startswith("not_found")


# On an idle machine 0.06 s; it only has to be told from the refresh that comes every second anyway, many times over.
SEEN_MAX_S = 5


def test_vip_moves_are_seen_on_the_stream_at_once(api: RunningApi) -> None:
    stream = api.client().stream()
    topics: dict[str, Any] = {}
    while "vips" not in topics:
        kind, data = next(stream)
        topics[kind] = data
    begin = time.monotonic()
    api.client().post("/v1/vips/10.0.1.100/move", {"node": "gw3"})
    seen_event = seen_state = 0.0
    while not (seen_event and seen_state):
        kind, data = next(stream)
        if kind == "event" and data["kind"] == "vip.moved":
            seen_event = time.monotonic() - begin
        if kind == "vips" and data[0]["owner"] == "gw3":
            seen_state = time.monotonic() - begin
    print(f"a move is seen as an event after {seen_event:.3f} s, in the state after {seen_state:.3f} s")
    assert seen_event < SEEN_MAX_S
    assert seen_state < SEEN_MAX_S


def test_counters_show_what_the_path_counted(api: RunningApi) -> None:
    counts = api.maps.reason_counters.get(1)
    assert counts is not None
    counts["packets"] = [40, 2, *([0] * (len(counts) - 2))]
    api.maps.reason_counters.set(1, counts)
    eventually(lambda: api.client().get("/v1/counters")[0]["packets"] == 42)


def test_metrics_page_is_complete_and_well_formed(api: RunningApi) -> None:
    text, headers = api.client().request("GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=")
    assert "rainlb_up 1.0" in text
    assert 'rainlb_vip_owner{node="gw2",vip="2001:db8:1::100/64"} 1.0' in text
    assert 'rainlb_backend_state{backend="b2",service="web",state="up"} 1.0' in text
    assert 'rainlb_packets_total{kind="' in text


def test_document_describes_every_route(api: RunningApi) -> None:
    served = api.client().get("/openapi.json")
    assert served == json.loads(json.dumps(description()))
    assert {(path, method) for path, item in served["paths"].items() for method in item} == {
        (endpoint.path, endpoint.method.lower()) for endpoint in ENDPOINTS
    }
    names = [operation["operationId"] for item in served["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_socket_is_for_root_and_the_group_only(api: RunningApi) -> None:
    assert api.socket.stat().st_mode & 0o777 == 0o660
    assert api.socket.stat().st_uid == 0


def test_packet_path_can_be_looked_into_while_lbd_is_away(tmp_path: Path) -> None:
    with running_api(tmp_path / "gw") as api:
        fill_connections(api)
        assert api.client().get("/v1/connections", source_port=10013)["connections"][0]["backend"] == "b2"
        api.control.stop()
        problem = refused(api, "GET", "/v1/status")
        assert problem.code == "unavailable"
        assert problem.remedy
        assert "systemctl" in problem.remedy
        # the names are those known before
        assert api.client().get("/v1/connections", source_port=10013)["connections"][0]["backend"] == "b2"
        assert api.client().get("/v1/counters")
        # the host is to be examined all the more
        assert api.client().get("/v1/doctor")["checks"]
        text, _ = api.client().request("GET", "/metrics")
        assert "rainlb_up 0.0" in text
        kinds = api.client().stream()
        assert any(kind == "link" and not data["lbd"] for kind, data in (next(kinds) for _ in range(5)))


def test_a_newer_process_takes_the_socket_over_and_the_older_one_leaves(tmp_path: Path) -> None:
    with running_api(tmp_path / "gw") as api:
        import subprocess
        import sys

        from tests.unit.api_support import ROOT

        before = api.socket.stat().st_ino
        command = [sys.executable, "-m", "lb.api", "--config", str(api.directory / "node.toml")]
        newer = subprocess.Popen(command, cwd=ROOT)
        try:
            eventually(lambda: api.socket.stat().st_ino != before, 15)
            assert api.process.wait(10) == 0
            assert api.client().get("/v1/status")["node"] == "gw1"
        finally:
            newer.terminate()
            newer.wait(10)
        assert not api.socket.exists()
