# SPDX-License-Identifier: Apache-2.0
"""Which checks reach a VIP, what their sockets carry, and that their programs leave others' alone."""

import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ebpf import libbpf, loader, probe_path, source, traffic_control
from ebpf.probe import probe
from ebpf.traffic_control import Side
from lb.configuration.model import Backend, ClusterConfig, HealthCheck, Service
from lb.health.board import HealthBoard, reaches_vip
from lb.health.probes import marked

WEB = Service(
    name="web",
    address="10.0.0.100",
    protocol="tcp",
    forward="dsr",
    port=80,
    health=HealthCheck(kind="tcp"),
    backends=(Backend(name="b1", address="10.0.0.21", id=7),),
    id=1,
)


def test_the_mark_is_the_one_the_program_knows() -> None:
    text = (source.SOURCE_DIRECTORY / probe_path.SOURCE).read_text()
    found = dict(re.findall(r"^#define (PROBE_MARK\w*) (0x\w+)$", text, re.MULTILINE))
    assert int(found["PROBE_MARK"], 16) == probe_path.PROBE_MARK
    assert probe_path.mark_of(7) & ~int(found["PROBE_MARK_MASK"], 16) & 0xFFFF_FFFF == 7


@pytest.mark.parametrize(
    ("change", "check", "expected"),
    [
        ({}, {}, True),
        ({"forward": "tunnel"}, {}, True),
        ({"forward": "nat"}, {}, False),
        ({"address": "fd00::100", "forward": "tunnel"}, {}, False),
        ({}, {"reach": "address"}, False),
        ({}, {"kind": "script", "command": ("/bin/true",)}, False),
    ],
)
def test_which_checks_reach_the_vip(change: dict[str, str], check: dict[str, object], expected: bool) -> None:
    assert WEB.health is not None
    service = replace(WEB, **change, health=replace(WEB.health, **check))  # type: ignore[arg-type]
    assert reaches_vip(service, service.backends[0]) is expected


def test_such_checks_wait_for_their_way_and_do_without_where_it_is_refused() -> None:
    board = HealthBoard(1, lambda key, value: None, lambda changed: None)
    board.configure(ClusterConfig(services=(WEB,)))
    assert board.targets() == []
    board.way_to_vips(True)
    assert [target["mark"] for target in board.targets()] == [probe_path.mark_of(7)]
    board.way_to_vips(False)
    assert [target["mark"] for target in board.targets()] == [0]


def test_a_probe_carries_its_mark() -> None:
    with marked("127.0.0.1", socket.SOCK_STREAM, probe_path.mark_of(7)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == probe_path.mark_of(7)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Path]:
    with loader.mounted_bpffs(tmp_path / "bpf") as bpffs:
        loader.create_maps(bpffs / "node" / "maps", {"connections": 64, "half_open": 64, "tables": 4}).close()
        yield bpffs / "node"


@pytest.fixture
def link() -> Iterator[str]:
    subprocess.run(["ip", "link", "add", "hway0", "type", "veth", "peer", "name", "hway1"], check=True)
    yield "hway0"
    subprocess.run(["ip", "link", "del", "hway0"], check=True)


def test_it_comes_and_goes_beside_programs_of_others(node: Path, link: str) -> None:
    ifindex = socket.if_nametoindex(link)
    probe_path.attach([link], node)
    program = traffic_control.attached(ifindex, Side.EGRESS)
    assert program
    probe_path.attach([link], node)
    assert traffic_control.attached(ifindex, Side.EGRESS) == program, "the same version stays where it is"
    pin = probe_path.load(node) / "probe_receive"
    subprocess.run(f"tc filter add dev {link} egress pref 99 bpf da object-pinned {pin}".split(), check=True)
    probe_path.detach([link, "no-such-link"], node)
    assert traffic_control.attached(ifindex, Side.EGRESS) == traffic_control.attached(ifindex, Side.INGRESS) == 0
    assert "pref 99" in filters(link)
    subprocess.run(f"tc filter del dev {link} egress pref 99".split(), check=True)
    probe_path.detach([link], node)
    assert "clsact" not in subprocess.run(f"tc qdisc show dev {link}".split(), capture_output=True, text=True).stdout
    assert not list(node.glob("probes-*"))


def filters(link: str) -> str:
    return subprocess.run(f"tc filter show dev {link} egress".split(), capture_output=True, text=True).stdout


def test_doctor_tells_a_program_of_somebody_else_from_the_packet_path(node: Path, link: str) -> None:
    ifindex = socket.if_nametoindex(link)
    program = libbpf.object_get(loader.load_pass_all(node))
    libbpf.xdp_attach(ifindex, program, libbpf.XDP_FLAGS_SKB)
    (found,) = [check for check in probe([link]) if check.name == f"interface {link}"]
    assert (found.ok, found.required) == (False, False)
    assert "of somebody else" in found.detail
    libbpf.xdp_attach(ifindex, -1, libbpf.XDP_FLAGS_SKB)
    (found,) = [check for check in probe([link]) if check.name == f"interface {link}"]
    assert found.ok
