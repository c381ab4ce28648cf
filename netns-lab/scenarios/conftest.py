# SPDX-License-Identifier: Apache-2.0
"""Labs for the scenarios: one per topology and test module, with a name of this test run's own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from netlab import aftermath, cluster, faults
from netlab.lab import Lab, LabMaker

LAB = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def make_lab() -> Iterator[LabMaker]:
    """Builds labs that are taken down when the module is done, whatever happened in it."""
    made: list[Lab] = []

    def make(topology: str, **options: Any) -> Lab:
        lab = Lab.up(f"t{os.getpid()}-{len(made)}", topology, **options)
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.down()


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    """A module's cluster of three gateways, settled; a module that needs another network has a fixture of this name."""
    made: Lab = make_lab("three-gateways")
    cluster.settle(made)
    return made


@pytest.fixture
def whole(lab: Lab) -> Iterator[Lab]:
    """The module's cluster with all gateways in service, before the test and again after it."""
    cluster.settle(lab)
    yield lab
    cluster.revive(lab)


@pytest.fixture(scope="session")
def shared_lab() -> Iterator[LabMaker]:
    """One lab per topology for all scenarios that leave it as they found it."""
    made: dict[str, Lab] = {}

    def get(topology: str) -> Lab:
        if topology not in made:
            made[topology] = Lab.up(f"s{os.getpid()}-{len(made)}", topology)
        return made[topology]

    yield get
    for lab in made.values():
        lab.down()


@pytest.fixture
def healing() -> Iterator[list[Lab]]:
    """A list of labs whose faults are undone after the test."""
    labs: list[Lab] = []
    yield labs
    for lab in labs:
        faults.heal(lab)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Any:
    """A failed scenario shows what the gateways tell, and why it failed once more below: the end of a log is what is
    read first."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        labs = {id(value): value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Lab)}
        for lab in labs.values():
            report.sections.append((f"lab {lab.name}", aftermath.page(lab)))
        if call.excinfo is not None:
            report.sections.append((f"why {item.name} failed", reason(call.excinfo)))


def reason(failure: "pytest.ExceptionInfo[BaseException]") -> str:
    """Where in the scenarios or the lab it failed, and with what."""
    paths = ((Path(entry.path), entry) for entry in failure.traceback)
    steps = [f"{path.name}:{entry.lineno + 1} {entry.name}" for path, entry in paths if LAB in path.parents]
    return f"{' > '.join(steps)}\n{failure.exconly()[:1000]}"
