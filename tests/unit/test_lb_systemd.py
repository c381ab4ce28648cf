# SPDX-License-Identifier: Apache-2.0
"""The units are what the service manager understands, and they fit what the daemon is and needs."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from lb.configuration.node import Node
from lb.main import parser
from lb.process.notify import Notifier

SYSTEMD = Path(__file__).resolve().parents[2] / "lb" / "systemd"
UNITS = ["lbd.service", "lb-api.service", "run-lb-bpf.mount"]


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units as `make install` leaves them, with commands that exist."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("lbd", "lb-api"):
        shutil.copy("/bin/true", commands / name)
    result = []
    for name in UNITS:
        path = tmp_path / name
        path.write_text((SYSTEMD / name).read_text().replace("@BINDIR@", str(commands)))
        result.append(path)
    return result


def test_units_are_verified_without_a_word(installed: list[Path]) -> None:
    command = ["systemd-analyze", "verify", "--man=no", *map(str, installed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_verification_notices_a_wrong_key(installed: list[Path]) -> None:
    """systemd-analyze tells unknown keys on its error output alone, with exit code 0."""
    installed[0].write_text(installed[0].read_text().replace("[Service]", "[Service]\nProtectSistem=strict"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(installed[0])], capture_output=True, text=True, check=False
    )
    assert "ProtectSistem" in done.stderr


@pytest.mark.parametrize(("unit", "exposure_max"), [("lbd.service", 5.0), ("lb-api.service", 4.0)])
def test_exposure_is_bounded(installed: list[Path], unit: str, exposure_max: float) -> None:
    path = next(path for path in installed if path.name == unit)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stderr
    assert float(found.group(1)) <= exposure_max


def test_commands_of_the_units_exist() -> None:
    for name in UNITS[:2]:
        line = next(text for text in (SYSTEMD / name).read_text().splitlines() if text.startswith("ExecStart="))
        command = line.removeprefix("ExecStart=@BINDIR@/").split()
        if command[0] == "lbd":
            options = parser().parse_args(command[1:])
            assert options.no_api
            assert str(options.config) == "/etc/rainlb/node.toml"


def test_directories_agree_with_the_defaults_of_the_node_file() -> None:
    text = (SYSTEMD / "lbd.service").read_text()
    defaults = Node("gw1", 1)
    assert f"RuntimeDirectory={defaults.run_dir.removeprefix('/run/')}\n" in text
    assert f"StateDirectory={defaults.state_dir.removeprefix('/var/lib/')}\n" in text
    assert f"Where={defaults.run_dir}/bpf\n" in (SYSTEMD / "run-lb-bpf.mount").read_text()


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_package_scripts_are_sound(script: str) -> None:
    assert subprocess.run(["sh", "-n", str(SYSTEMD / script)], check=False).returncode == 0


# --- sd_notify --------------------------------------------------------------------------------------------------------


def test_messages_reach_the_service_manager(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(2)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        notifier.ready("in service")
        notifier.reloading()
        notifier.status("joining")
        notifier.alive()
        notifier.stopping()
        for expected in (
            "READY=1\nSTATUS=in service\nMAINPID=",
            "RELOADING=1\nMONOTONIC_USEC=",
            "STATUS=joining",
            "WATCHDOG=1",
            "STOPPING=1",
        ):
            assert manager.recv(512).decode().startswith(expected)
        notifier.close()


def test_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0rainlb-test-notify")
        manager.settimeout(2)
        Notifier({"NOTIFY_SOCKET": "@rainlb-test-notify"}).alive()
        assert manager.recv(64) == b"WATCHDOG=1"


def test_without_a_service_manager_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("in service")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("in service")


# Environment, and the seconds between two signs of life.
WATCHDOGS = [
    ({}, 0.0),
    ({"WATCHDOG_USEC": "5000000"}, 2.5),
    ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, 0.0),
    ({"WATCHDOG_USEC": "soon"}, 0.0),
]


@pytest.mark.parametrize(("environment", "interval_s"), WATCHDOGS)
def test_watchdog_interval(environment: dict[str, str], interval_s: float) -> None:
    assert Notifier(environment).watchdog_interval_s == interval_s
