# SPDX-License-Identifier: Apache-2.0
"""A gateway or a VIP that is set up wrongly: the cluster goes on, and says what is wrong and what to do."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from netlab import build, cluster, faults, gateway_files
from netlab.lab import Lab
from netlab.waiting import eventually

from scenarios.clients import answered, others

WRONG = "gw3"
# A host outside the cluster has it.
STRANGER = "10.0.1.77"


@pytest.fixture
def whole(whole: Lab) -> Iterator[Lab]:
    """The cluster, set right again before it is brought together again."""
    lab = whole
    yield lab
    if lab.daemon(WRONG).alive():
        faults.signal_daemon(lab, WRONG, "kill")
    gateway_files.write_nodes(lab.name, lab.topology, lab.directory, {})


def other_key(lab: Lab, text: str) -> str:
    path = lab.directory / "other.key"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32) + "\n")
    return text.replace(str(lab.directory / "ring.key"), str(path))


def other_cluster(lab: Lab, text: str) -> str:
    return text.replace(f'cluster = "{lab.name}"', 'cluster = "somebody-elses"')


def same_id(_lab: Lab, text: str) -> str:
    return text.replace("id = 3", "id = 4", 1)


MISTAKES = {
    "another key": (other_key, {"bad_tag", "unknown_key"}),
    "another cluster": (other_cluster, {"other_cluster"}),
    "an id that nobody expects there": (same_id, {"impersonated", "unknown_source"}),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_gateway_with_a_mistake_stays_out_and_everybody_is_told_why(whole: Lab, mistake: str) -> None:
    change, reasons = MISTAKES[mistake]
    present = others(whole, WRONG)
    faults.signal_daemon(whole, WRONG, "kill")
    cluster.wait_for_owners(whole, present, but=[WRONG])
    path = whole.directory / WRONG / "node.toml"
    path.write_text(change(whole, path.read_text()))
    whole.start_daemon(WRONG)
    told = eventually(lambda: refusals(whole, present[0]) & reasons, 15, f"{present[0]} says {reasons}")
    assert told
    assert cluster.members(whole, present[0]) == set(present)
    assert answered(whole, 100)


@pytest.fixture
def configured(whole: Lab) -> Iterator[tuple[Lab, Path]]:
    """The lab and a copy of its cluster file to spoil; the right one is applied again after the test."""
    right = whole.directory / "cluster.toml"
    spoiled = whole.directory / "spoiled.toml"
    spoiled.write_text(right.read_text())
    yield whole, spoiled
    whole.apply("gw1", right)


def test_a_vip_that_is_a_strangers_address_is_reported(configured: tuple[Lab, Path]) -> None:
    lab, path = configured
    lab.run("client", ["ip", "address", "add", f"{STRANGER}/32", "dev", "eth0"])
    path.write_text(path.read_text() + f'\n[[vip]]\naddress = "{STRANGER}/24"\nsegment = "outside"\n')
    lab.apply("gw1", path)
    told = eventually(lambda: events(lab, "gw1", "vip.duplicate"), 20, "the stranger is reported")
    lab.run("client", ["ip", "address", "delete", f"{STRANGER}/32", "dev", "eth0"])
    assert STRANGER in told[-1]["message"]
    assert build.mac_address("client", "eth0") in told[-1]["message"]
    assert told[-1]["severity"] == "error"


def test_a_vip_that_nobody_can_hold_says_so_and_the_others_stay(configured: tuple[Lab, Path]) -> None:
    lab, path = configured
    before = cluster.owners(lab)
    path.write_text(path.read_text() + '\n[[vip]]\naddress = "10.99.0.1/24"\nsegment = "nowhere"\n')
    lab.apply("gw1", path)
    owners = eventually(lambda: with_address(cluster.owners(lab), "10.99.0.1"), 10)
    assert owners == {**before, "10.99.0.1": None}
    lines = lab.lbctl("gw2", "vips").stdout
    assert "nobody" in lines
    assert answered(lab, 100)


def with_address(owners: dict[str, str | None], address: str) -> dict[str, str | None]:
    """The owners, once they have that address; nothing before."""
    return owners if address in owners else {}


def events(lab: Lab, node: str, kind: str) -> list[dict[str, str]]:
    return [event for event in lab.api(node, "GET", "/v1/events?limit=500") if event["kind"] == kind]


def refusals(lab: Lab, node: str) -> set[str]:
    """Why a gateway says it refuses datagrams."""
    return {event["subject"] for event in events(lab, node, "ring.refused")}
