# SPDX-License-Identifier: Apache-2.0
"""Three gateways as an operator makes them: the package, a key, two files, the units, `lbctl apply`."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab.lab import Lab
from netlab.topology import HTTP_PORT
from netlab.waiting import eventually

from tests.package.host import Host, host, install, node_file

KEY = "etc/rainlb/ring.key"
Machines = dict[str, Host]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"debs{os.getpid()}", "three-gateways", daemons=False) as built:
        yield built


@pytest.fixture(scope="module")
def machines(lab: Lab, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """A host with the package for each gateway."""
    with contextlib.ExitStack() as stack:
        made = {}
        for node in lab.topology.of_role("gateway"):
            made[node.name] = stack.enter_context(host(lab, node.name, tmp_path_factory.mktemp(node.name)))
            install(made[node.name], package)
        yield made


def with_key(text: str) -> str:
    return re.sub(r"^key_file = .*$", f'key_file = "/{KEY}"', text, flags=re.MULTILINE)


def states(machine: Host) -> dict[str, str]:
    rows = json.loads(machine.run("lbctl", "nodes", "--json").stdout)
    return {row["name"]: row["state"] for row in rows}


def owner(machine: Host, lab: Lab) -> str:
    rows = json.loads(machine.run("lbctl", "vips", "--json").stdout)
    return next(str(row["owner"]) for row in rows if row["address"].startswith(f"{lab.topology.vip(4)}/"))


@pytest.mark.timeout(300)
def test_configured_by_hand_and_serving(machines: Machines, lab: Lab) -> None:
    first, *others = machines.values()
    first.run("lbctl", "key", "new", f"/{KEY}")
    for machine in others:
        shutil.copy2(first.root / KEY, machine.root / KEY)
    for machine in machines.values():
        (machine.root / "etc/rainlb/node.toml").write_text(with_key(node_file(machine)))
        machine.run("lbd", "--config", "/etc/rainlb/node.toml", "--check")
        machine.run("systemctl", "enable", "--now", "lbd", "lb-api")
    eventually(lambda: list(states(first).values()) == ["in_service"] * 3, 15, "three gateways are one cluster")
    shutil.copy(lab.directory / "cluster.toml", first.root / "etc/rainlb/services.toml")
    first.run("lbctl", "apply", "-f", "/etc/rainlb/services.toml", "--yes")
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", 100)
    assert report["failed"] == 0, report
    versions = {json.loads(machine.run("lbctl", "status", "--json").stdout)["config_version"] for machine in others}
    assert versions == {1}, "what was applied on one is everybody's"


@pytest.mark.timeout(120)
def test_failure_and_return_are_seen_from_any_gateway(machines: Machines, lab: Lab) -> None:
    lost = owner(next(iter(machines.values())), lab)
    watcher = next(machine for name, machine in machines.items() if name != lost)
    machines[lost].run("kill", "-KILL", (machines[lost].root / "run/lbd.service.pid").read_text().strip())
    eventually(lambda: owner(watcher, lab) not in ("None", lost), 10, "another gateway has the address")
    assert lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", 50)["failed"] == 0
    assert lost in watcher.run("lbctl", "status").stdout, "status says who is missing"
    machines[lost].run("systemctl", "try-restart", "lbd.service")
    eventually(lambda: list(states(watcher).values()) == ["in_service"] * 3, 20, "it is back")
    kinds = {row["kind"] for row in json.loads(watcher.run("lbctl", "events", "--json").stdout)}
    assert {"view.changed", "vip.moved"} <= kinds, kinds
