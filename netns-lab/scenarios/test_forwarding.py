# SPDX-License-Identifier: Apache-2.0
"""One gateway, every forwarding method, both families: clients get right answers, from the backends they should."""

import socket
from collections import Counter
from ipaddress import ip_address

import pytest
from netlab import faults, services
from netlab.lab import Lab, LabMaker
from netlab.topology import CROSS_FAMILY_HTTP_PORT, ECHO_PORT, FAMILIES, HTTP_PORT, LOCAL_HTTP_PORT, Family
from netlab.traffic.endpoint import NAME_BYTES
from netlab.waiting import eventually

TOPOLOGY_OF = {"dsr": "one-gateway", "nat": "routed", "tunnel": "tunnel"}
HTTP_CONNECTIONS = 2000
FLOWS = 600
LARGE_FILE_BYTES = 100 << 20
UPLOAD_BYTES = 8 << 20
# Chi-square with two degrees of freedom exceeds this once in three million runs of a fair spread.
CHI_SQUARE_MAX = 30.0


@pytest.fixture(scope="module", params=TOPOLOGY_OF)
def lab(request: pytest.FixtureRequest, shared_lab: LabMaker) -> Lab:
    made: Lab = shared_lab(TOPOLOGY_OF[request.param])
    return made


def assert_spread(counts: dict[str, int], weights: dict[str, int]) -> None:
    """Connections per backend are a plausible sample of the weights."""
    total, weight_sum = sum(counts.values()), sum(weights.values())
    assert set(counts) <= set(weights), f"answers of strangers: {counts}"
    expected = {name: total * weight / weight_sum for name, weight in weights.items()}
    chi_square = sum((counts.get(name, 0) - share) ** 2 / share for name, share in expected.items())
    assert chi_square < CHI_SQUARE_MAX, f"{counts} for weights {weights}: chi-square {chi_square:.1f}"


@pytest.mark.parametrize("family", FAMILIES)
def test_http_connections_are_all_answered_and_spread(lab: Lab, family: Family) -> None:
    report = lab.measure(
        "http_load", lab.topology.vip(family), HTTP_PORT, "--connections", HTTP_CONNECTIONS, "--concurrency", 64
    )
    assert (report["failed"], report["requests"]) == (0, HTTP_CONNECTIONS), report
    assert_spread(report["backends"], {"b1": 1, "b2": 1, "b3": 1})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_download_arrives_whole(lab: Lab, family: Family) -> None:
    digest = services.make_content(lab.directory, "100m", LARGE_FILE_BYTES)
    report = lab.measure(
        "downloads", lab.topology.vip(family), HTTP_PORT, "--path", "/file/100m", "--sha256", digest, timeout=100
    )
    assert (report["complete"], report["failed"]) == (1, 0), report


def echo_flows(address: str, count: int) -> Counter[str]:
    """One datagram from each of many ports; which backend answered each of them twice."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    names: Counter[str] = Counter()
    for number in range(count):
        with socket.socket(family, socket.SOCK_DGRAM) as flow:
            flow.settimeout(5)
            flow.connect((address, ECHO_PORT))
            answers = []
            for attempt in range(2):
                sent = f"{number}/{attempt}".encode()
                flow.send(sent)
                answer = flow.recv(100)
                assert answer[NAME_BYTES:] == sent
                answers.append(answer[:NAME_BYTES])
            assert answers[0] == answers[1], "a flow changed its backend"
            names[answers[0].decode().strip()] += 1
    return names


@pytest.mark.parametrize("family", FAMILIES)
def test_udp_flows_are_echoed_and_spread(lab: Lab, family: Family) -> None:
    names = lab.inside("client", echo_flows, lab.topology.vip(family), FLOWS)
    assert_spread(names, {"b1": 1, "b2": 1, "b3": 1})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vip_answers_pings(lab: Lab, family: Family) -> None:
    lab.run("client", ["ping", "-q", "-c3", "-i0.05", "-W2", lab.topology.vip(family)])


def upload(lab: Lab, family: Family, name: str) -> list[bool]:
    """Upload a file through the VIP; for every copy that arrived, whether it is the same."""
    services.make_content(lab.directory, "8m", UPLOAD_BYTES)
    source = lab.directory / "content" / "8m"
    host = f"[{lab.topology.vip(6)}]" if family == 6 else lab.topology.vip(4)
    lab.run("client", ["curl", "-gsSf", "-m", "30", "-T", str(source), f"http://{host}/upload/{name}"])
    arrived = [lab.directory / backend.name / "upload" / name for backend in lab.topology.of_role("backend")]
    return [path.read_bytes() == source.read_bytes() for path in arrived if path.exists()]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_upload_arrives_whole(lab: Lab, family: Family) -> None:
    assert upload(lab, family, f"plain{family}") == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_change_the_spread(lab: Lab, family: Family) -> None:
    service = f"http{family}"
    lab.api("gw1", "POST", f"/v1/backends/{service}/b1/weight", {"weight": 3})
    try:
        report = lab.measure("http_load", lab.topology.vip(family), HTTP_PORT, "--connections", 1000)
        assert report["failed"] == 0, report
        assert_spread(report["backends"], {"b1": 3, "b2": 1, "b3": 1})
    finally:
        lab.api("gw1", "POST", f"/v1/backends/{service}/b1/weight", {"weight": 1})


# ---------------------------------------------------------------------------------------------------------------------
# path-MTU discovery


@pytest.fixture(scope="module")
def tunnel(shared_lab: LabMaker) -> Lab:
    made: Lab = shared_lab("tunnel")
    return made


@pytest.fixture(scope="module")
def routed(shared_lab: LabMaker) -> Lab:
    made: Lab = shared_lab("routed")
    return made


def learns_mtu(lab: Lab, family: Family, name: str) -> int | None:
    """The path MTU to the VIP that the client knows after an upload."""
    assert all(upload(lab, family, name))
    words = lab.run("client", ["ip", "route", "get", lab.topology.vip(family)]).stdout.split()
    return int(words[words.index("mtu") + 1]) if "mtu" in words else None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_learns_that_the_tunnel_is_narrower(tunnel: Lab, family: Family, healing: list[Lab]) -> None:
    """With no room for the outer header on the gateway's link, full-sized packets of the client do not fit."""
    healing.append(tunnel)
    faults.set_mtu(tunnel, "gw1", 1500)
    outer = 20 if family == 4 else 40
    # The gateway takes note of its interface by itself, within seconds.
    eventually(lambda: learns_mtu(tunnel, family, f"narrow{family}") == 1500 - outer, 45)
    assert upload(tunnel, family, f"after{family}") == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_learns_of_a_narrow_link_behind_a_translating_gateway(
    routed: Lab, family: Family, healing: list[Lab]
) -> None:
    healing.append(routed)
    faults.set_mtu(routed, "gw1", 1400, ["inside"])
    eventually(lambda: learns_mtu(routed, family, f"narrow{family}") == 1400, 45)
    assert upload(routed, family, f"after{family}") == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_learns_of_a_narrow_link_in_front_of_a_translating_gateway(
    routed: Lab, family: Family, healing: list[Lab]
) -> None:
    healing.append(routed)
    digest = services.make_content(routed.directory, "8m", UPLOAD_BYTES)
    faults.set_mtu(routed, "gw1", 1400, ["outside"])
    report = routed.measure(
        "downloads", routed.topology.vip(family), HTTP_PORT, "--path", "/file/8m", "--count", 3, "--sha256", digest
    )
    assert (report["complete"], report["failed"]) == (3, 0), report


# ---------------------------------------------------------------------------------------------------------------------
# what only some topologies have


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tunnel_of_the_other_family(tunnel: Lab, family: Family) -> None:
    report = tunnel.measure("http_load", tunnel.topology.vip(family), CROSS_FAMILY_HTTP_PORT, "--connections", 600)
    assert (report["failed"], report["requests"]) == (0, 600), report
    assert_spread(report["backends"], {"b1": 1, "b2": 1, "b3": 1})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_service_is_served_by_the_gateway_itself(routed: Lab, family: Family) -> None:
    report = routed.measure("http_load", routed.topology.vip(family), LOCAL_HTTP_PORT, "--connections", 200)
    assert (report["failed"], report["backends"]) == (0, {"gw1": 200}), report


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_for_a_service_is_left_to_the_kernel(routed: Lab, family: Family) -> None:
    """The gateway still routes, and answers at its own addresses."""
    backend = ip_address(routed.topology.node("b1").address("inside", family))
    url = f"http://[{backend}]:{HTTP_PORT}/" if backend.version == 6 else f"http://{backend}:{HTTP_PORT}/"
    # From a port that a connection through the VIP has just used, the answer would be taken for that connection's.
    for port in range(100 * family, 100 * family + 20):
        curl = ["curl", "-sS", "-m", "5", "--local-port", str(port), "-o", "/dev/null", "-w", "%header{x-backend}", url]
        assert routed.run("client", curl).stdout == "b1"
    routed.run("client", ["ping", "-q", "-c1", "-W2", routed.topology.node("gw1").address("outside", family)])
