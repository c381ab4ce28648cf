# SPDX-License-Identifier: Apache-2.0
"""A gateway or a VIP that is set up wrongly: the cluster goes on, and says what is wrong and what to do."""

import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from netlab import build, cluster, faults, gateway_files, services
from netlab.lab import Argument, Lab
from netlab.topology import FAMILIES, HTTP_PORT, RING_PORT
from netlab.waiting import eventually

from scenarios.clients import answered
from scenarios.on_the_wire import asking
from sync.transport.wire import VERSION

WRONG = "gw3"
# A host outside the cluster has it.
STRANGER = "10.0.1.77"
# Somebody gives it to a gateway although it is a VIP.
GROWN = "10.0.1.78"
PREFIX = {4: "/24", 6: "/64"}


@pytest.fixture
def rest(lab: Lab) -> Iterator[Lab]:
    """The cluster without the one that is to come with a mistake; it is gone, and set right, after the test."""
    present = cluster.others(lab, WRONG)
    end(lab)
    cluster.wait_for_members(lab, present)
    cluster.wait_for_owners(lab, present, but=[WRONG])
    yield lab
    end(lab)
    lab.run(WRONG, ["ip", "address", "delete", f"{address_of(lab, 'gw2')}/24", "dev", "eth0"], check=False)
    gateway_files.write_nodes(lab.name, lab.topology, lab.directory, {})


def end(lab: Lab) -> None:
    if lab.daemon(WRONG).alive():
        faults.signal_daemon(lab, WRONG, "kill")


@pytest.fixture
def whole(lab: Lab) -> Lab:
    """All gateways in service."""
    cluster.revive(lab)
    return lab


def address_of(lab: Lab, node: str) -> str:
    return lab.topology.node(node).address("outside", 4)


def start_as_it_is(lab: Lab) -> None:
    lab.start_daemon(WRONG)


def other_key(lab: Lab, text: str) -> str:
    path = lab.directory / "other.key"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32) + "\n")
    return text.replace(str(lab.directory / "ring.key"), str(path))


def other_cluster(lab: Lab, text: str) -> str:
    return text.replace(f'cluster = "{lab.name}"', 'cluster = "somebody-elses"')


def unknown_id(_lab: Lab, text: str) -> str:
    return text.replace("id = 3", "id = 4", 1)


def id_of_another(_lab: Lab, text: str) -> str:
    """As a host is that was made as a copy of gw2's and given addresses of its own."""
    return text.replace("gw2 = { id = 2", "copied = { id = 3").replace("id = 3", "id = 2", 1)


def address_of_another(lab: Lab, text: str) -> str:
    """Its second ring link has gw2's address, on the host as well."""
    own, others = (f'"{address_of(lab, name)}:{RING_PORT}"' for name in (WRONG, "gw2"))
    lab.run(WRONG, ["ip", "address", "add", f"{address_of(lab, 'gw2')}/24", "dev", "eth0"])
    return text.replace(others, "?").replace(own, others).replace("?", own)


def unchanged(_lab: Lab, text: str) -> str:
    return text


def start_other_version(lab: Lab) -> None:
    """The same product, whose ring speaks the next version of its protocol."""
    copy = lab.directory / "other-version"
    for package in ("lb", "sync", "ebpf"):
        shutil.copytree(services.PROJECT_ROOT / package, copy / package)
    wire = copy / "sync" / "transport" / "wire.py"
    wire.write_text(wire.read_text().replace(f"VERSION: Final = {VERSION}\n", f"VERSION: Final = {VERSION + 1}\n"))
    host = lab.topology.node(WRONG)
    file = services.daemon_command(lab.directory, host)[1:]
    lab.start(f"{WRONG}/lbd", host, ["env", f"PYTHONPATH={copy}", sys.executable, "-P", "-m", "lb.main", *file])
    lab.wait_ready(WRONG)


@dataclass(frozen=True)
class Mistake:
    """What somebody did wrong, and what the others are to say: why, and about whom."""

    reasons: set[str]
    named: str
    change: Callable[[Lab, str], str] = unchanged
    start: Callable[[Lab], None] = start_as_it_is
    stays_out: bool = True


MISTAKES = {
    "another key": Mistake({"bad_tag", "unknown_key"}, "the address of gw3", other_key),
    "another cluster": Mistake({"other_cluster"}, "the address of gw3", other_cluster),
    "another version": Mistake({"other_version"}, f"with version {VERSION + 1}", start=start_other_version),
    "an id that nobody expects": Mistake({"impersonated"}, "the address of gw3, with node id 4", unknown_id),
    "the id of another": Mistake({"impersonated"}, "the address of gw3, with node id 2 (gw2)", id_of_another),
    "a ring address of another": Mistake(
        {"impersonated"}, "the address of gw2, with node id 3 (gw3)", address_of_another, stays_out=False
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_gateway_with_a_mistake_harms_nobody_and_all_are_told_why(rest: Lab, what: str) -> None:
    lab, mistake, asked = rest, MISTAKES[what], cluster.others(rest, WRONG)[0]
    vip, path = lab.topology.vip(4), lab.directory / WRONG / "node.toml"
    path.write_text(mistake.change(lab, path.read_text()))
    fresh: list[Argument] = ["--connections", 0, "--concurrency", 4, "--pause", 0.02]
    with ExitStack() as stack:
        claims = stack.enter_context(lab.traffic("claims", "eth0", vip))
        held = stack.enter_context(lab.traffic("push_watch", vip, "--count", 20))
        new = stack.enter_context(lab.traffic("http_load", vip, HTTP_PORT, *fresh))
        mistake.start(lab)
        eventually(partial(names, lab, asked, mistake), 15, f"{asked} says what is wrong")
        if mistake.stays_out:
            assert cluster.members(lab, asked) == set(cluster.others(lab, WRONG))
            for node, other in ((asked, WRONG), (WRONG, asked)):
                eventually(partial(is_told_of, lab, node, other), 15, f"{node} says what is wrong with {other}")
        else:
            cluster.settle(lab)
    # With nobody to ask, the odd one leaves the addresses to those who answer for them.
    assert build.mac_address(WRONG, "eth0") not in [run["mac"] for run in claims.report[vip]]
    for report in (held.report, new.report):
        assert (report["failed"], report.get("lost_connections", 0)) == (0, 0), report


def test_it_serves_once_all_others_are_gone_and_gives_way_when_they_are_back(rest: Lab) -> None:
    lab, mistake, rightful = rest, MISTAKES["another key"], cluster.others(rest, WRONG)
    path = lab.directory / WRONG / "node.toml"
    path.write_text(mistake.change(lab, path.read_text()))
    mistake.start(lab)
    eventually(partial(names, lab, rightful[0], mistake), 15, f"{rightful[0]} says what is wrong")
    assert held_by(lab, WRONG) == {None}, "they are well"
    for name in rightful:
        faults.signal_daemon(lab, name, "kill")
    eventually(lambda: held_by(lab, WRONG) == {WRONG}, 10, f"{WRONG} takes what nobody answers for")
    assert answered(lab, 50)
    for name in rightful:
        lab.start_daemon(name, wait=False)
    cluster.wait_for_members(lab, rightful)
    cluster.wait_for_owners(lab, rightful, but=[WRONG])
    eventually(lambda: held_by(lab, WRONG) == {None}, 10, f"{WRONG} gives way")
    eventually(partial(only_these_answer, lab, rightful), 10, f"only {rightful} answer for the VIPs")
    assert answered(lab, 50)


def held_by(lab: Lab, asked: str) -> set[str | None]:
    """Who holds the VIPs as this gateway sees it."""
    return set(cluster.owners(lab, but=cluster.others(lab, asked)).values())


def only_these_answer(lab: Lab, names: list[str]) -> bool:
    """Whether nobody else answers for the VIPs of the clients' segment, asked for a while."""
    claims = lab.measure(
        "claims", "eth0", *(lab.topology.vip(family) for family in FAMILIES), *asking(lab), "--seconds", 0.6
    )
    allowed = {build.mac_address(name, "eth0") for name in names}
    return all({run["mac"] for run in runs} <= allowed for runs in claims.values())


def names(lab: Lab, node: str, mistake: Mistake) -> bool:
    """Whether a gateway has said why it refuses datagrams, and whose."""
    told = [event for event in events(lab, node, "ring.refused") if event["subject"] in mistake.reasons]
    return any(mistake.named in event["message"] for event in told)


def is_told_of(lab: Lab, node: str, other: str) -> bool:
    """Whether a gateway says why another one is not with it."""
    rows = {row["name"]: row for row in lab.api(node, "GET", "/v1/nodes")}
    return "its datagrams are refused" in rows[other]["reason"]


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


def test_a_vip_that_is_a_gateways_own_address_is_refused(configured: tuple[Lab, Path]) -> None:
    """From any gateway, be it one of the ring or not, of this gateway or of another."""
    lab, path = configured
    right = path.read_text()
    for segment, version in zip(("outside", "inside"), FAMILIES, strict=True):
        own = lab.topology.node("gw1").address(segment, version)
        path.write_text(f'{right}\n[[vip]]\naddress = "{own}{PREFIX[version]}"\nsegment = "{segment}"\n')
        for asked in ("gw1", "gw3"):
            refused = lab.lbctl(asked, "apply", "-f", str(path), "--yes", check=False)
            assert refused.returncode != 0
            assert f'{own}{PREFIX[version]}": is the own address of gateway gw1' in refused.stderr, refused.stderr
    assert answered(lab, 100)


def test_a_gateway_that_is_given_a_vip_for_its_own_keeps_it_and_the_vip_is_nobodys(
    configured: tuple[Lab, Path], healing: list[Lab]
) -> None:
    lab, path = configured
    healing.append(lab)
    path.write_text(f'{path.read_text()}\n[[vip]]\naddress = "{GROWN}/24"\nsegment = "outside"\npin = "gw1"\n')
    lab.apply("gw2", path)
    eventually(lambda: cluster.owners(lab).get(GROWN) == "gw1", 10, "gw1 holds it")
    lab.run("gw3", ["ip", "address", "add", f"{GROWN}/24", "dev", "eth0"])
    eventually(lambda: cluster.owners(lab).get(GROWN, "gw1") is None, 10, "gw1 gives it up")
    assert GROWN not in lab.run("gw1", ["ip", "address"]).stdout
    eventually(lambda: events(lab, "gw2", "vip.own_address"), 10, "all are told")
    (row,) = (row for row in lab.api("gw2", "GET", "/v1/vips") if row["address"].startswith(f"{GROWN}/"))
    assert row["reason"] == "it is gw3's own address: take it off there, or out of the VIPs"
    lab.run("client", ["ip", "neighbour", "flush", "dev", "eth0"])
    lab.run("client", ["ping", "-c", "1", "-W", "2", GROWN])
    assert build.mac_address("gw3", "eth0") in lab.run("client", ["ip", "neighbour", "show", GROWN]).stdout
    lab.run("gw3", ["ip", "address", "delete", f"{GROWN}/24", "dev", "eth0"])
    assert eventually(lambda: cluster.owners(lab).get(GROWN) == "gw1", 10, "gw1 holds it again")


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


# ---------------------------------------------------------------------------------------------------------------------
# an address that nobody can hold, a clock that nobody has set


def test_where_nobody_can_hold_the_addresses_each_gateway_says_what_it_lacks(whole: Lab, healing: list[Lab]) -> None:
    lab, vip = whole, whole.topology.vip(4)
    healing.append(lab)
    for gateway in lab.gateways:
        faults.set_links(lab, gateway.name, up=False, interfaces=["inside"])
    eventually(lambda: set(cluster.owners(lab).values()) == {None}, 10, "nobody holds anything")
    lacking = "gw1, gw2, gw3 out of service (required resource failed: eth1-link)"
    for gateway in lab.gateways:
        row = next(row for row in lab.api(gateway.name, "GET", "/v1/vips") if row["address"].startswith(f"{vip}/"))
        assert row["reason"] == f"no gateway can hold it: {lacking}", gateway.name
    checks = lab.ask("gw2", "doctor")["checks"]
    told = next(check["detail"] for check in checks if "held by nobody" in check["detail"])
    assert f"{vip}/24" in told
    assert lacking in told
    faults.heal(lab)
    cluster.settle(lab)
    assert eventually(lambda: answered(lab, 100), 10)


CLOCK_AHEAD = "gw1"
AHEAD_S = 7 * 365 * 86400


@pytest.fixture
def years_ahead(whole: Lab) -> Iterator[Lab]:
    """One gateway, the one that plans, is restarted with a clock that is years ahead."""
    lab = whole
    faults.signal_daemon(lab, CLOCK_AHEAD, "kill")
    cluster.wait_for_members(lab, cluster.others(lab, CLOCK_AHEAD))
    faults.start_with_clock_ahead(lab, CLOCK_AHEAD, AHEAD_S)
    cluster.settle(lab)
    yield lab
    faults.signal_daemon(lab, CLOCK_AHEAD, "kill")


def test_an_owner_dies_while_clocks_are_years_apart(years_ahead: Lab) -> None:
    lab, vip, victim, asked = years_ahead, years_ahead.topology.vip(4), "gw3", "gw2"
    lab.api(CLOCK_AHEAD, "POST", f"/v1/vips/{vip}/move", {"node": victim})
    eventually(lambda: cluster.owner(lab, vip) == victim)
    eventually(lambda: clock_offset(lab, asked) > AHEAD_S - 10, 10, f"{asked} knows what time it is over there")
    began = time.time()
    with lab.traffic("push_watch", vip, "--count", 20) as pushed, lab.traffic("claims", "eth0", vip) as claims:
        faults.signal_daemon(lab, victim, "kill")
        cluster.wait_for_owners(lab, cluster.others(lab, victim), but=[victim])
        assert eventually(lambda: answered(lab, 100), 10)
    assert (pushed.report["failed"], pushed.report["lost_connections"]) == (0, 0), pushed.report
    claimants = [run["mac"] for run in claims.report[vip]]
    assert claimants[-1] == build.mac_address(cluster.owner(lab, vip, but=[victim]), "eth0")
    assert len(claimants) == len(set(claimants)), claimants
    assert_times_make_sense(lab, asked, began)
    trouble = lab.lbctl(asked, "status").stdout
    assert f"the clock of gateway {CLOCK_AHEAD} is" in trouble
    assert f"gateway {victim} is gone" in trouble


def clock_offset(lab: Lab, asked: str) -> float:
    """How far a gateway says that the other one's clock is ahead, in seconds."""
    rows = {row["name"]: row for row in lab.api(asked, "GET", "/v1/nodes")}
    return float(rows[CLOCK_AHEAD]["clock_offset_s"])


def assert_times_make_sense(lab: Lab, node: str, began: float) -> None:
    """As a gateway with the right clock tells: leases run, moves are of just now, events are in order."""
    for row in lab.api(node, "GET", "/v1/vips"):
        assert began - 600 < row["since"] <= time.time(), row
        assert 0 < row["lease_ms"] < 1000, row
    times = [event["time"] for event in lab.api(node, "GET", "/v1/events?limit=500")]
    assert times[-1] >= began
    assert max(times) <= time.time()
    # What another gateway tells waits a moment for the ring.
    assert min(after - before for before, after in pairwise(times)) > -1.0


# ---------------------------------------------------------------------------------------------------------------------
# a gateway that is cut off while it can serve nobody

# More than all that has happened in the cluster before.
CHANGES = 200


def test_what_the_others_serve_outweighs_what_was_changed_on_one_that_serves_nobody(
    whole: Lab, healing: list[Lab]
) -> None:
    lab, vip, alone, rest = whole, whole.topology.vip(4), WRONG, cluster.others(whole, WRONG)
    healing.append(lab)
    faults.set_links(lab, alone, up=False, interfaces=["inside"])
    eventually(lambda: cluster.state_of(lab, alone, rest[0]) == "out_of_service", 10)
    faults.partition(lab, [alone])
    for part in ([alone], rest):
        cluster.wait_for_members(lab, part)
    for number in range(CHANGES):
        lab.api(alone, "POST", f"/v1/vips/{vip}/prefer", {"nodes": [rest[number % 2]]})
    before = {name: given_up(lab, name) for name in (alone, *rest)}
    with lab.traffic("push_watch", vip, "--count", 20) as held:
        faults.heal(lab, rest)  # of them nothing but the partition
        cluster.wait_for_members(lab, [alone, *rest])
        eventually(lambda: given_up(lab, alone) > before[alone], 10, f"{alone} has taken over the others' state")
    assert [given_up(lab, name) for name in rest] == [before[name] for name in rest]
    assert (held.report["failed"], held.report["lost_connections"]) == (0, 0), held.report


def given_up(lab: Lab, node: str) -> int:
    """How often this gateway's part has given up its state for another part's."""
    return len(events(lab, node, "cluster.merged"))
