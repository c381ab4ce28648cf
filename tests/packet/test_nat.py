# SPDX-License-Identifier: Apache-2.0
"""`nat`: both directions, ports, time to live, checksums, ICMP errors with what they quote."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded
from scapy.packet import Packet

from ebpf import layout
from ebpf.layout import Method, ServiceFlag, State
from ebpf.test_run import Verdict
from tests.packet import gateway as g
from tests.packet.frames import (
    CLIENT4,
    CLIENT6,
    CLIENT_PORT,
    ICMP,
    IP,
    PORT,
    TCP,
    UDP,
    VIP4,
    VIP6,
    Ether,
    IPv6,
    Raw,
    assert_valid,
    client,
    link,
    network,
)

CLIENTS = {4: CLIENT4, 6: CLIENT6}
VIPS = {4: VIP4, 6: VIP6}
BACKENDS = {4: "198.51.100.{}", 6: "2001:db8:eeee::{}"}
BACKEND_PORT = 8080
Interfaces = dict[str, int]


def serve(gateway: g.Gateway, family: int, backends: int = 2, port: int = BACKEND_PORT, mac: bool = True) -> None:
    for service, protocol, first in ((1, g.TCP, 1), (2, g.UDP, 11)):
        targets = [
            g.Backend(first + n, BACKENDS[family].format(n + 1), port, g.backend_mac(n + 1) if mac else "", ifindex=1)
            for n in range(backends)
        ]
        flags = ServiceFlag.REMEMBER_NEW
        gateway.put_service(g.Service(service, VIPS[family], PORT, protocol, Method.NAT, targets, flags=flags))


def hops(packet: Packet) -> int:
    return int(packet[IP].ttl if IP in packet else packet[IPv6].hlim)


def answer_to(out: bytes, flags: str = "SA", payload: bytes = b"") -> Packet:
    """What the backend sends back for a translated packet."""
    parsed = Ether(out)
    network_layer: Packet = IP if IP in parsed else IPv6
    header = network_layer(src=parsed[network_layer].dst, dst=parsed[network_layer].src)
    transport: Packet = TCP if TCP in parsed else UDP
    back = transport(sport=parsed[transport].dport, dport=parsed[transport].sport)
    if transport is TCP:
        back.flags = flags
    return Ether(src=parsed.dst, dst=g.GATEWAY_MAC) / header / back / Raw(payload)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_both_directions(gateway: g.Gateway, namespace: Interfaces, family: int, transport: Packet) -> None:
    """Address, port and time to live change on the way there; the way back shows the VIP again."""
    serve(gateway, family)
    packet = link() / network(family) / transport(sport=CLIENT_PORT, dport=PORT) / Raw(b"odd")
    for flags in ("S", "A", "PA"):
        if transport is TCP:
            packet[TCP].flags = flags
        verdict, out = gateway.run(bytes(packet))
        assert verdict in (Verdict.TX, Verdict.REDIRECT)
        assert_valid(out)
        there = Ether(out)
        assert there[transport].dport == BACKEND_PORT
        assert there[transport].sport == CLIENT_PORT
        assert hops(there) == 63
        verdict, back = gateway.run(bytes(answer_to(out, payload=b"answer")), ifindex=namespace["inside"])
        assert verdict == Verdict.REDIRECT
        assert_valid(back)
        home = Ether(back)
        layer = IP if family == 4 else IPv6
        assert (home[layer].src, home[layer].dst) == (VIPS[family], CLIENTS[family])
        assert (home[transport].sport, home[transport].dport) == (PORT, CLIENT_PORT)
        assert (home.dst, hops(home)) == (g.CLIENT_MAC, 63)
    assert len(gateway.maps.connections.dump()[0]) == 1


def test_udp_without_a_checksum_stays_without(gateway: g.Gateway) -> None:
    serve(gateway, 4)
    packet = link() / network(4) / UDP(sport=1, dport=PORT, chksum=0) / Raw(b"x")
    _, out = gateway.run(bytes(packet))
    assert Ether(out)[UDP].chksum == 0


def test_port_kept_when_the_service_has_any(gateway: g.Gateway, namespace: Interfaces) -> None:
    backend = g.Backend(1, "198.51.100.1", mac=g.backend_mac(1))
    gateway.put_service(g.Service(1, VIP4, 0, g.TCP, Method.NAT, [backend], flags=ServiceFlag.REMEMBER_NEW))
    _, out = gateway.run(bytes(link() / network(4) / TCP(sport=9, dport=2222, flags="S")))
    assert Ether(out)[TCP].dport == 2222
    verdict, back = gateway.run(bytes(answer_to(out)), ifindex=namespace["inside"])
    assert verdict == Verdict.REDIRECT
    assert (Ether(back)[IP].src, Ether(back)[TCP].sport) == (VIP4, 2222)


def test_traffic_of_a_backend_that_answers_nothing_is_left_alone(gateway: g.Gateway, namespace: Interfaces) -> None:
    serve(gateway, 4)
    direct = Ether(src=g.backend_mac(1), dst=g.GATEWAY_MAC) / IP(src="198.51.100.1", dst=CLIENT4)
    packet = direct / TCP(sport=BACKEND_PORT, dport=5, flags="A")
    assert gateway.run(bytes(packet), ifindex=namespace["inside"]) == (Verdict.PASS, bytes(packet))
    assert gateway.reasons() == {"PASS_NOT_OURS": 1}


def test_two_services_may_share_a_backend(gateway: g.Gateway, namespace: Interfaces) -> None:
    """The service that has the connection is the one the answer belongs to."""
    first = g.Backend(1, "198.51.100.1", BACKEND_PORT, g.backend_mac(1), nat_next=2)
    second = g.Backend(2, "198.51.100.1", BACKEND_PORT, g.backend_mac(1))
    flags = ServiceFlag.REMEMBER_NEW
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.NAT, [first], flags=flags))
    gateway.put_service(g.Service(2, VIP4, PORT + 1, g.TCP, Method.NAT, [second], flags=flags))
    for port in (PORT, PORT + 1):
        _, out = gateway.run(bytes(link() / network(4) / TCP(sport=port + 1000, dport=port, flags="S")))
        _, back = gateway.run(bytes(answer_to(out)), ifindex=namespace["inside"])
        assert Ether(back)[TCP].sport == port


def test_state_follows_both_directions(gateway: g.Gateway, namespace: Interfaces) -> None:
    serve(gateway, 4, backends=1)
    key = layout.flow_key(CLIENT4, CLIENT_PORT, VIP4, PORT, g.TCP)

    def state() -> State:
        entry = gateway.connection(key)
        assert entry is not None
        return State(int(entry["state"]))

    _, out = gateway.run(bytes(client(4, "S")))
    assert gateway.connection(key) is None
    gateway.run(bytes(answer_to(out, "SA")), ifindex=namespace["inside"])
    assert gateway.connection(key) is None
    gateway.run(bytes(client(4, "A")))
    assert state() is State.ESTABLISHED
    gateway.run(bytes(answer_to(out, "FA")), ifindex=namespace["inside"])
    assert state() is State.FIN_SERVER
    gateway.run(bytes(client(4, "FA")))
    assert state() is State.CLOSING
    kinds = [int(record["kind"]) for record in gateway.drain()]
    assert kinds == [layout.RecordKind.OPENED, layout.RecordKind.CLOSED, layout.RecordKind.CLOSED]


@pytest.mark.parametrize("family", [4, 6])
def test_time_to_live_that_runs_out_is_told(gateway: g.Gateway, family: int) -> None:
    serve(gateway, family)
    field = {"ttl": 1} if family == 4 else {"hlim": 1}
    packet = client(family, "S", b"x" * 60, **field)
    verdict, out = gateway.run(bytes(packet))
    assert verdict == Verdict.TX
    assert_valid(out)
    answer = Ether(out)
    if family == 4:
        assert (answer[ICMP].type, answer[ICMP].code, answer[IP].dst) == (11, 0, CLIENT4)
    else:
        assert ICMPv6TimeExceeded in answer
        assert answer[IPv6].dst == CLIENT6
    assert gateway.reasons() == {"SENT_TIME_EXCEEDED": 1}


def test_unresolved_next_hop_goes_translated_to_the_kernel(gateway: g.Gateway, namespace: Interfaces) -> None:
    """Its time to live whole: the kernel takes one off when it sends."""
    backend = g.Backend(1, "198.51.100.77", BACKEND_PORT)
    gateway.put_service(g.Service(1, VIP4, PORT, g.TCP, Method.NAT, [backend], flags=ServiceFlag.REMEMBER_NEW))
    verdict, out = gateway.run(bytes(client(4, "S")), ifindex=namespace["outside"])
    assert verdict == Verdict.PASS
    assert_valid(out)
    assert (Ether(out)[IP].dst, Ether(out)[IP].ttl) == ("198.51.100.77", 64)
    assert gateway.reasons() == {"PASS_NEIGHBOUR_UNKNOWN": 1}


def test_routing_table_finds_a_backend_user_space_has_not(gateway: g.Gateway, namespace: Interfaces) -> None:
    serve(gateway, 4, backends=1, mac=False)
    verdict, out = gateway.run(bytes(client(4, "S")), ifindex=namespace["outside"])
    assert verdict == Verdict.REDIRECT
    assert_valid(out)
    assert (Ether(out).dst, Ether(out)[IP].ttl) == (g.backend_mac(1), 63)


def swapped(packet: Packet) -> Packet:
    """As the peer saw it come: what the VIP sent to the client."""
    answer = packet.payload.copy()
    answer.src, answer.dst = answer.dst, answer.src
    transport = answer.payload
    transport.sport, transport.dport = transport.dport, transport.sport
    for field in ("chksum",):
        if hasattr(answer, field):
            del answer.chksum
        del transport.chksum
    return answer


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("quote", [1000, 28])
def test_errors_from_the_clients_side_reach_the_backend(gateway: g.Gateway, family: int, quote: int) -> None:
    """Outer destination and the quoted source become the backend's; whatever is quoted stays consistent."""
    serve(gateway, family, backends=1)
    packet = client(family, "S", b"payload")
    gateway.run(bytes(packet))
    gateway.run(bytes(client(family, "A")))
    inner = bytes(swapped(packet))[: quote if family == 4 else quote + 20]
    if family == 4:
        error = link() / IP(src="192.0.2.1", dst=VIP4) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(inner)
    else:
        error = link() / IPv6(src="2001:db8::1", dst=VIP6) / ICMPv6PacketTooBig(mtu=1400) / Raw(inner)
    verdict, out = gateway.run(bytes(error))
    assert verdict in (Verdict.TX, Verdict.REDIRECT)
    parsed = Ether(out)
    layer = IP if family == 4 else IPv6
    assert parsed[layer].dst == BACKENDS[family].format(1)
    assert_valid(out)
    translated = swapped(packet)
    translated.src, translated.payload.sport = BACKENDS[family].format(1), BACKEND_PORT
    assert bytes(parsed).endswith(bytes(translated)[: len(inner)])
    assert gateway.reason_count("SENT_ICMP_ERROR") == 1


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("from_backend", [True, False])
def test_errors_about_translated_packets_reach_the_client(
    gateway: g.Gateway, namespace: Interfaces, family: int, from_backend: bool
) -> None:
    """The backend's own errors come from the VIP; a router's keep the router's address."""
    serve(gateway, family, backends=1)
    gateway.run(bytes(client(family, "S")))
    _, out = gateway.run(bytes(client(family, "A", b"data")))
    inner = bytes(Ether(out).payload)
    router = "198.51.100.99" if family == 4 else "2001:db8:eeee::99"
    sender = BACKENDS[family].format(1) if from_backend else router
    if family == 4:
        error = link() / IP(src=sender, dst=CLIENT4) / ICMP(type=3, code=1) / Raw(inner)
    else:
        error = link() / IPv6(src=sender, dst=CLIENT6) / ICMPv6DestUnreach(code=3) / Raw(inner)
    verdict, back = gateway.run(bytes(error), ifindex=namespace["inside"])
    assert verdict == Verdict.REDIRECT
    assert_valid(back)
    parsed = Ether(back)
    layer = IP if family == 4 else IPv6
    assert parsed[layer].src == (VIPS[family] if from_backend else router)
    wanted = client(family, "A", b"data", **({"ttl": 63} if family == 4 else {"hlim": 63}))
    assert bytes(parsed).endswith(bytes(wanted.payload))


def test_an_error_that_quotes_no_connection_is_not_guessed(gateway: g.Gateway) -> None:
    serve(gateway, 4)
    error = link() / IP(src="192.0.2.1", dst=VIP4) / ICMP(type=3, code=1) / Raw(bytes(swapped(client(4, "A"))))
    assert gateway.run(bytes(error))[0] == Verdict.DROP
    assert gateway.reasons() == {"DROP_ICMP_UNMATCHED": 1}


def test_big_packets_of_the_backend_are_told_the_outside_size(gateway: g.Gateway, namespace: Interfaces) -> None:
    serve(gateway, 4, backends=1)
    _, out = gateway.run(bytes(client(4, "S")))
    big = answer_to(out, "A", b"z" * 1500)
    big[IP].flags = "DF"
    verdict, told = gateway.run(bytes(big), ifindex=namespace["inside"])
    assert verdict == Verdict.TX
    assert_valid(told)
    assert (Ether(told)[ICMP].type, Ether(told)[ICMP].code, Ether(told)[ICMP].nexthopmtu) == (3, 4, 1500)
    assert Ether(told)[IP].dst == "198.51.100.1"


def test_a_half_open_flood_evicts_no_connection(gateway: g.Gateway) -> None:
    """First packets are kept apart: ten times as many as fit there leave every connection where it is."""
    serve(gateway, 4)
    gateway.run(bytes(client(4, "S")))
    gateway.run(bytes(client(4, "A")))
    frame = bytearray(bytes(client(4, "S")))
    for number in range(10 * g.TEST_SIZES["half_open"]):
        frame[26:30] = (0x0A000000 + number).to_bytes(4, "big")
        gateway.run(bytes(frame))
    assert len(gateway.maps.connections.dump()[0]) == 1
    assert len(gateway.maps.half_open.dump()[0]) <= g.TEST_SIZES["half_open"]
