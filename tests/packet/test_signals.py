# SPDX-License-Identifier: Apache-2.0
"""Signs that a backend is not well, counted per target; and endpoints nobody has, told apart at a glance."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig
from scapy.packet import Packet

from ebpf import layout, loader, test_run
from ebpf.layout import Method, ServiceFlag
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import CLIENT4, CLIENT6, ICMP, IP, PORT, TCP, VIP4, VIP6, Ether, IPv6, Raw, client, link

CLIENTS = {4: CLIENT4, 6: CLIENT6}
VIPS = {4: VIP4, 6: VIP6}
BACKENDS = {4: "198.51.100.{}", 6: "2001:db8:eeee::{}"}
ROUTERS = {4: "198.51.100.99", 6: "2001:db8:eeee::99"}


def serve(gateway: g.Gateway, family: int, method: Method, backends: int = 1) -> None:
    targets = [g.Backend(n, BACKENDS[family].format(n), mac=g.backend_mac(n)) for n in range(1, backends + 1)]
    flags = ServiceFlag.REMEMBER_NEW if method is Method.NAT else 0
    gateway.put_service(g.Service(1, VIPS[family], PORT, g.TCP, method, targets, flags=flags))


def signal(gateway: g.Gateway, name: str, target: int = 1) -> int:
    counter = gateway.maps.target_counters.get(target)
    assert counter is not None
    return int(counter[name].sum())


def reset_of(out: bytes) -> Packet:
    """The backend's refusal of a translated SYN."""
    there = Ether(out)
    layer = IP if IP in there else IPv6
    header = layer(src=there[layer].dst, dst=there[layer].src)
    return link() / header / TCP(sport=there[TCP].dport, dport=there[TCP].sport, flags="RA")


def error_about(quoted: bytes, family: int, destination: str, too_big: bool = False) -> Packet:
    """A router's complaint about an IP packet."""
    if family == 4:
        return link() / IP(src=ROUTERS[4], dst=destination) / ICMP(type=3, code=4 if too_big else 1) / Raw(quoted)
    kind = ICMPv6PacketTooBig(mtu=1400) if too_big else ICMPv6DestUnreach(code=3)
    return link() / IPv6(src=ROUTERS[6], dst=destination) / kind / Raw(quoted)


@pytest.mark.parametrize("family", [4, 6])
def test_a_reset_that_answers_the_first_packet_is_a_refusal(gateway: g.Gateway, family: int) -> None:
    serve(gateway, family, Method.NAT)
    _, out = gateway.run(bytes(client(family, "S")))
    for times in (1, 2):
        gateway.run(bytes(reset_of(out)))
        assert signal(gateway, "refused") == times


def test_a_reset_of_an_established_connection_is_none(gateway: g.Gateway) -> None:
    serve(gateway, 4, Method.NAT)
    _, out = gateway.run(bytes(client(4, "S")))
    gateway.run(bytes(client(4, "A")))
    gateway.run(bytes(reset_of(out)))
    assert signal(gateway, "refused") == 0
    assert signal(gateway, "closed") == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("too_big", "counted"), [(False, 1), (True, 0)])
def test_unreachable_about_a_translated_packet(gateway: g.Gateway, family: int, too_big: bool, counted: int) -> None:
    serve(gateway, family, Method.NAT)
    _, out = gateway.run(bytes(client(family, "S")))
    quoted = bytes(Ether(out).payload)
    gateway.run(bytes(error_about(quoted, family, CLIENTS[family], too_big)))
    assert signal(gateway, "unreachable") == counted


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_unreachable_about_a_tunnels_outer_header(gateway: g.Gateway, inner: int, outer: int) -> None:
    """Told to the gateway itself; blames the backend whose connection is quoted, and passes on to the kernel."""
    backends = [g.Backend(n, BACKENDS[outer].format(n), mac=g.backend_mac(n)) for n in (1, 2)]
    gateway.put_service(g.Service(1, VIPS[inner], PORT, g.TCP, Method.TUNNEL, backends))
    _, out = gateway.run(bytes(client(inner, "A")))
    sent = Ether(out).payload
    chosen = int(sent.dst.rsplit(":" if outer == 6 else ".")[-1])
    verdict, _ = gateway.run(bytes(error_about(bytes(sent), outer, sent.src)))
    assert verdict == Verdict.PASS
    assert signal(gateway, "unreachable", chosen) == 1
    assert signal(gateway, "unreachable", 3 - chosen) == 0


def test_unreachable_that_quotes_another_backend_blames_nobody(gateway: g.Gateway) -> None:
    serve(gateway, 4, Method.TUNNEL)
    _, out = gateway.run(bytes(client(4, "A")))
    sent = Ether(out).payload
    sent.dst = "198.51.100.77"
    gateway.run(bytes(error_about(bytes(sent), 4, sent.src)))
    gateway.run(bytes(error_about(bytes(Ether(out).payload)[:28], 4, sent.src)))
    assert signal(gateway, "unreachable") == 0


def test_asking_leaves_no_signal(gateway: g.Gateway) -> None:
    serve(gateway, 4, Method.TUNNEL)
    _, out = gateway.run(bytes(client(4, "A")))
    sent = Ether(out).payload
    test_run.run(gateway.where, bytes(error_about(bytes(sent), 4, sent.src)))
    assert signal(gateway, "unreachable") == 0


def bits(gateway: g.Gateway) -> int:
    return int(np.unpackbits(gateway.maps.claims.dump()[1].view(np.uint8)).sum())


def test_an_endpoint_is_claimed_for_as_long_as_it_is_there(gateway: g.Gateway) -> None:
    """Service and nat backend have a bit each; the last one to go takes it along."""
    assert bits(gateway) == 0
    serve(gateway, 6, Method.NAT)
    assert bits(gateway) == 2
    gateway.maps.services.delete(layout.endpoint(VIP6, PORT, g.TCP))
    assert bits(gateway) == 1
    gateway.maps.nat_return.clear()
    assert bits(gateway) == 0


def test_maps_of_an_older_version_get_their_bits(gateway: g.Gateway) -> None:
    serve(gateway, 4, Method.DSR)
    keys, words = gateway.maps.claims.dump()
    gateway.maps.claims.update(keys, np.zeros_like(words))
    assert gateway.run(bytes(client(4, "S")))[0] == Verdict.PASS
    loader.create_maps(gateway.directory / "maps").close()
    assert np.array_equal(gateway.maps.claims.dump()[1], words)
    assert gateway.run(bytes(client(4, "S")))[0] == Verdict.TX


@pytest.mark.parametrize("family", [4, 6])
def test_a_service_that_is_gone_is_not_known_any_more(gateway: g.Gateway, family: int) -> None:
    serve(gateway, family, Method.DSR)
    for _ in range(2):
        assert gateway.run(bytes(client(family, "S")))[0] == Verdict.TX
    gateway.maps.services.delete(layout.endpoint(VIPS[family], PORT, g.TCP))
    gateway.settings()
    assert gateway.run(bytes(client(family, "S")))[0] == Verdict.PASS
    assert gateway.reason_count("PASS_NOT_OURS") == 1


@pytest.mark.parametrize("flags", ["S", "A", "F", "R", "SA"])
def test_nobodys_packet_leaves_at_once_whatever_its_flags(gateway: g.Gateway, flags: str) -> None:
    """Another port of a VIP, with every feature in use; full path and short way give the same reason."""
    serve(gateway, 4, Method.NAT)
    gateway.flags(layout.Setting.ANY_PORT, layout.Setting.STEERING)
    packet = client(4, flags)
    packet[TCP].dport = PORT + 1
    assert gateway.run(bytes(packet)) == (Verdict.PASS, bytes(packet))
    assert gateway.reasons() == {"PASS_NOT_OURS": 1}


def test_as_many_flows_as_a_line_has_ways_are_kept(gateway: g.Gateway) -> None:
    """Every flow of a few thousand stays on the short way: the large table is not asked again within a second."""
    serve(gateway, 4, Method.DSR)
    packets = []
    for port in range(2000, 4000):
        packet = client(4, "A")
        packet[TCP].sport = port
        packets.append(bytes(packet))
    for packet in packets:
        gateway.run(packet)
    gateway.maps.connections.clear()
    for packet in packets:
        gateway.run(packet)
    assert len(gateway.maps.connections.dump()[0]) < len(packets) // 2
