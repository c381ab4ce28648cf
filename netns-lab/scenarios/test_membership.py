# SPDX-License-Identifier: Apache-2.0
"""A gateway is taken out of the cluster, and added to it, while the others serve."""

import signal
from collections.abc import Iterator

import pytest
from netlab import build, cluster
from netlab.lab import Lab
from netlab.topology import HTTP_PORT
from netlab.waiting import eventually

REMOVED = "gw3"
STAY = ("gw1", "gw2")


@pytest.fixture
def named(whole: Lab) -> Iterator[Lab]:
    """The cluster; afterwards every gateway names all others again."""
    files = {node: whole.directory / node / "node.toml" for node in STAY}
    before = {node: file.read_text() for node, file in files.items()}
    yield whole
    for node, file in files.items():
        file.write_text(before[node])
        reload(whole, node)


def reload(lab: Lab, node: str) -> None:
    """As `systemctl reload lbd` does."""
    assert lab.daemon(node).signal(signal.SIGHUP)


def name_no_more(lab: Lab, node: str) -> str:
    """Take the removed gateway out of another one's [ring.peers]; what the file was."""
    file = lab.directory / node / "node.toml"
    before = file.read_text()
    lines = [line for line in before.splitlines() if not line.startswith(f"{REMOVED} = ")]
    file.write_text("\n".join(lines) + "\n")
    return before


def names(lab: Lab, node: str) -> list[str]:
    return [row["name"] for row in lab.api(node, "GET", "/v1/nodes")]


def events(lab: Lab, node: str, kind: str) -> list[dict[str, str]]:
    return [event for event in lab.api(node, "GET", "/v1/events?limit=200") if event["kind"] == kind]


def test_a_running_gateway_is_struck_off_holds_nothing_and_comes_back_when_it_is_named_again(named: Lab) -> None:
    lab, vip = named, named.topology.vip(4)
    lab.api("gw1", "POST", f"/v1/vips/{vip}/move", {"node": REMOVED})
    eventually(lambda: cluster.owner(lab, vip) == REMOVED)
    with (
        lab.traffic("claims", "eth0", vip) as claims,
        lab.traffic("push_watch", vip, "--count", 10) as held,
        lab.traffic("http_load", vip, HTTP_PORT, "--connections", 0, "--concurrency", 2, "--pause", 0.05) as new,
    ):
        before = {node: name_no_more(lab, node) for node in STAY}
        for node in STAY:
            reload(lab, node)
        for node in STAY:
            eventually(lambda node=node: names(lab, node) == [*STAY], 10, f"{node} knows two gateways")  # type: ignore[misc]
        eventually(lambda: cluster.owner(lab, vip, but=[REMOVED]) in STAY, 10)
        eventually(lambda: events(lab, REMOVED, "node.struck_off"), 10)
        status = eventually(lambda: out_of_service(lab), 10, f"{REMOVED} is out of service")
        assert status is not None
        assert "do not name it in [ring.peers] any more" in str(status["reason"])
        assert vip not in lab.run(REMOVED, ["ip", "address"]).stdout
    for report in (held.report, new.report):
        assert (report["failed"], report.get("lost_connections", 0)) == (0, 0), report
    assert [run["mac"] for run in claims.report[vip]].count(build.mac_address(REMOVED, "eth0")) <= 1
    assert REMOVED in events(lab, "gw1", "node.reloaded")[-1]["message"]
    for node, text in before.items():
        (lab.directory / node / "node.toml").write_text(text)
        reload(lab, node)
    cluster.settle(lab)


def out_of_service(lab: Lab) -> dict[str, object] | None:
    status: dict[str, object] = lab.api(REMOVED, "GET", "/v1/status")
    return status if status["state"] == "out_of_service" else None


def test_what_needs_a_restart_is_refused_and_nothing_changes(named: Lab) -> None:
    lab = named
    file = lab.directory / "gw1" / "node.toml"
    before = name_no_more(lab, "gw1")
    file.write_text(file.read_text().replace("[ring]", "[ring]\nfailure_detection_ms = 90"))
    reload(lab, "gw1")
    refused = eventually(lambda: events(lab, "gw1", "config.refused"), 10, "the reload is refused")
    assert "ring.failure_detection_ms changed; only ring.peers can change while it runs" in refused[-1]["message"]
    assert names(lab, "gw1") == [*STAY, REMOVED]
    file.write_text(before)
