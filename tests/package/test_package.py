# SPDX-License-Identifier: Apache-2.0
"""The Debian package as an operator meets it: installed, upgraded while packets flow, removed, purged."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab.lab import Argument, Lab
from netlab.topology import ECHO_PORT, HTTP_PORT
from netlab.waiting import eventually

from tests.package.host import Host, host, install, node_file

HELD = 50
NEW_VERSION = "99.0"
VIP_INTERFACE = "eth0"


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A later version, whose packet path is another program."""
    directory = tmp_path_factory.mktemp("newer")
    tree, built = directory / "tree", directory / "newer.deb"
    subprocess.run(["dpkg-deb", "-R", str(package), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"^Version: .*$", f"Version: {NEW_VERSION}", control.read_text(), flags=re.MULTILINE))
    (program,) = tree.glob("usr/lib/rainlb/lib/python3*/site-packages/ebpf/reasons.h")
    program.write_text(program.read_text().replace('"to or from an address', '"newer: to or from an address'))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(built)], check=True)
    shutil.rmtree(tree)
    return built


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"deb{os.getpid()}", "one-gateway", daemons=False) as built:
        yield built


@pytest.fixture(scope="module")
def machine(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(lab, "gw1", tmp_path_factory.mktemp("machine")) as made:
        yield made


def program(machine: Host) -> int:
    """Id of the XDP program on the gateway's interface, 0 without one."""
    (link,) = json.loads(machine.run("ip", "-j", "link", "show", VIP_INTERFACE).stdout)
    return int(link.get("xdp", {}).get("prog", {}).get("id", 0))


@pytest.mark.timeout(300)
def test_installed_configured_and_serving(machine: Host, package: Path, lab: Lab) -> None:
    assert "write /etc/rainlb/node.toml" in install(machine, package)
    (machine.root / "etc/rainlb/node.toml").write_text(node_file(machine))
    shutil.copy(lab.directory / "cluster.toml", machine.root / "etc/rainlb/services.toml")
    machine.run("lbd", "--config", "/etc/rainlb/node.toml", "--check")
    machine.run("systemctl", "enable", "--now", "lbd", "lb-api")
    machine.run("lbctl", "apply", "-f", "/etc/rainlb/services.toml", "--yes")
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", 100)
    assert report["failed"] == 0, report
    completed = "source /usr/share/bash-completion/completions/lbctl; type _lbctl_completion"
    assert "_LBCTL_COMPLETE" in machine.run("bash", "-c", completed).stdout


@pytest.mark.timeout(300)
def test_upgraded_without_a_lost_packet(machine: Host, newer: Path, lab: Lab) -> None:
    before, vip = program(machine), lab.topology.vip(4)
    held: list[Argument] = ["--connections", HELD, "--concurrency", HELD, "--requests", 0, "--interval", 0.1]
    with (
        lab.traffic("http_load", vip, HTTP_PORT, *held) as connections,
        lab.traffic("udp_probe", vip, "--port", ECHO_PORT, "--interval-ms", 2) as probes,
    ):
        install(machine, newer)
    assert program(machine) not in (0, before), "the newer version's program runs"
    assert "try-restart lbd.service lb-api.service" in (machine.root / "run/systemctl.log").read_text()
    assert machine.run("dpkg-query", "-W", "-f", "${Version}", "rainlb").stdout == NEW_VERSION
    assert (probes.report["lost"], probes.report["errors"]) == (0, 0), probes.report
    assert probes.report["sent"] > 500
    report = connections.report
    assert (report["failed"], report["lost_connections"], report["connections"]) == (0, 0, HELD), report


@pytest.mark.timeout(120)
def test_removed_and_purged_without_a_trace(machine: Host, lab: Lab) -> None:
    addresses = machine.run("ip", "address", "show", VIP_INTERFACE).stdout
    assert lab.topology.vip(4) in addresses
    machine.run("dpkg", "--remove", "rainlb")
    assert program(machine) == 0
    addresses = machine.run("ip", "address", "show", VIP_INTERFACE).stdout
    assert lab.topology.vip(4) not in addresses
    assert lab.topology.vip(6) not in addresses
    assert (machine.root / "etc/rainlb/node.toml").exists(), "the operator's files are the operator's until the purge"
    machine.run("dpkg", "--purge", "rainlb")
    assert machine.left() == []
    assert not (machine.root / "run/lb").exists()
    eventually(lambda: not list(machine.root.glob("run/*.pid")), 5, "no daemon is left")
