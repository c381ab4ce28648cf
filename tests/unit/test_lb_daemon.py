# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (tables: one case a line)
"""The life of a real daemon: start, reload, crash, restart, stop, removal; and what the service manager is told."""

import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from netlab.waiting import eventually

from tests.unit.cluster_namespaces import Pair
from tests.unit.cluster_namespaces import pair as wired_pair
from tests.unit.lb_process import Lbd, lbd_in
from tools.bench.usage import cpu_seconds

SERVICES = """
[[vip]]
address = "10.9.0.100/24"
segment = "outside"

[[service]]
name = "web"
address = "10.9.0.100"
port = 80
protocol = "tcp"
forward = "nat"

[[service.backend]]
name = "b1"
address = "10.9.0.2"
port = 8080
"""
IDLE_SHARE_MAX = 0.01
IDLE_WINDOW_S = 3.0


@pytest.fixture(scope="module")
def wire() -> Iterator[Pair]:
    with wired_pair() as found:
        yield found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, wire: Pair) -> Iterator[Lbd]:
    # Compiling takes seconds, so the data path stays from test to test, as it does from daemon to daemon.
    with lbd_in(tmp_path_factory.mktemp("node"), wire.left) as lbd:
        yield lbd


@pytest.fixture
def lbd(node: Lbd, wire: Pair) -> Iterator[Lbd]:
    node.reset()
    # What an earlier test's daemon left, as daemons do.
    subprocess.run(_in(wire, "ip", "address", "flush", "to", "10.9.0.100"), check=True)
    yield node
    node.kill()


def test_serves_applies_and_leaves_the_path_when_stopped(lbd: Lbd) -> None:
    services = lbd.directory / "services.toml"
    services.write_text(SERVICES)
    lbd.start("--services", str(services))
    status = lbd.call("status")
    assert (status["state"], status["config_version"], status["service_count"]) == ("in_service", 1, 1)
    assert status["interfaces"] == [{"name": "wire", "segment": "outside", "xdp_mode": "generic"}]
    eventually(lambda: lbd.call("backends")[0]["state"] == "up")
    assert lbd.call("vips")[0]["owner"] == "gw1"
    program = lbd.xdp_program()
    assert program
    assert lbd.end() == 0
    assert lbd.xdp_program() == program, "packets go on without the daemon"
    assert "STOPPING=1" in lbd.manager.wait_for("STOPPING=1")


def test_killed_daemon_restarts_into_the_same_path(lbd: Lbd) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES, format="toml")
    program = lbd.xdp_program()
    lbd.end(signal.SIGKILL)
    assert lbd.xdp_program() == program
    begin = time.monotonic()
    lbd.start()
    assert time.monotonic() - begin < 30
    assert lbd.xdp_program() == program, "an unchanged program is not replaced"
    assert lbd.call("status")["config_version"] == 1
    assert [service["name"] for service in lbd.call("services")] == ["web"]


def test_reload_applies_the_file_or_refuses_it_whole(lbd: Lbd) -> None:
    services = lbd.directory / "services.toml"
    services.write_text(SERVICES)
    lbd.start("--services", str(services))
    services.write_text(SERVICES.replace("8080", "8081"))
    lbd.send(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in lbd.manager.wait_for("RELOADING=1")
    lbd.manager.wait_for("READY=1")
    assert lbd.call("backends")[0]["port"] == 8081
    services.write_text(SERVICES.replace("protocol", "protokoll"))
    lbd.send(signal.SIGHUP)
    lbd.manager.wait_for("READY=1")
    assert lbd.call("status")["config_version"] == 2
    refused = lbd.call("events", limit=1)[0]
    assert refused["kind"] == "config.refused"
    assert "protokoll" in refused["message"]


def test_reload_refuses_what_needs_a_restart_and_still_takes_the_services(lbd: Lbd) -> None:
    services = lbd.directory / "services.toml"
    services.write_text(SERVICES)
    lbd.start("--services", str(services))
    services.write_text(SERVICES.replace("8080", "8081"))
    lbd.node_file.write_text(lbd.node_file.read_text().replace("sweep_interval_ms = 500", "sweep_interval_ms = 600"))
    lbd.send(signal.SIGHUP)
    lbd.manager.wait_for("READY=1")
    assert lbd.call("backends")[0]["port"] == 8081
    (refused,) = (event for event in lbd.call("events") if event["kind"] == "config.refused")
    assert refused["subject"] == str(lbd.node_file)
    assert "engine changed; only ring.peers can change while it runs: `systemctl restart lbd`" in refused["message"]


def test_watchdog_is_fed(lbd: Lbd) -> None:
    lbd.start(WATCHDOG_USEC="400000")
    for _ in range(3):
        lbd.manager.wait_for("WATCHDOG=1", seconds=1)


def test_backend_is_drained_weighted_and_the_version_checked(lbd: Lbd) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    lbd.call("backend.drain", service="web", backend="b1")
    eventually(lambda: lbd.call("backends")[0]["state"] == "draining")
    assert lbd.call("backend.undrain", service="web", backend="b1")["version"] == 3
    changes = lbd.call("backend.weight", service="web", backend="b1", weight=7)["changes"]
    assert changes[0]["text"] == "~ service[web].backend[b1].weight: 1 → 7"
    error = lbd.ask("config.apply", text=SERVICES, if_version=1)["error"]
    assert error["code"] == "version_mismatch"
    assert lbd.ask("backend.weight", service="web", backend="b1", weight=-1)["error"]["field"] == "weight"
    assert lbd.ask("backend.drain", service="web", backend="b9")["error"]["remedy"] == "there are: b1"
    assert lbd.call("config.diff", text=SERVICES)["changes"][0]["text"] == "~ service[web].backend[b1].weight: 7 → 1"


def test_bad_configuration_is_refused_whole_with_its_places(lbd: Lbd) -> None:
    lbd.start()
    bad = SERVICES.replace("port = 80\n", "port = 99999\n") + "wieght = 2\n"
    error = lbd.ask("config.apply", text=bad, source="x.toml")["error"]
    assert error["code"] == "invalid"
    assert "x.toml:17: service[0].backend[0].wieght = 2: unknown key (did you mean weight?)" in error["message"]
    assert lbd.call("status")["config_version"] == 0


def test_daemon_counts_what_it_does(lbd: Lbd) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    lbd.ask("nonsense")
    lbd.call("metrics")
    found = {metric["name"]: dict(map(_series, metric["series"])) for metric in lbd.call("metrics")}
    assert found["rainlb_control_requests_total"][("refused",)] == 1
    assert found["rainlb_control_requests_total"][("answered",)] >= 2
    assert found["rainlb_engine_updates_total"][("done",)] >= 1
    assert found["rainlb_engine_updates_total"][("failed",)] == 0
    assert found["rainlb_backends_unresolved"][()] in (0, 1)


def _series(series: list[Any]) -> tuple[tuple[str, ...], Any]:
    return tuple(series[0]), series[1]


def test_text_of_the_configuration_can_be_applied_again(lbd: Lbd) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    text = lbd.call("config.get")["text"]
    again = lbd.call("config.apply", text=text)
    assert (again["version"], again["changes"]) == (1, [])


HEALTH = """
[service.health]
kind = "tcp"
interval_ms = 100
timeout_ms = 90
rise = 2
fall = 2
"""
LISTEN = """
import socket, time
server = socket.create_server(("10.9.0.2", 8080))
print("listening", flush=True)
time.sleep(60)
"""


def test_backend_is_found_dead_and_alive_again(lbd: Lbd, wire: Pair) -> None:
    lbd.start(children="--no-api")
    lbd.call("config.apply", text=SERVICES.replace("[[service.backend]]", f"{HEALTH}\n[[service.backend]]"))
    eventually(lambda: lbd.call("backends")[0]["state"] == "down")
    assert lbd.call("services")[0]["backends_up"] == 0
    listener = wire.start(wire.right, LISTEN)
    try:
        assert listener.read_line() == "listening"
        eventually(lambda: lbd.call("backends")[0]["state"] == "up")
    finally:
        listener.process.kill()
        listener.process.wait()
    eventually(lambda: lbd.call("backends")[0]["state"] == "down")
    kinds = [event["kind"] for event in lbd.call("events") if event["kind"].startswith("backend.")]
    assert kinds == ["backend.dead", "backend.alive", "backend.dead"]


def test_nat_without_forwarding_is_warned_about(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    enter = ["nsenter", f"--net=/run/netns/{wire.left}", "sysctl", "-qw"]
    expected = "this gateway does not forward IPv4 packets: set net.ipv4.ip_forward = 1"
    for value, warned in (("0", True), ("1", False)):
        subprocess.run([*enter, f"net.ipv4.ip_forward={value}"], check=True)
        assert (expected in lbd.call("config.diff", text=SERVICES)["warnings"]) == warned


def test_vips_follow_the_configuration(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)

    def held() -> bool:
        return "10.9.0.100/24" in _addresses(wire)

    eventually(held)
    warnings = lbd.call("config.apply", text=SERVICES.replace('segment = "outside"', 'segment = "nowhere"'))["warnings"]
    assert "no interface on segment nowhere" in warnings[0]
    eventually(lambda: not held())
    eventually(lambda: lbd.call("vips")[0]["state"] == "unplaced")


def test_the_gateways_own_address_is_refused_as_a_vip(lbd: Lbd) -> None:
    lbd.start()
    typo = SERVICES.replace("10.9.0.100", "10.9.0.1")
    for method in ("config.diff", "config.apply"):
        error = lbd.ask(method, text=typo)["error"]
        assert error["code"] == "invalid"
        assert error["field"] == "vip[0].address"
        assert "is the own address of gateway gw1 (on wire)" in error["message"]
        assert "take a leftover off there first" in error["remedy"]
    assert lbd.call("status")["config_version"] == 0


def test_a_vip_that_is_the_gateways_own_address_at_the_start_stays_its_own(lbd: Lbd, wire: Pair) -> None:
    # Somebody gives the gateway an address although it is a VIP.
    grown = "10.9.0.100/24"
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    eventually(lambda: grown in _addresses(wire))
    lbd.end(signal.SIGTERM)
    subprocess.run(_in(wire, "ip", "address", "replace", grown, "dev", "wire"), check=True)
    lbd.start()
    (row,) = lbd.call("vips")
    assert (row["state"], row["reason"]) == ("unplaced", "it is this gateway's own address (on wire)")
    told = [event["message"] for event in lbd.call("events", limit=100) if event["kind"] == "vip.own_address"]
    assert told == [
        "VIP 10.9.0.100 is an address of gateway gw1 itself (on wire), so nobody holds it: take it off there, or out "
        "of the VIPs"
    ]
    lighter = SERVICES + "weight = 5\n"
    assert "is the own address of gateway gw1" in lbd.call("config.apply", text=lighter)["warnings"][0]
    assert lbd.call("config.apply", text="[policy]\nfailback = true\n")["changes"]
    assert grown in _addresses(wire)
    lbd.end(signal.SIGTERM)
    assert lbd.run("--remove").returncode == 0
    assert grown in _addresses(wire)


def _in(wire: Pair, *command: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{wire.left}", *command]


def test_a_vip_announced_as_a_route_stays_while_the_daemon_is_away_and_goes_with_the_path(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    routed = SERVICES.replace('10.9.0.100/24"\nsegment = "outside"', '10.9.0.100/32"\nannounce = "route"')
    lbd.call("config.apply", text=f"{routed}\n[policy]\nwithdrawal_ms = 100\n")
    eventually(lambda: "10.9.0.100/32" in _addresses(wire, "lo"))
    (row,) = lbd.call("vips")
    assert (row["owner"], row["owners"], row["segment"], row["state"]) == (None, ["gw1"], None, "held")
    assert "10.9.0.100" not in _addresses(wire)
    lbd.end(signal.SIGTERM)
    assert "10.9.0.100/32 scope global lo\\       valid_lft forever" in _addresses(wire, "lo")
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    eventually(lambda: "10.9.0.100" not in _addresses(wire, "lo"))
    eventually(lambda: "10.9.0.100/24" in _addresses(wire))


def test_a_vip_taken_off_by_hand_is_put_back_and_told(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    eventually(lambda: "10.9.0.100/24" in _addresses(wire))
    subprocess.run(_in(wire, "ip", "address", "del", "10.9.0.100/24", "dev", "wire"), check=True)
    eventually(lambda: "10.9.0.100/24" in _addresses(wire))
    (told,) = [event["message"] for event in lbd.call("events") if event["kind"] == "vip.put_back"]
    assert told == "10.9.0.100 was gone from wire (taken off, or the link was set down): put back"


def test_path_taken_off_by_hand_is_put_back_and_told(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    off = ["nsenter", f"--net=/run/netns/{wire.left}", "ip", "link", "set", "dev", "wire", "xdpgeneric", "off"]
    subprocess.run(off, check=True)
    assert lbd.xdp_program() == 0
    eventually(lambda: lbd.xdp_program() != 0)
    eventually(lambda: any(event["kind"] == "engine.lost" for event in lbd.call("events")))


def test_stopped_while_it_starts(lbd: Lbd) -> None:
    process = subprocess.Popen(lbd.command("--no-children"), stderr=subprocess.PIPE, text=True)
    eventually((lbd.directory / "state").exists, what="the lock: it is about to start")
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode in (0, -signal.SIGTERM)
    lbd.start()
    assert lbd.call("status")["state"] == "in_service"


def test_second_daemon_is_refused(lbd: Lbd) -> None:
    lbd.start()
    second = lbd.run("--no-children")
    assert second.returncode == 1
    assert "another lbd runs" in second.stderr
    assert lbd.call("status")["state"] == "in_service"


REFUSALS = [
    ('name = "wire"', 'name = "nowire"', 1, "interface nowire does not exist in this network namespace: name one of: lo, wire"),
    ("id = 1", "id = 0", 2, "node.id = 0: is out of range; allowed: at least 1"),
    ("[[interface]]", "[[interfaces]]", 2, "unknown key (did you mean interface?)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "code", "message"), REFUSALS)
def test_what_cannot_be_is_refused_with_the_remedy(lbd: Lbd, old: str, new: str, code: int, message: str) -> None:
    lbd.node_file.write_text(lbd.node_file.read_text().replace(old, new))
    done = lbd.run("--no-children")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_check_validates_and_starts_nothing(lbd: Lbd) -> None:
    done = lbd.run("--check")
    assert (done.returncode, done.stdout) == (0, f"{lbd.node_file}: in order\n")
    services = lbd.directory / "services.toml"
    services.write_text(SERVICES.replace('"nat"', '"dsr"'))
    done = lbd.run("--check", "--services", str(services))
    assert done.returncode == 2
    assert "dsr cannot change the port" in done.stderr
    assert not (lbd.directory / "state").exists()


@pytest.mark.parametrize("option", ["--check", "--no-children"])
def test_a_key_file_that_cannot_be_used_is_refused_with_the_remedy(lbd: Lbd, option: str) -> None:
    missing = lbd.directory / "no.key"
    ring = f'\n[ring]\nlisten = ["127.0.0.1"]\nkey_file = "{missing}"\n'
    lbd.node_file.write_text(lbd.node_file.read_text() + ring)
    done = lbd.run(option)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        f"ring: key file {missing}: No such file or directory; make a key with `lbctl key new` and copy it to every node"
    )


def test_memory_and_idle_processor_time(lbd: Lbd) -> None:
    services = lbd.directory / "services.toml"
    services.write_text(SERVICES)
    lbd.start("--services", str(services))
    assert lbd.process is not None
    eventually(partial(_is_idle, lbd.process.pid), what=f"at most {IDLE_SHARE_MAX:.0%} of a core while idle")
    private = _memory_kib(lbd.process.pid, "Private_Dirty:")
    assert private < 40 * 1024, f"{private} KiB"


def _is_idle(pid: int) -> bool:
    """In seconds after which nothing is left of the start, on however busy a machine."""
    before = cpu_seconds([pid])
    time.sleep(IDLE_WINDOW_S)
    used = (cpu_seconds([pid]) - before) / IDLE_WINDOW_S
    assert used < IDLE_SHARE_MAX, f"{used:.2%}"
    return True


def _memory_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise AssertionError(field)


# The data path has to be built again after these.


def test_removal_without_a_daemon(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    eventually(lambda: "10.9.0.100" in _addresses(wire))
    lbd.end(signal.SIGKILL)
    done = lbd.run("--remove")
    assert (done.returncode, done.stdout) == (0, "taken off: wire\nVIPs released: 10.9.0.100\n")
    assert lbd.xdp_program() == 0
    assert "10.9.0.100" not in _addresses(wire)


def _addresses(wire: Pair, interface: str = "wire") -> str:
    command = ["nsenter", f"--net=/run/netns/{wire.left}", "ip", "-4", "-o", "addr", "show", "dev", interface]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_detach_takes_everything_out(lbd: Lbd, wire: Pair) -> None:
    lbd.start()
    lbd.call("config.apply", text=SERVICES)
    assert lbd.call("detach")["interfaces"] == ["wire"]
    assert lbd.process is not None
    assert lbd.process.wait(10) == 0
    assert lbd.xdp_program() == 0
    assert not (lbd.directory / "run" / "bpf" / "gw1").exists()
    assert "10.9.0.100" not in _addresses(wire)
