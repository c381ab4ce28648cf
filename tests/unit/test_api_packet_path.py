# SPDX-License-Identifier: Apache-2.0
"""where and capture through the API, on the real packet path: compiled, pinned, run on packets."""

import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from netlab.waiting import eventually

from ebpf.layout import Method, flow_key
from lb.api import frames
from lb.api.shapes import Where
from tests.packet.gateway import TCP, Backend, Gateway, Service, backend_mac
from tests.unit.api_support import RunningApi, running_api
from tools.lbctl.client import ApiError

VIP = "10.0.1.100"
PACKETS = 50
CAPTURE_DEFAULT_S = 10


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with running_api(tmp_path_factory.mktemp("path") / "gw") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(api: RunningApi) -> Gateway:
    """The path over the pins the API reads: the service `web` of the control double, with its two backends."""
    shutil.rmtree(api.directory / "run" / "bpf" / "gw1")
    loaded = Gateway(api.directory / "run" / "bpf" / "gw1")
    backends = [Backend(number, f"10.0.2.1{number}", mac=backend_mac(number)) for number in (1, 2)]
    loaded.put_service(Service(1, VIP, 80, TCP, Method.TUNNEL, backends))
    return loaded


def ask(api: RunningApi, **fields: Any) -> dict[str, Any]:
    body = {"source": "192.0.2.7", "source_port": 4000, "destination": VIP, "destination_port": 80, **fields}
    answer: dict[str, Any] = api.client().post("/v1/where", body)
    Where.model_validate(answer)
    return answer


def test_where_names_backend_reason_and_rewritten_headers(api: RunningApi, gateway: Gateway) -> None:
    found = ask(api)
    assert (found["verdict"], found["reason"]) == ("tx", "sent_forwarded")
    assert found["service"] == "web"
    assert found["backend"] in ("b1", "b2")
    outer, inner = frames.layers(bytes.fromhex(found["packet_out_hex"]))
    assert str(outer.destination) == {"b1": "10.0.2.11", "b2": "10.0.2.12"}[found["backend"]]
    assert (str(inner.destination), inner.destination_port) == (VIP, 80)
    assert "scheduler" in found["because"]


def test_where_agrees_with_the_path_and_leaves_no_trace(api: RunningApi, gateway: Gateway) -> None:
    before = gateway.maps.reason_counters.dump()[1].copy()
    found = ask(api, source_port=4001, flags=["ack"])
    assert gateway.connection(flow_key("192.0.2.7", 4001, VIP, 80, TCP)) is None
    assert (gateway.maps.reason_counters.dump()[1] == before).all()

    frame = frames.build(ip_address("192.0.2.7"), 4001, ip_address(VIP), 80, TCP, ["ack"], frames.SOURCE_MAC)
    _, packet = gateway.run(frame)
    outer = next(frames.layers(packet))
    assert str(outer.destination) == {"b1": "10.0.2.11", "b2": "10.0.2.12"}[found["backend"]]


def test_where_knows_a_connection(api: RunningApi, gateway: Gateway) -> None:
    for target, name in ((1, "b1"), (2, "b2")):
        gateway.put_connection(flow_key("192.0.2.8", 5000 + target, VIP, 80, TCP), 1, target)
        found = ask(api, source="192.0.2.8", source_port=5000 + target, flags=["ack"])
        assert found["backend"] == name
        assert "known connection (established" in found["because"]


def test_where_says_what_is_nobodys(api: RunningApi, gateway: Gateway) -> None:
    found = ask(api, destination="203.0.113.1")
    assert (found["verdict"], found["reason"], found["backend"]) == ("pass", "pass_not_ours", None)
    assert found["packet_out"] is None


def test_where_refuses_what_makes_no_packet(api: RunningApi, gateway: Gateway) -> None:
    with pytest.raises(ApiError, match="different families") as caught:
        ask(api, destination="2001:db8::1")
    assert caught.value.code == "invalid"
    with pytest.raises(ApiError, match="nosuch0") as caught:
        ask(api, interface="nosuch0")
    assert caught.value.code == "not_found"


def blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each block of a pcapng file; checks that both lengths of each agree."""
    while data:
        kind, length = struct.unpack("<II", data[:8])
        assert struct.unpack("<I", data[length - 4 : length])[0] == length
        yield kind, data[8 : length - 4]
        data = data[length:]


def send_while(gateway: Gateway, stop: threading.Event) -> None:

    port = 6000
    while not stop.is_set():
        port = 6000 + (port + 1) % 1000
        for destination in (VIP, "203.0.113.1"):
            source = ip_address("192.0.2.9")
            gateway.run(frames.build(source, port, ip_address(destination), 80, TCP, ["syn"], frames.SOURCE_MAC))
        time.sleep(0.002)


def captured(api: RunningApi, gateway: Gateway, **fields: Any) -> bytes:
    stop = threading.Event()
    sender = threading.Thread(target=send_while, args=(gateway, stop))
    sender.start()
    try:
        return b"".join(api.client().download("/v1/capture", {"packets": PACKETS, "seconds": 30, **fields}, 60))
    finally:
        stop.set()
        sender.join()


def test_capture_writes_packets_with_their_verdicts(api: RunningApi, gateway: Gateway, tmp_path: Path) -> None:
    data = captured(api, gateway)
    kinds = [kind for kind, _ in blocks(data)]
    assert kinds == [0x0A0D0D0A, 1] + [6] * PACKETS
    assert b"verdict=tx reason=sent_forwarded" in data
    assert b"backend=web/b" in data
    file = tmp_path / "c.pcapng"
    file.write_bytes(data)
    shown = subprocess.run(["tcpdump", "-nn", "-r", str(file)], capture_output=True, text=True, check=True)
    assert len(shown.stdout.splitlines()) == PACKETS
    assert f"> {VIP}.80: Flags [S]" in shown.stdout


def test_capture_filters_by_address_reason_and_service(api: RunningApi, gateway: Gateway) -> None:
    ours = captured(api, gateway, address=VIP, packets=10)
    assert ours.count(b"sent_forwarded") == 10
    others = captured(api, gateway, reason="pass_not_ours", packets=10)
    assert others.count(b"pass_not_ours") == 10
    of_service = captured(api, gateway, service="web", packets=10)
    assert of_service.count(b"service=web") == 10
    with pytest.raises(ApiError, match="nobody"):
        captured(api, gateway, service="nobody")


def test_capture_ends_in_time_and_switches_the_mirror_off(api: RunningApi, gateway: Gateway) -> None:
    begin = time.monotonic()
    data = b"".join(api.client().download("/v1/capture", {"seconds": 0.5}, 30))
    assert time.monotonic() - begin < CAPTURE_DEFAULT_S
    assert [kind for kind, _ in blocks(data)] == [0x0A0D0D0A, 1]
    control = gateway.maps.capture_control.get(0)
    assert control is not None
    assert int(control["until_ns"]) == 0


def test_one_capture_at_a_time(api: RunningApi, gateway: Gateway) -> None:
    first = api.client().download("/v1/capture", {"seconds": 1}, 10)
    assert next(first)
    with pytest.raises(ApiError) as caught:
        next(api.client().download("/v1/capture", {"seconds": 1}, 10))
    assert caught.value.code == "too_many"
    list(first)


def test_counters_and_traffic_are_those_of_the_path(api: RunningApi, gateway: Gateway) -> None:
    time.sleep(1.1)  # the API reads the counters at most once a second
    before = api.client().get("/v1/services")[0]["traffic"]["packets"]

    for port in range(100):
        source = ip_address("192.0.2.20")
        gateway.run(frames.build(source, 7000 + port, ip_address(VIP), 80, TCP, ["syn"], frames.SOURCE_MAC))
    eventually(lambda: api.client().get("/v1/services")[0]["traffic"]["packets"] == before + 100)
    backends = api.client().get("/v1/backends")
    assert sum(row["traffic"]["packets"] for row in backends) == before + 100
    (forwarded,) = [row for row in api.client().get("/v1/counters") if row["reason"] == "sent_forwarded"]
    assert forwarded["packets_per_s"] is not None
