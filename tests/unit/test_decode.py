# SPDX-License-Identifier: Apache-2.0
"""The decoder: captures written by scapy from what real transports sent, read back as a timeline."""

import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import wrpcap

from sync.key_file import write_key_file
from sync.ring.lineage import Epoch, EpochId
from sync.ring.messages import CHANNEL_CONTROL, CHANNEL_TOKEN, Beacon, Call, encode, encode_token
from sync.ring.token import Kind, Member, Parcel, Token
from sync.transport import KeyRing, TransportConfig, wire
from tests.unit.sync_transport_network import Network
from tools.decode.__main__ import main
from tools.decode.layers import RingDatagram
from tools.decode.timeline import Timeline

SECRET = bytes(range(32))


def token(members: list[int], body: bytes = b"") -> bytes:
    it = Token()
    it.hop, it.next_position, it.stable, it.view_number, it.standing = 41, 3, 2, 5, 0
    it.busy_until = it.quiet_until = 0
    it.lineage = [Epoch(EpochId(3, 1, 77), 40)]
    it.members = [Member(node, 1000 + node, 40) for node in members]
    it.farewells, it.parcels = [], []
    if body:
        packed = len(body).to_bytes(4, "little") + body
        it.parcels = [Parcel(2, 1, 1, 16, 0, Kind.MESSAGES, 40, packed)]
    return b"".join(encode_token(it, it.hop))


def record(network: Network) -> list[tuple[float, int, int, bytes]]:
    seen: list[tuple[float, int, int, bytes]] = []
    network.heard = lambda source, destination, _, data: seen.append((network.now, source, destination, data))
    return seen


def a_turn(*, encrypt: bool = False) -> list[tuple[float, int, int, bytes]]:
    """Greeting, a beacon, a 911 call, a small token, a large one, a smaller ring after a gap."""
    network = Network(config=TransportConfig("demo", KeyRing([SECRET]), encrypt=encrypt))
    seen = record(network)
    beacon = b"".join(encode(Beacon((0, 2, 1), 5)))
    network[1].transport.send_unreliable(network.now, 2, CHANNEL_CONTROL, beacon)
    network.collect(1)
    network.run(0.01)
    for channel, payload, pause in (
        (CHANNEL_CONTROL, b"".join(encode(Call(8, True, True, EpochId(3, 1, 77), 40, 5, 2))), 0.01),
        (CHANNEL_TOKEN, token([1, 2]), 0.01),
        (CHANNEL_TOKEN, token([1, 2], bytes(150_000)), 0.3),
        (CHANNEL_TOKEN, token([2]), 0.01),
        (16, b"to a peer", 0.01),
    ):
        network.send(1, 2, payload, channel)
        network.run(pause)
    return seen


def write_capture(path: Path, seen: list[tuple[float, int, int, bytes]]) -> None:
    packets = []
    for time, source, destination, data in seen:
        addresses = IP(src=f"10.0.0.{source}", dst=f"10.0.0.{destination}")
        packet = Ether() / addresses / UDP(sport=7400, dport=7400) / Raw(data)
        packet.time = time
        packets.append(packet)
    wrpcap(str(path), packets)


EXPECTED = [
    "1 → 2  hello: asks",
    "2 → 1  hello: answers and asks",
    "1 → 2  hello: answers",
    "1 → 2  BEACON group 1 of 2, standing 0, view 5",
    "1 → 2  911 call 8 (starving): epoch 3.1 hop 40 view 5, group of 2",
    "=== ring: 1 2 ===",
    "1 → 2  TOKEN hop 41 epoch 3.1 view 5 [1 2]",
    "1 → 2  TOKEN hop 41 epoch 3.1 view 5 [1 2] · 1 message of 1 on 16 at 2 (150004 bytes)",
    "--- 0.300 s without a token ---",
    "=== ring: 2 ===",
    "1 → 2  TOKEN hop 41 epoch 3.1 view 5 [2]",
    "1 → 2  channel 16, 9 bytes",
]


def assert_timeline(lines: list[str], names: dict[str, str] | None = None) -> None:
    expected = EXPECTED
    for old, new in (names or {}).items():
        expected = [line.replace(old, new) for line in expected]
    assert len(lines) == len(expected), lines
    for line, wanted in zip(lines, expected, strict=True):
        assert line.startswith(wanted)


def test_timeline_of_a_capture_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ring.pcap"
    write_capture(path, a_turn())
    assert main([str(path)]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    assert float(lines[0][:10]) == 0.0
    assert_timeline([line[12:] for line in lines])
    assert total.startswith("total: ")
    assert "TOKEN 3" in total


def test_names_and_keys_come_from_the_node_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture, keys, config = tmp_path / "ring.pcap", tmp_path / "ring.key", tmp_path / "node.toml"
    write_key_file(keys, [SECRET])
    config.write_text(
        f'cluster = "demo"\n[node]\nname = "west"\nid = 1\n'
        f'[ring]\nkey_file = "{keys}"\n[ring.peers.east]\nid = 2\naddresses = ["10.0.0.2"]\n'
    )
    write_capture(capture, a_turn(encrypt=True))
    assert main([str(capture), "--config", str(config)]) == 0
    lines = [line[12:] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert_timeline(
        lines,
        {"1 → 2 ": "west → east ", "2 → 1 ": "east → west ", "ring: 1 2": "ring: west east"}
        | {"ring: 2": "ring: east"},
    )
    # Without the keys nothing of the ring can be read.
    assert main([str(capture)]) == 0
    out = capsys.readouterr().out
    assert "TOKEN" not in out
    assert "encrypted?" in out


def test_damage_strangers_and_repetitions_are_told() -> None:
    seen = a_turn()
    timeline = Timeline(cluster="demo", keys=KeyRing([SECRET]))
    times, datagrams = [time for time, *_ in seen], [data for *_, data in seen]
    whole = next(data for data in datagrams if data[1] == wire.WHOLE)
    lines = [line for data in (whole, whole, whole[:-1] + b"x") for line in timeline.feed(times[0], data)]
    assert [line.detail for line in lines] == [False, True, True]
    fresh = Timeline(cluster="demo", keys=KeyRing([SECRET]))
    (line,) = fresh.feed(0.0, whole[:-1] + bytes((whole[-1] ^ 1,)))
    assert line.text.endswith("REFUSED: bad_tag")
    assert list(Timeline(cluster="other").feed(0.0, whole)) == []
    assert list(fresh.feed(0.0, b"no datagram of ours")) == []


def test_burst_captured_before_it_is_cut_is_understood() -> None:
    segments = [data for *_, data in a_turn() if data[1] == wire.SEGMENT]
    sequences = sorted({data[26:34] for data in segments})
    timeline = Timeline()
    lines = [
        line
        for sequence in sequences
        for line in timeline.feed(0.0, b"".join(data for data in segments if data[26:34] == sequence))
    ]
    assert lines[-1].text.endswith("(150004 bytes)")


def test_scapy_layer_takes_apart_and_puts_together_every_kind() -> None:
    datagrams = [data for *_, data in a_turn()]
    assert {data[1] for data in datagrams} == {wire.WHOLE, wire.SEGMENT, wire.ACK, wire.HELLO, wire.UNRELIABLE}
    for data in datagrams:
        packet = RingDatagram(data)
        prefix = wire.decode_prefix(data)
        assert (packet.source, packet.destination, packet.sequence) == (
            prefix.source,
            prefix.destination,
            prefix.sequence,
        )
        if prefix.kind in (wire.WHOLE, wire.SEGMENT):
            header = wire.decode_chunk(data, prefix)
            assert (packet.message, packet.length, packet.offset) == (header.message, header.length, header.offset)
            assert packet.channel == header.channel
        if prefix.kind == wire.ACK:
            assert packet.low == wire.decode_ack(data).low
        if prefix.kind == wire.HELLO:
            assert (packet.challenge, packet.echo) == wire.decode_hello(data)
        assert bytes(packet) == data


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["/nonexistent.pcap"], "No such file"),
        (["/etc/hostname"], "decode:"),
        (["--interface", "no-such-interface", "--seconds", "1"], "decode:"),
    ],
)
def test_what_cannot_be_read_is_said(arguments: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert wrong in capsys.readouterr().err


def test_live_capture_on_the_loopback_interface() -> None:
    whole = next(data for *_, data in a_turn() if data[1] == wire.WHOLE)
    program = (
        "import socket, subprocess, sys, time\n"
        "decoder = subprocess.Popen([sys.executable, '-m', 'tools.decode', '--interface', 'lo', '--seconds', '2',"
        " '--port', '17399'], stdout=subprocess.PIPE, text=True)\n"
        "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "end = time.monotonic() + 50\n"
        "while decoder.poll() is None and time.monotonic() < end:\n"
        "    sender.sendto(bytes.fromhex(sys.argv[1]), ('127.0.0.1', 17399))\n"
        "    time.sleep(0.05)\n"
        "print(decoder.communicate(timeout=10)[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, whole.hex()], capture_output=True, text=True, timeout=60, check=True
    )
    assert "911 call 8" in done.stdout
