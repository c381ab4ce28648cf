# SPDX-License-Identifier: Apache-2.0
"""One gateway at work: drained, killed, restarted, flooded, its backends dying and returning; nobody notices."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from netlab import build, faults, gateway_files, namespaces, services, state
from netlab.lab import Argument, Lab, LabMaker
from netlab.topologies import TOPOLOGIES
from netlab.topology import HTTP_PORT
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

from scenarios.clients import drop_flood

HELD_CONNECTIONS = 200
FLOOD_SOURCES = {"one-gateway": 1_000_000, "routed": 200_000}
# On a busy machine even a check each 200 ms takes its time.
HEALTH_S = 40


@pytest.fixture(scope="module", params=["one-gateway", "routed"])
def lab(request: pytest.FixtureRequest, shared_lab: LabMaker) -> Lab:
    made: Lab = shared_lab(request.param)
    return made


@contextmanager
def holding(lab: Lab) -> Iterator[Traffic]:
    """HELD_CONNECTIONS that stay open, with a request every now and then."""
    options: list[Argument] = ["--connections", HELD_CONNECTIONS, "--concurrency", HELD_CONNECTIONS, "--requests", 0]
    with lab.traffic("http_load", lab.topology.vip(4), HTTP_PORT, *options, "--interval", 0.2) as held:
        eventually(lambda: open_connections(lab) >= HELD_CONNECTIONS, what="the held connections are open")
        yield held
    assert held.report["connections"] == HELD_CONNECTIONS, held.report


@contextmanager
def under_load(lab: Lab) -> Iterator[tuple[Traffic, Traffic]]:
    """Connections that are held, and new ones all the time."""
    options: list[Argument] = ["--connections", 0, "--concurrency", 8, "--pause", 0.01]
    with holding(lab) as held, lab.traffic("http_load", lab.topology.vip(4), HTTP_PORT, *options) as fresh:
        yield held, fresh
    assert fresh.report["requests"] > 0


def open_connections(lab: Lab) -> int:
    """As the client's kernel sees them: the gateway is not asked."""
    return lab.established("client", f"dport = :{HTTP_PORT}")


def assert_nothing_lost(*reports: dict[str, object]) -> None:
    for report in reports:
        assert (report["failed"], report["lost_connections"]) == (0, 0), report


def fresh_backends(lab: Lab, connections: int = 60) -> set[str]:
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", connections, "--timeout", 5)
    assert report["failed"] == 0, report
    return set(report["backends"])


def test_a_drained_backend_gets_no_new_connections_and_loses_none(lab: Lab) -> None:
    with under_load(lab) as (held, fresh):
        lab.lbctl("gw1", "drain", "http4/b1")
        eventually(lambda: fresh_backends(lab) == {"b2", "b3"}, 10)
        kept = lab.established("b1", f"sport = :{HTTP_PORT}")
        lab.lbctl("gw1", "undrain", "http4/b1")
        eventually(lambda: "b1" in fresh_backends(lab), 10)
    assert_nothing_lost(held.report, fresh.report)
    assert kept > 0, "the drained backend kept none of its connections"


def test_a_killed_daemon_loses_nothing_and_takes_over_again(lab: Lab) -> None:
    with under_load(lab) as (held, fresh):
        faults.signal_daemon(lab, "gw1", "kill")
        # Forwarding goes on without it.
        assert fresh_backends(lab, 200) == {"b1", "b2", "b3"}
        lab.start_daemon("gw1")
        assert fresh_backends(lab, 200) == {"b1", "b2", "b3"}
    assert_nothing_lost(held.report, fresh.report)


def test_a_stopped_daemon_leaves_the_data_path_forwarding(lab: Lab) -> None:
    with under_load(lab) as (held, fresh):
        lab.stop("gw1/lbd")
        assert fresh_backends(lab) == {"b1", "b2", "b3"}
        lab.start_daemon("gw1")
    assert_nothing_lost(held.report, fresh.report)


def test_an_apply_of_the_same_file_changes_nothing(lab: Lab) -> None:
    before = lab.api("gw1", "GET", "/v1/status")["config_version"]
    with under_load(lab) as (held, fresh):
        lab.lbctl("gw1", "apply", "-f", str(lab.directory / "cluster.toml"), "--yes")
    assert_nothing_lost(held.report, fresh.report)
    assert lab.api("gw1", "GET", "/v1/status")["config_version"] == before


def test_a_bad_file_changes_nothing_and_says_where(lab: Lab) -> None:
    text = (lab.directory / "cluster.toml").read_text().replace('forward = "', 'forward = "un')
    bad = lab.directory / "bad.toml"
    bad.write_text(text)
    refused = lab.lbctl("gw1", "apply", "-f", str(bad), "--yes", check=False)
    assert refused.returncode != 0
    assert "bad.toml" in refused.stdout + refused.stderr
    assert "forward" in refused.stdout + refused.stderr
    assert fresh_backends(lab) == {"b1", "b2", "b3"}


@pytest.mark.timeout(400)
def test_a_syn_flood_leaves_established_connections_alone(lab: Lab) -> None:
    for backend in lab.topology.of_role("backend"):
        lab.inside(backend.name, drop_flood)
    sources = FLOOD_SOURCES[lab.topology.name]
    gateway_mac = build.mac_address("gw1", "eth0")
    with holding(lab) as held:
        flood = lab.measure(
            "syn_flood", "eth0", gateway_mac, lab.topology.vip(4), HTTP_PORT, "--count", sources, timeout=300
        )
        assert flood["sent"] == sources
        assert open_connections(lab) >= HELD_CONNECTIONS
    assert_nothing_lost(held.report)
    assert held.report["connections"] == HELD_CONNECTIONS


# ---------------------------------------------------------------------------------------------------------------------
# a backend dies and returns


@pytest.fixture(scope="module")
def checked(make_lab: LabMaker) -> Lab:
    """A lab whose HTTP backends are checked for their health."""
    made: Lab = make_lab("routed")
    health: dict[str, str | int | bool] = {"kind": "http", "interval_ms": 200, "timeout_ms": 200, "fall": 2, "rise": 2}
    gateway_files.add_health(made.directory / "cluster.toml", TOPOLOGIES["routed"], "http4", health)
    made.apply("gw1", made.directory / "cluster.toml")
    return made


def kill_web_server(lab: Lab, backend: str) -> None:
    """The whole server at once: master and workers, found before any is killed (orphans have another parent)."""
    namespace = [namespaces.full_name(lab.name, backend)]
    master = lab.process(f"{backend}/nginx")
    inside = namespaces.processes_inside(namespace)
    for process in [each for each in inside if each == master or each.parent() == master.pid]:
        process.signal(signal.SIGKILL)


def test_a_dead_backend_is_left_out_and_comes_back(checked: Lab) -> None:
    assert eventually(lambda: fresh_backends(checked) == {"b1", "b2", "b3"}, HEALTH_S)
    kill_web_server(checked, "b2")
    eventually(lambda: state_of(checked, "b2") == "down", HEALTH_S)
    # Known dead, it costs nobody a request.
    assert fresh_backends(checked, 300) == {"b1", "b3"}
    node, command = services.commands(checked.directory, checked.topology)["b2/nginx"]
    checked.start("b2/nginx", node, command)
    eventually(lambda: state_of(checked, "b2") == "up", HEALTH_S)
    eventually(lambda: "b2" in fresh_backends(checked), HEALTH_S)


def state_of(lab: Lab, backend: str) -> str:
    rows = lab.api("gw1", "GET", "/v1/backends")
    return next(str(row["state"]) for row in rows if row["service"] == "http4" and row["name"] == backend)


def test_nothing_is_left_behind(make_lab: LabMaker) -> None:
    lab = make_lab("one-gateway")
    inside = namespaces.processes_inside(namespaces.existing(lab.name))
    assert len(inside) > 4
    lab.down()
    assert not [process for process in inside if process.alive()]
    assert namespaces.existing(lab.name) == []
    assert not state.directory_of(lab.name).exists()
    assert str(lab.directory) not in Path("/proc/self/mounts").read_text()
