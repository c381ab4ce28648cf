# SPDX-License-Identifier: Apache-2.0
"""The lab's own tests: what it builds is what was drawn, faults do what they say, and nothing stays behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest
from netlab import build, faults, gateway_files, namespaces, services, state
from netlab.lab import Lab, LabMaker
from netlab.namespaces import Process
from netlab.state import LabError
from netlab.topologies import TOPOLOGIES
from netlab.topology import ECHO_PORT, FAMILIES, HTTP_PORT, Topology
from netlab.traffic.udp_probe import longest_gap
from netlab.waiting import eventually

LAB_COMMAND = str(services.LAB_ROOT / "lab")
UP_SECONDS_MAX = 5.0


# ---------------------------------------------------------------------------------------------------------------------
# plain data


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=lambda t: t.name)
def test_topology_is_consistent(topology: Topology) -> None:
    addresses = [
        interface.segment.address(interface.host, family)
        for node in topology.nodes
        for interface in node.interfaces
        for family in FAMILIES
    ]
    assert len(addresses) == len(set(addresses))
    assert not {vip.address for vip in topology.vips} & set(addresses), "a VIP is some host's own address"
    ports = [port for node in topology.nodes for _, _, port in topology.ports(node)]
    assert len(ports) == len(set(ports))
    assert all(len(f"{port}.d") <= 15 for port in ports), "the kernel allows 15 characters"
    assert {service.address for service in topology.services} <= {vip.address for vip in topology.vips}
    assert {interface.segment for node in topology.nodes for interface in node.interfaces} <= set(topology.segments)


@pytest.mark.parametrize(
    ("answered", "gap_ms"),
    [
        ({0, 1, 2, 3, 4}, 0.0),
        ({0, 1, 3, 4}, 20.0),
        ({0, 4}, 40.0),
        ({0, 1}, 30.0),
        ({3, 4}, 30.0),
        (set(), 40.0),
    ],
)
def test_longest_gap_is_counted_between_answered_probes(answered: set[int], gap_ms: float) -> None:
    sent_at = [number * 0.01 for number in range(5)]
    assert longest_gap(sent_at, dict.fromkeys(answered, 0.0))[0] == pytest.approx(gap_ms)


def test_node_files_name_every_peer_and_no_ring_only_interface(tmp_path: Path) -> None:
    topology = TOPOLOGIES["four-gateways-dual-link"]
    text = gateway_files.node_file("x", topology, topology.node("gw2"), tmp_path, {"failure_detection_ms": 20})
    assert 'gw1 = { id = 1, addresses = ["10.0.3.1:7400", "10.0.4.1:7400"] }' in text
    assert "gw2 = {" not in text
    assert text.count("[[interface]]") == 2
    assert "failure_detection_ms = 20" in text


@pytest.mark.parametrize("name", ["", "Big", "a/b", "-a", "a" * 32])
def test_a_bad_lab_name_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="allowed are"):
        state.directory_of(name)


# ---------------------------------------------------------------------------------------------------------------------
# networks


def reaches(lab: Lab, node: str, address: str, *options: str) -> bool:
    return lab.run(node, ["ping", "-q", "-c1", "-W1", *options, address], check=False).returncode == 0


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=lambda t: t.name)
def test_every_pair_on_a_segment_reaches_each_other(make_lab: LabMaker, topology: Topology) -> None:
    begun = time.monotonic()
    lab = make_lab(topology.name, daemons=False)
    assert time.monotonic() - begun < UP_SECONDS_MAX
    script = []
    for left, right in combinations(topology.nodes, 2):
        shared = {i.segment.name for i in left.interfaces} & {i.segment.name for i in right.interfaces}
        script += [(left.name, right.address(segment, family)) for segment in shared for family in FAMILIES]
    assert script
    for node in topology.nodes:
        targets = [address for name, address in script if name == node.name]
        if targets:
            pings = " && ".join(f"ping -q -c1 -W2 {address} >/dev/null" for address in targets)
            lab.run(node.name, ["sh", "-c", pings])


@pytest.fixture(scope="module")
def routed(make_lab: LabMaker) -> Lab:
    lab: Lab = make_lab("routed", daemons=False)
    return lab


@pytest.mark.parametrize("family", FAMILIES)
def test_backends_serve_http_and_name_themselves(routed: Lab, family: int) -> None:
    for backend in routed.topology.of_role("backend"):
        address = backend.address("inside", 4 if family == 4 else 6)
        report = routed.measure("http_load", address, HTTP_PORT, "--connections", 20, "--concurrency", 4)
        assert report["backends"] == {backend.name: 20}
        assert report["failed"] == 0


def test_a_refused_connection_counts_as_failed_and_not_as_lost(routed: Lab) -> None:
    report = routed.measure("http_load", "10.0.2.21", 4, "--connections", 3)
    assert (report["failed"], report["lost_connections"], report["connections"]) == (3, 0, 0)


def test_a_download_is_checked_by_its_content(routed: Lab) -> None:
    digest = services.make_content(routed.directory, "5m", 5 << 20)
    good = routed.measure("downloads", "10.0.2.21", HTTP_PORT, "--path", "/file/5m", "--count", 2, "--sha256", digest)
    assert (good["complete"], good["failed"], good["bytes"]) == (2, 0, 10 << 20)
    bad = routed.measure("downloads", "10.0.2.21", HTTP_PORT, "--path", "/file/5m", "--sha256", "0" * 64)
    assert (bad["complete"], bad["failed"]) == (0, 1)


def test_an_upload_arrives_whole(routed: Lab) -> None:
    routed.run("client", ["curl", "-sfT", str(routed.directory / "content" / "1m"), "http://10.0.2.22/upload/1m"])
    arrived = routed.directory / "b2" / "upload" / "1m"
    assert arrived.read_bytes() == (routed.directory / "content" / "1m").read_bytes()


def test_a_push_stream_whose_server_ends_is_lost(routed: Lab) -> None:
    with routed.traffic("push_watch", "10.0.2.23", "--count", 3) as watch:
        eventually(lambda: routed.established("b3", "sport = :9001") == 3)
        routed.process("b3/endpoint").signal(signal.SIGKILL)
        assert watch.wait()["lost_connections"] == 3
    node, command = services.commands(routed.directory, routed.topology)["b3/endpoint"]
    routed.start("b3/endpoint", node, command)


def test_the_prober_sees_no_gap_on_a_sound_network(routed: Lab) -> None:
    report = routed.measure("udp_probe", "10.0.2.21", "--seconds", 1.5)
    assert report["lost"] == 0
    assert report["gap_ms"] == 0
    assert report["sent"] > 500, f"the prober was kept from running: {report}"


def test_two_labs_of_one_topology_do_not_see_each_other(make_lab: LabMaker, routed: Lab) -> None:
    other = make_lab("routed", daemons=False)
    faults.set_links(other, "b1", up=False)
    assert reaches(routed, "client", "10.0.2.21")
    assert not reaches(other, "client", "10.0.2.21")


# ---------------------------------------------------------------------------------------------------------------------
# faults


def carrier(lab: Lab, node: str, device: str) -> bool:
    return (
        lab.inside(node, lambda: Path("/sys/class/net").exists())
        and "LOWER_UP" in lab.run(node, ["ip", "-br", "link", "show", device]).stdout
    )


def test_a_cut_link_has_no_carrier_and_heals(routed: Lab, healing: list[Lab]) -> None:
    healing.append(routed)
    faults.set_links(routed, "gw1", up=False, interfaces=["inside"])
    eventually(lambda: not carrier(routed, "gw1", "eth1"), 2)
    assert carrier(routed, "gw1", "eth0")
    assert not reaches(routed, "client", "10.0.2.21")
    faults.heal(routed)
    eventually(lambda: reaches(routed, "client", "10.0.2.21"), 5)


def test_a_dead_switch_takes_its_cables_and_trunks_and_no_others(make_lab: LabMaker, healing: list[Lab]) -> None:
    lab = make_lab("redundant-switches", daemons=False)
    healing.append(lab)
    here, there = (lab.topology.node(name).address("outside", 4) for name in ("gw1", "gw2"))
    faults.set_switch(lab, "sw2", up=False)
    # A gateway at the other switch keeps its ring link at this one.
    links = {device: carrier(lab, "gw2", device) for device in ("eth0", "eth1", "eth2", "eth3")}
    assert links == {"eth0": False, "eth1": False, "eth2": True, "eth3": False}
    assert reaches(lab, "client", here)
    faults.heal(lab)
    eventually(lambda: reaches(lab, "client", there), 5)
    with pytest.raises(LabError, match="sw1, sw2"):
        faults.set_switch(lab, "gw1", up=False)


def test_loss_loses_about_its_share(routed: Lab, healing: list[Lab]) -> None:
    healing.append(routed)
    assert reaches(routed, "client", "10.0.2.21")  # link addresses are known: a lost question for one costs a second
    faults.set_loss(routed, "b1", 20)
    report = routed.measure("udp_probe", "10.0.2.21", "--seconds", 1.5)
    share = report["lost"] / report["sent"]
    # Both directions lose 20 %: 36 % of the round trips; five standard deviations of 1,000 trials are 8 %.
    assert 0.25 < share < 0.47, report
    faults.heal(routed)
    assert routed.measure("udp_probe", "10.0.2.21", "--seconds", 0.3)["lost"] == 0


def test_delay_delays_each_direction(routed: Lab, healing: list[Lab]) -> None:
    healing.append(routed)
    faults.set_delay(routed, "b2", 20)
    report = routed.measure("udp_probe", "10.0.2.22", "--seconds", 1, "--interval-ms", 10)
    assert report["lost"] <= 4, report  # those still on their way at the end
    assert 40 <= report["median_trip_ms"] < 70, report
    # Offloaded segments pass as well.
    assert routed.measure("downloads", "10.0.2.22", HTTP_PORT, "--path", "/file/1m")["complete"] == 1
    faults.heal(routed)
    assert routed.measure("udp_probe", "10.0.2.22", "--seconds", 0.3)["median_trip_ms"] < 20


def test_a_smaller_mtu_is_seen_by_ping(routed: Lab, healing: list[Lab]) -> None:
    healing.append(routed)
    assert reaches(routed, "gw1", "10.0.2.21", "-M", "do", "-s", "1472")
    faults.set_mtu(routed, "gw1", 1400, ["inside"])
    assert not reaches(routed, "gw1", "10.0.2.21", "-M", "do", "-s", "1472")


@pytest.fixture(scope="module")
def three(make_lab: LabMaker) -> Lab:
    lab: Lab = make_lab("three-gateways", daemons=False)
    return lab


def test_a_partition_parts_gateways_only(three: Lab, healing: list[Lab]) -> None:
    healing.append(three)
    assert reaches(three, "gw1", "10.0.2.2")
    faults.partition(three, ["gw1"])
    for address in ("10.0.1.2", "10.0.2.2", "10.0.2.3"):
        assert not reaches(three, "gw1", address)
    assert reaches(three, "gw2", "10.0.2.3")
    assert reaches(three, "client", "10.0.1.1")
    faults.heal(three)
    assert reaches(three, "gw1", "10.0.2.2")


def udp_arrives(lab: Lab, sender: str, receiver: str, address: str) -> bool:
    """Whether one datagram gets there: a ping could not tell which direction is broken."""

    def listen() -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((address, ECHO_PORT + 1))
        opened.settimeout(0.5)
        return opened

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.sendto(b"x", (address, ECHO_PORT + 1))

    with lab.inside(receiver, listen) as waiting:
        lab.inside(sender, send)
        try:
            return waiting.recv(10) == b"x"
        except TimeoutError:
            return False


def test_a_one_way_partition_leaves_the_other_direction(three: Lab, healing: list[Lab]) -> None:
    healing.append(three)
    assert reaches(three, "gw3", "10.0.2.1")  # both know each other's link address
    assert reaches(three, "gw1", "10.0.2.3")
    faults.partition(three, ["gw3"], one_way=True)
    assert not udp_arrives(three, "gw3", "gw1", "10.0.2.1")
    assert udp_arrives(three, "gw1", "gw3", "10.0.2.3")


def test_a_fault_on_nothing_is_refused_with_what_there_is(three: Lab) -> None:
    with pytest.raises(LabError, match="gw1, gw2, gw3"):
        faults.set_links(three, "gw9", up=False)
    with pytest.raises(LabError, match=r"eth0 \(outside\)"):
        faults.set_links(three, "gw1", up=False, interfaces=["eth7"])


# ---------------------------------------------------------------------------------------------------------------------
# the command


def command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([LAB_COMMAND, *words], capture_output=True, text=True, timeout=60)


@pytest.fixture
def lab_name() -> object:
    name = f"c{os.getpid()}"
    yield name
    state.clean_up(name)


def leftovers(name: str) -> list[str]:
    directories = [str(state.directory_of(name))] if state.directory_of(name).exists() else []
    return namespaces.existing(name) + directories


def test_up_status_exec_down(lab_name: str) -> None:
    assert command("up", lab_name, "--topology", "one-gateway", "--no-daemons").returncode == 0
    assert lab_name in command("list").stdout
    assert "gw1" in command("status", lab_name).stdout
    shown = command("exec", lab_name, "b1", "--", "ip", "-br", "address", "show", "eth0")
    assert "10.0.1.21/24" in shown.stdout
    again = command("up", lab_name, "--topology", "one-gateway")
    assert again.returncode == 1
    assert "there already" in again.stderr
    inside = namespaces.processes_inside(namespaces.existing(lab_name))
    assert inside
    assert command("down", lab_name).returncode == 0
    assert leftovers(lab_name) == []
    assert not any(process.alive() for process in inside)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing(lab_name: str, number: int) -> None:
    for _ in range(10):  # a quick machine may be done before the signal comes
        child = subprocess.Popen(
            [LAB_COMMAND, "up", lab_name, "--topology", "four-gateways-dual-link", "--no-daemons"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A test run in the background of a shell hands down an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        eventually(lambda: namespaces.existing(lab_name) or child.poll() is not None, 10)  # noqa: B023
        child.send_signal(number)
        code = child.wait(20)
        if code != 0:
            break
        command("down", lab_name)
    assert code == 130
    assert leftovers(lab_name) == []


def test_a_killed_up_is_cleaned_by_down(lab_name: str) -> None:
    child = subprocess.Popen(
        [LAB_COMMAND, "up", lab_name, "--topology", "three-gateways", "--no-daemons"], stdout=subprocess.DEVNULL
    )
    eventually(lambda: len(namespaces.existing(lab_name)) >= 3, 10)
    child.kill()
    child.wait()
    assert leftovers(lab_name)
    assert command("down", lab_name).returncode == 0
    assert leftovers(lab_name) == []


def test_down_ends_what_was_started_by_hand(lab_name: str) -> None:
    lab = Lab.up(lab_name, "one-gateway", daemons=False)
    child = lab.inside("client", lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    process = Process.of(child.pid)
    assert process is not None
    lab.down()
    assert not process.alive()
    child.wait()
    assert leftovers(lab_name) == []


@pytest.fixture(scope="module")
def tunnel(make_lab: LabMaker) -> Lab:
    lab: Lab = make_lab("tunnel", daemons=False)
    return lab


@pytest.mark.parametrize(("inner", "outer"), [(4, 4), (6, 6), (4, 6), (6, 4)])
def test_backends_unwrap_tunnels_of_every_kind(tunnel: Lab, inner: int, outer: int) -> None:
    """A SYN for the VIP, wrapped by hand, is answered by the backend straight to the client."""
    script = f"""
from scapy.all import Ether, IP, IPv6, TCP, AsyncSniffer, getmacbyip, getmacbyip6, sendp
from netlab.topologies import TOPOLOGIES
topology = TOPOLOGIES["tunnel"]
def layer(family, to):
    return (IP if family == 4 else IPv6)(src=topology.node("client").address("outside", family), dst=to)
packet = layer({outer}, topology.node("b2").address("inside", {outer})) / layer({inner}, topology.vip({inner}))
packet /= TCP(sport=40{inner}{outer}, dport=80, flags="S")
find = getmacbyip if {outer} == 4 else getmacbyip6
router = find(topology.node("r1").address("outside", {outer}))
sniffer = AsyncSniffer(iface="eth0", count=1, lfilter=lambda p: TCP in p and p[TCP].dport == 40{inner}{outer},
                       started_callback=lambda: sendp(Ether(dst=router) / packet, iface="eth0", verbose=0))
sniffer.start()
sniffer.join(timeout=5)
answer = sniffer.results[0]
assert str(answer[TCP].flags) == "SA" and answer[IP if {inner} == 4 else IPv6].src == topology.vip({inner})
"""
    tunnel.run("client", [sys.executable, "-c", script])


def test_claims_are_asked_for_and_seen(routed: Lab) -> None:
    addresses = [routed.topology.node("gw1").address("outside", family) for family in FAMILIES]
    sources = [routed.topology.node("client").address("outside", family) for family in FAMILIES]
    options = [word for source in sources for word in ("--source", source)]
    report = routed.measure("claims", "eth0", *addresses, *options, "--ask-ms", 20, "--seconds", 0.5)
    mac = build.mac_address("gw1", "eth0")
    for address in addresses:
        (claimant,) = report[address]
        assert claimant["mac"] == mac
        assert claimant["count"] > 5
