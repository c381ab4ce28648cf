# SPDX-License-Identifier: Apache-2.0
"""Looking at the path from outside: lb_where leaves no trace, the mirror shows what left and ends by itself."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ebpf import layout, test_run
from ebpf.layout import Method, ServiceFlag, State
from ebpf.reasons import REASONS
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import CLIENT4, CLIENT_PORT, PORT, VIP4, Ether, client


def serve(gateway: g.Gateway, method: Method, flags: int = 0) -> None:
    targets = [g.Backend(n, f"198.51.100.{n}", mac=g.backend_mac(n)) for n in (1, 2, 3)]
    # Marked slots: connections may be where the table does not lead.
    slots = [n | layout.SLOT_MOVED for n in (1, 2, 3)]
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, method, targets, flags=flags, slots=slots))


def content(gateway: g.Gateway) -> list[bytes]:
    """Everything a packet may leave behind."""
    names = ["connections", "half_open", "fragments", "persistence", "reason_counters", "target_counters"]
    names += ["service_counters", "target_load"]
    return [getattr(gateway.maps, name).dump()[1].tobytes() for name in names]


@pytest.mark.parametrize("method", [Method.DSR, Method.TUNNEL, Method.NAT])
@pytest.mark.parametrize("flags", ["S", "A", "FA", "R"])
@pytest.mark.parametrize("known", [False, True])
def test_where_tells_and_leaves_no_trace(gateway: g.Gateway, method: Method, flags: str, known: bool) -> None:
    serve(gateway, method, ServiceFlag.REMEMBER_NEW if method is Method.NAT else 0)
    key = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.TCP)
    if known:
        gateway.put_connection(key, 1, 2)
    before = content(gateway)
    packet = bytes(client(4, flags))
    asked = test_run.run(gateway.where, packet)
    explain = gateway.maps.explain.get(0)
    assert content(gateway) == before
    assert len(gateway.drain()) == 0
    assert explain is not None
    assert REASONS[int(explain["reason"])].name == "SENT_FORWARDED"
    assert (int(explain["verdict"]), int(explain["service"])) == (asked.verdict, 1)
    if known:
        assert (int(explain["target"]), int(explain["owner"])) == (2, g.NODE)
        assert int(explain["state"]) != 0
    else:
        assert int(explain["state"]) == 0
    real = gateway.run(packet)
    assert real == (asked.verdict, asked.packet)


def test_where_says_what_is_not_ours(gateway: g.Gateway) -> None:
    packet = bytes(client(4, "S"))
    assert test_run.run(gateway.where, packet).packet == packet
    explain = gateway.maps.explain.get(0)
    assert explain is not None
    assert REASONS[int(explain["reason"])].name == "PASS_NOT_OURS"


def capture(gateway: g.Gateway, seconds: float, service: int = 0) -> None:
    control = np.zeros((), layout.CAPTURE_CONTROL)
    control["until_ns"], control["service"] = time.monotonic_ns() + int(seconds * 1e9), service
    gateway.maps.capture_control.set(0, control)


def test_the_mirror_shows_each_packet_as_it_left(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL)
    gateway.run(bytes(client(4, "A")))
    gateway.run(bytes(client(4, "A")))
    capture(gateway, 60)
    sent = [gateway.run(bytes(client(4, "PA", b"x" * size))) for size in (0, 1, 1000)]
    other = bytes(client(6, "S"))
    sent.append(gateway.run(other))
    seen = gateway.drain("captures")
    assert len(seen) == 4
    for one, (verdict, frame) in zip(seen, sent, strict=True):
        kept = min(len(frame) & ~1, layout.CAPTURE_BYTES)
        assert (int(one["length"]), int(one["kept"]), int(one["verdict"])) == (len(frame), kept, verdict)
        assert one["bytes"][:kept].tobytes() == frame[:kept]
    assert [REASONS[int(one["reason"])].name for one in seen] == ["SENT_FORWARDED"] * 3 + ["PASS_NOT_OURS"]
    assert [int(one["service"]) for one in seen] == [1, 1, 1, 0]


def test_the_mirror_may_be_told_one_service(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL)
    capture(gateway, 60, service=2)
    gateway.run(bytes(client(4, "A")))
    assert len(gateway.drain("captures")) == 0


def test_the_mirror_ends_by_itself(gateway: g.Gateway) -> None:
    serve(gateway, Method.TUNNEL)
    capture(gateway, -0.001)
    gateway.run(bytes(client(4, "A")))
    control = gateway.maps.capture_control.get(0)
    assert control is not None
    assert int(control["until_ns"]) == 0
    assert len(gateway.drain("captures")) == 0


def test_a_full_mirror_sheds_and_counts(gateway: g.Gateway) -> None:
    serve(gateway, Method.DSR)
    capture(gateway, 60)
    room = g.TEST_SIZES["captures"] // (layout.CAPTURE.itemsize + 8)
    for _ in range(room + 5):
        verdict, out = gateway.run(bytes(client(4, "A")))
        assert verdict == Verdict.TX
        assert Ether(out).src == g.GATEWAY_MAC
    assert gateway.reason_count("NOTE_CAPTURE_SHED") in (5, 6)
    assert len(gateway.drain("captures")) + gateway.reason_count("NOTE_CAPTURE_SHED") == room + 5


def test_where_knows_states(gateway: g.Gateway) -> None:
    serve(gateway, Method.DSR)
    key = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.TCP)
    gateway.put_connection(key, 1, 3, state=State.CLOSING)
    test_run.run(gateway.where, bytes(client(4, "A")))
    explain = gateway.maps.explain.get(0)
    assert explain is not None
    assert (int(explain["target"]), int(explain["state"])) == (3, State.CLOSING)
