# SPDX-License-Identifier: Apache-2.0
"""Loading, attaching, replacing, refusing; and the shared layout in both languages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ebpf import bytecode, layout, libbpf, loader, map_specs, maps, source
from ebpf.layout import Method
from ebpf.loader import LoaderError, Mode
from ebpf.reasons import BY_NAME, REASONS, markdown
from tests.packet import gateway as g
from tests.packet.frames import PORT, VIP4, client

ROOT = Path(__file__).parent.parent.parent
BURST = 64
REPLACEMENTS = 4


@pytest.fixture
def veth(gateway: g.Gateway) -> Iterator[str]:
    """A fresh interface of the test's namespace."""
    subprocess.run(["ip", "link", "add", "plug", "type", "veth", "peer", "name", "plug-far"], check=True)
    for name in ("plug", "plug-far"):
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
    yield "plug"
    subprocess.run(["ip", "link", "del", "plug"], check=True)


def run_python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("wanted", "interface", "mode"),
    [(Mode.AUTO, "plug", Mode.NATIVE), (Mode.GENERIC, "plug", Mode.GENERIC), (Mode.NATIVE, "plug", Mode.NATIVE)],
)
def test_attach_and_detach(gateway: g.Gateway, veth: str, wanted: Mode, interface: str, mode: Mode) -> None:
    attached = loader.attach(interface, gateway.directory, wanted)
    assert attached.mode is mode
    assert loader.query(interface) == attached
    assert attached.program == libbpf.program_id(gateway.entry)
    assert loader.detach(interface, gateway.directory)
    assert loader.query(interface).program == 0
    assert not loader.detach(interface, gateway.directory)


def test_native_is_refused_where_the_driver_cannot(gateway: g.Gateway) -> None:
    loader.detach("lo", gateway.directory)
    try:
        with pytest.raises(LoaderError, match="use mode generic"):
            loader.attach("lo", gateway.directory, Mode.NATIVE)
    finally:
        assert loader.attach("lo", gateway.directory, Mode.AUTO).mode is Mode.GENERIC


def test_somebody_elses_program_is_not_displaced_unless_told(gateway: g.Gateway, veth: str) -> None:
    other = libbpf.object_get(loader.load_pass_all(gateway.directory))
    libbpf.xdp_attach(socket.if_nametoindex(veth), other, libbpf.XDP_FLAGS_DRV)
    with pytest.raises(LoaderError) as refused:
        loader.attach(veth, gateway.directory)
    assert refused.value.cause == "occupied"
    assert "xdp off" in refused.value.remedy
    assert not loader.detach(veth, gateway.directory)
    assert loader.query(veth).program == libbpf.program_id(other)
    loader.attach(veth, gateway.directory, displace=True)
    assert loader.query(veth).program == libbpf.program_id(gateway.entry)
    os.close(other)


def test_a_program_of_ours_that_lost_its_pins_is_still_ours(gateway: g.Gateway, veth: str) -> None:
    loader.attach(veth, gateway.directory)
    elsewhere = gateway.directory.parent / "elsewhere"
    assert loader.detach(veth, elsewhere)
    assert loader.query(veth).program == 0


def test_interface_that_is_not_there(gateway: g.Gateway) -> None:
    with pytest.raises(LoaderError, match=r"interface nope1 does not exist .*: name one of: .*lo"):
        loader.attach("nope1", gateway.directory)


def test_nothing_loaded(gateway: g.Gateway) -> None:
    with pytest.raises(LoaderError) as refused:
        loader.attach("lo", gateway.directory.parent / "nobody")
    assert refused.value.cause == "not-loaded"


def test_not_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    code = (
        "import os\nos.setgid(65534)\nos.setuid(65534)\n"
        f"from pathlib import Path\nfrom ebpf import loader\nloader.ensure_bpffs(Path({str(tmp_path)!r}))"
    )
    result = run_python(code)
    assert "LoaderError: loading BPF programs needs root: run as root" in result.stderr


def test_missing_bcc_names_the_package(gateway: g.Gateway) -> None:
    code = (
        "import sys\nsys.modules['bcc'] = None\nfrom ebpf import compile\n"
        f"sys.argv = ['compile', '--maps', {str(gateway.directory / 'maps')!r}]\nsys.exit(compile.main())"
    )
    child = run_python(code)
    assert child.returncode == 1
    refusal = loader._compile_refusal("xdp_lb.c", child.stdout, child.stderr)
    assert refusal.cause == "bcc-missing"
    assert "python3-bpfcc" in refusal.remedy


def test_a_different_layout_does_not_compile(gateway: g.Gateway) -> None:
    """One field moved in Python: the compiler names it."""
    code = (
        "import numpy as np\nfrom pathlib import Path\nfrom ebpf import layout, compile\n"
        "layout.STRUCTS['connection'] = np.dtype([('target', 'u2'), ('last_seen_s', 'u4')], align=True)\n"
        f"compile.compile_source('xdp_lb.c', Path({str(gateway.directory / 'maps')!r}))"
    )
    child = run_python(code)
    assert child.returncode != 0
    assert "layout: size of connection" in child.stderr
    assert "layout: offset of connection.target" in child.stderr


def test_maps_of_another_layout_are_refused(gateway: g.Gateway) -> None:
    directory = gateway.directory.parent / "other"
    directory.mkdir()
    fd = libbpf.map_create(libbpf.MAP_ARRAY, "settings", 4, 8, 1)
    libbpf.object_pin(fd, directory / "settings")
    os.close(fd)
    with pytest.raises(maps.LayoutMismatchError, match="detach the packet path"):
        loader.create_maps(directory, g.TEST_SIZES)
    loader.remove(directory)


def test_maps_of_another_version_are_refused(gateway: g.Gateway) -> None:
    gateway.settings(layout=layout.LAYOUT_VERSION + 1)
    with pytest.raises(maps.LayoutMismatchError, match=f"layout {layout.LAYOUT_VERSION + 1}"):
        loader.create_maps(gateway.directory / "maps")
    gateway.settings(layout=layout.LAYOUT_VERSION)


def test_maps_keep_size_and_content_when_opened_again(gateway: g.Gateway) -> None:
    gateway.put_address(VIP4, layout.AddressFlag.VIP)
    again = loader.create_maps(gateway.directory / "maps", {"connections": 5})
    assert again.connections.capacity == g.TEST_SIZES["connections"]
    assert len(again.addresses.dump()[0]) == 1
    again.close()


def test_missing_maps_say_so(gateway: g.Gateway) -> None:
    with pytest.raises(maps.MapsMissingError, match="is the packet path loaded"):
        maps.Maps.open(gateway.directory.parent / "nobody")
    with pytest.raises(ValueError, match="no such map: conections"):
        loader.create_maps(gateway.directory / "maps", {"conections": 1})


class Sender(threading.Thread):
    """Sends one frame again and again until told to stop."""

    def __init__(self, interface: str, frame: bytes) -> None:
        super().__init__()
        self.interface, self.frame = interface, frame
        self.enough = threading.Event()
        self.sent = 0

    def run(self) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((self.interface, 0))
            while not self.enough.is_set():
                for _ in range(BURST):
                    sender.send(self.frame)
                self.sent += BURST
                time.sleep(0.002)


def replace(gateway: g.Gateway, interface: str) -> int:
    """A new version on every interface; returns its id."""
    loader.load_programs(gateway.directory)
    program = loader.attach(interface, gateway.directory, Mode.GENERIC).program
    loader.attach("lo", gateway.directory)
    loader.drop_old_versions(gateway.directory)
    gateway.reopen()
    return program


def test_replacement_under_load_misses_no_packet(gateway: g.Gateway, veth: str) -> None:
    """Every frame sent meanwhile is handled by the old version or the new one, and connections stay."""
    backend = g.Backend(1, "198.51.100.1", mac=g.backend_mac(1))
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.DSR, [backend]))
    subprocess.run(["ip", "link", "set", veth, "address", g.GATEWAY_MAC], check=True)
    programs = {loader.attach(veth, gateway.directory, Mode.GENERIC).program}
    sender = Sender("plug-far", bytes(client(4, "A")))
    sender.start()
    try:
        programs |= {replace(gateway, veth) for _ in range(REPLACEMENTS)}
    finally:
        sender.enough.set()
        sender.join()
    counter = gateway.maps.target_counters.get(1)
    assert counter is not None
    assert int(counter["packets"].sum()) == sender.sent > 10 * BURST
    assert len(programs) == 1 + REPLACEMENTS
    assert len(gateway.maps.connections.dump()[0]) == 1


def test_compiled_code_is_taken_from_a_trusted_cache_only(tmp_path: Path) -> None:
    module = bytecode.Module({"p": ""}, {"p": {}}, {"m": bytecode.OwnMap(2, 4, 8, 1, 0)})
    bytecode.write_cache("one", module, tmp_path)
    assert bytecode.read_cache("one", tmp_path) == module
    assert bytecode.read_cache("two", tmp_path) is None
    (tmp_path / "one.json").write_text('{"programs": 1}')
    assert bytecode.read_cache("one", tmp_path) is None
    bytecode.write_cache("one", module, tmp_path)
    (tmp_path / "one.json").chmod(0o666)
    assert bytecode.read_cache("one", tmp_path) is None
    (tmp_path / "one.json").chmod(0o644)
    tmp_path.chmod(0o777)
    assert bytecode.read_cache("one", tmp_path) is None


def test_the_cache_keeps_the_newest_few(tmp_path: Path) -> None:
    module = bytecode.Module({}, {}, {})
    for number in range(bytecode.CACHED_MAX + 5):
        bytecode.write_cache(f"{number}", module, tmp_path)
        os.utime(tmp_path / f"{number}.json", (number, number))
    bytecode.write_cache("last", module, tmp_path)
    assert len(list(tmp_path.iterdir())) == bytecode.CACHED_MAX
    assert (tmp_path / "last.json").exists()


def test_the_fingerprint_follows_the_source_and_not_the_pins() -> None:
    assert source.fingerprint("xdp_lb.c") == source.fingerprint("xdp_lb.c")
    assert source.fingerprint("xdp_lb.c") != source.fingerprint("pass_all.c")


def test_the_verifiers_words_reach_the_reader() -> None:
    with pytest.raises(libbpf.VerifierError, match=r"(?s)refuses program bad .*R0 !read_ok"):
        libbpf.program_load("bad", b"\x95" + bytes(7))


def test_reasons_are_one_list() -> None:
    assert [reason.number for reason in REASONS] == list(range(len(REASONS)))
    assert len(BY_NAME) == len(REASONS) <= map_specs.SPECS["reason_counters"].max_entries
    assert {reason.kind for reason in REASONS} == {"pass", "sent", "drop", "alarm", "note"}
    used = "".join(path.read_text() for path in (ROOT / "ebpf").glob("*.[ch]") if path.name != "reasons.h")
    assert [reason.name for reason in REASONS[1:] if f"REASON_{reason.name}" not in used] == []


def test_the_documentation_has_the_reasons_and_the_maps() -> None:
    text = (ROOT / "docs/packet-path.md").read_text()
    assert markdown() in text
    assert map_specs.markdown() in text


def test_table_lines_hold_every_slot() -> None:
    slots = np.arange(layout.TABLE_SLOTS_DEFAULT, dtype=np.uint64).astype(np.uint16)
    lines = layout.table_lines(slots)
    assert len(lines) == layout.TABLE_LINES
    assert (lines["slot"].reshape(-1)[: len(slots)] == slots).all()
    with pytest.raises(ValueError, match="at most"):
        layout.table_lines(np.zeros(layout.TABLE_LINES * layout.TABLE_LINE_SLOTS + 1, np.uint16))


@pytest.mark.parametrize(("cpus", "lines"), [(1, 65536), (32, 65536), (33, 32768), (240, 8192), (8192, 256)])
def test_the_cache_of_recent_flows_has_a_bound_for_all_cpus_together(cpus: int, lines: int) -> None:
    assert source.flow_lines(cpus) == lines
    assert source.flow_lines(cpus) * 64 * cpus <= source.FLOW_CACHE_BYTES_MAX
