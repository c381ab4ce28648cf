# SPDX-License-Identifier: Apache-2.0
"""Two gateways, the commonest cluster, with an encrypted ring over IPv6: one host dies and returns.

The other goes on with every connection, however it is forwarded; unless it is to stop without a majority, which one of
two never is.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from netlab import cluster, faults
from netlab.gateway_files import Scalar
from netlab.lab import Argument, Lab, LabMaker
from netlab.topology import (
    CROSS_FAMILY_HTTP_PORT,
    DIRECT_VIP_HOST,
    FAMILIES,
    HTTP_PORT,
    RING_PORT,
    Family,
)
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

from scenarios.clients import GAP_MS_MAX, answered
from scenarios.on_the_wire import assert_one_owner_each

ENCRYPTED: dict[str, Scalar] = {"encrypt": True}
PUSHED_CONNECTIONS = 10
HELD_CONNECTIONS = 16
# How the backends that answer directly are reached, and at which port.
DIRECT = {"dsr": HTTP_PORT, "tunnel": CROSS_FAMILY_HTTP_PORT}
DRAINED = "b5"
CAPTURED_MAX = 4096
ETH_P_ALL = 3
IPV6_UDP = (0x86DD).to_bytes(2, "big"), 17


@pytest.fixture(scope="module")
def lab(make_lab: LabMaker) -> Lab:
    made: Lab = make_lab("two-gateways", ring_options=ENCRYPTED)
    cluster.settle(made)
    return made


@pytest.fixture(scope="module")
def for_majority(lab: Lab) -> Lab:
    cluster.reconfigure(lab, {**ENCRYPTED, "partition_policy": "majority"})
    return lab


def direct_vip(lab: Lab, family: Family) -> str:
    return lab.topology.segment("outside").address(DIRECT_VIP_HOST, family)


@contextmanager
def connected(lab: Lab) -> Iterator[dict[str, Traffic]]:
    """Connections of every kind and family that last; by name, the reports are there once the block has ended."""
    options: list[Argument] = ["--connections", HELD_CONNECTIONS, "--concurrency", HELD_CONNECTIONS, "--requests", 0]
    with ExitStack() as stack:
        started = {}
        for family in FAMILIES:
            push = lab.traffic("push_watch", lab.topology.vip(family), "--count", PUSHED_CONNECTIONS)
            started[f"nat{family}"] = stack.enter_context(push)
            for forward, port in DIRECT.items():
                held = lab.traffic("http_load", direct_vip(lab, family), port, *options, "--interval", 0.05)
                started[f"{forward}{family}"] = stack.enter_context(held)
        expected = len(FAMILIES) * (PUSHED_CONNECTIONS + len(DIRECT) * HELD_CONNECTIONS)
        eventually(lambda: lab.established("client") >= expected, what="the connections are open")
        yield started


def set_drained(lab: Lab, drained: bool) -> None:
    """No new connections to one of the backends that answer directly; those it has are known by the tables alone."""
    for service in (f"{forward}{family}" for forward in DIRECT for family in FAMILIES):
        lab.api("gw1", "POST", f"/v1/backends/{service}/{DRAINED}/{'drain' if drained else 'undrain'}")


def test_the_ring_speaks_ipv6_and_tells_nobody_what(lab: Lab) -> None:
    """The name of a backend is in what an operator changes, and in nothing that is on the wire."""

    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        opened.bind(("gw1-eth1", ETH_P_ALL))
        opened.setblocking(False)
        return opened

    with lab.inside("sw", listen) as wire:
        version = lab.api("gw1", "GET", "/v1/status")["config_version"]
        lab.api("gw1", "POST", f"/v1/backends/dsr6/{DRAINED}/drain")
        eventually(lambda: lab.api("gw2", "GET", "/v1/status")["config_version"] > version)
        lab.api("gw2", "POST", f"/v1/backends/dsr6/{DRAINED}/undrain")
        frames = captured(wire)
    ring = [frame for frame in frames if RING_PORT.to_bytes(2, "big") in (frame[54:56], frame[56:58])]
    assert len(ring) > 10, f"{len(ring)} of {len(frames)} frames are the ring's"
    assert {(frame[12:14], frame[20]) for frame in ring} == {IPV6_UDP}
    assert not [frame for frame in ring if b"dsr6" in frame]


def captured(wire: socket.socket) -> list[bytes]:
    """The frames that have come by."""
    frames: list[bytes] = []
    while len(frames) < CAPTURED_MAX:
        try:
            frames.append(wire.recv(1 << 16))
        except BlockingIOError:
            break
    return frames


def test_one_host_dies_and_returns_and_every_connection_goes_on(whole: Lab) -> None:
    victim, survivor = "gw1", "gw2"
    cluster.place(whole, dict.fromkeys(cluster.owners(whole), victim))
    with connected(whole) as traffic, whole.traffic("udp_probe", whole.topology.vip(6)) as probe:
        # Today's table would send their connections elsewhere.
        set_drained(whole, True)
        faults.power_off(whole, victim)
        cluster.wait_for_owners(whole, [survivor], but=[victim])
        assert eventually(lambda: answered(whole, 60), 10)
        returns = cluster.last_event(whole, survivor)
        cluster.revive(whole)
        moved = cluster.moves(whole, survivor, returns)
    # On a machine busy enough, the survivor may be late for the ring in its turn.
    assert {why for _, why in moved} <= {"owner_left"}, f"who returns takes nothing away: {moved}"
    set_drained(whole, False)
    for name, stream in traffic.items():
        assert (stream.report["failed"], stream.report["lost_connections"]) == (0, 0), f"{name}: {stream.report}"
        if not name.startswith("nat"):
            assert set(stream.report["backends"]) == {"b4", "b5"}, f"{name}: {stream.report}"
    assert probe.report["answered_at_end"], probe.report
    assert probe.report["gap_ms"] < GAP_MS_MAX, probe.report
    assert_one_owner_each(whole)


def test_without_a_majority_the_last_one_stops_and_says_so(for_majority: Lab) -> None:
    """One of two is none: neither serves while the other is away, and both do when it is back."""
    lab, victim, survivor = for_majority, "gw2", "gw1"
    vip, begun = lab.topology.vip(4), time.time()
    with lab.traffic("push_watch", vip, "--count", PUSHED_CONNECTIONS) as pushed:
        faults.set_links(lab, victim, up=False)
        eventually(lambda: assert_stopped(lab, survivor), 15, f"{survivor} has stopped")
        assert_told(lab, survivor, begun)
        faults.heal(lab)
        cluster.settle(lab)
        assert eventually(lambda: answered(lab, 60), 10)
    assert (pushed.report["failed"], pushed.report["lost_connections"]) == (0, 0), pushed.report
    assert_one_owner_each(lab)


def assert_stopped(lab: Lab, node: str) -> bool:
    """A gateway alone holds no address."""
    view = lab.api(node, "GET", "/v1/status")["view"]
    assert (view["members"], view["serving"]) == ([node], False)
    lines = lab.run(node, ["ip", "-o", "address", "show"]).stdout
    assert not [vip.address for vip in lab.topology.vips if f" {vip.address}/" in lines]
    return True


def assert_told(lab: Lab, node: str, since: float) -> None:
    """An operator who looks anywhere sees that it is the policy, and whose fault."""
    for row in lab.ask(node, "nodes"):
        if row["name"] == node:
            assert (row["state"], row["vip_count"]) == ("out_of_service", 0), row
            assert "partition policy" in row["reason"], row
    for row in lab.ask(node, "vips"):
        assert (row["owner"], row["state"]) == (None, "unplaced"), row
        assert "partition policy" in row["reason"], row
    assert "partition policy" in lab.lbctl(node, "status").stdout
    rows = lab.api(node, "GET", "/v1/events?limit=100")
    told = [row["message"] for row in rows if row["kind"] == "view.changed" and row["time"] >= since]
    assert any("left: gw2; out of service by the partition policy" in text for text in told), told
