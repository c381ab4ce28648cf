# SPDX-License-Identifier: Apache-2.0
"""UDP links on the loopback interface: real sockets, the kernel's own segmentation and error reports."""

import errno
import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import SystemRandom

import pytest
from netlab.ports import free_ports
from netlab.waiting import PATIENCE_S, eventually

from sync.sockets import READ_MAX, AddressError, Sockets, UdpLink, datagram_max, parse_address
from sync.transport import Arrived, Delivered, KeyRing, Path, PeerConfig, Transmit, Transport, TransportConfig

Received = list[tuple[int, object, bytes, int]]


@contextmanager
def two_links(host: str) -> Iterator[tuple[UdpLink, UdpLink]]:
    """Two links on free ports of this host address."""
    ports = free_ports(2, host=host)
    text = f"[{host}]" if ":" in host else host
    links = [UdpLink(index, parse_address(f"{text}:{port}")) for index, port in enumerate(ports)]
    try:
        yield links[0], links[1]
    finally:
        for link in links:
            link.close()


def read(link: UdpLink, received: Received) -> None:
    """Read what comes within a second at most."""
    assert select.select([link], [], [], 1.0)[0]
    link.read(lambda index, source, data, size: received.append((index, source, bytes(data), size)))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_datagram_arrives_with_its_source_and_link(host: str) -> None:
    with two_links(host) as (ours, theirs):
        received: Received = []
        ours.send(theirs.local, b"hello", 0)
        read(theirs, received)
        assert received == [(1, ours.local, b"hello", 0)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("segmentation", [True, False])
def test_burst_arrives_as_its_segments(host: str, segmentation: bool) -> None:
    with two_links(host) as (ours, theirs):
        assert ours.segmentation, "this kernel has UDP_SEGMENT since 4.18"
        ours.segmentation = segmentation
        received: Received = []
        burst = os.urandom(1472 * 20 + 100)
        ours.send(theirs.local, burst, 1472)
        while sum(len(data) for _, _, data, _ in received) < len(burst):
            read(theirs, received)
        assert b"".join(data for _, _, data, _ in received) == burst
        if segmentation:
            assert [(len(data), size) for _, _, data, size in received] == [(len(burst), 1472)]
        else:
            assert all(size in (0, 1472) for _, _, _, size in received)


def test_one_read_takes_a_bounded_number() -> None:
    with two_links("127.0.0.1") as (ours, theirs):
        for number in range(READ_MAX + 5):
            ours.send(theirs.local, bytes(number + 1), 0)
        received: Received = []
        assert theirs.read(lambda *arguments: received.append(arguments)) == READ_MAX
        assert theirs.read(lambda *arguments: received.append(arguments)) == 5
        assert theirs.read(lambda *arguments: received.append(arguments)) == 0


def test_icmp_error_names_the_address_where_nobody_listens() -> None:
    with two_links("127.0.0.1") as (ours, theirs):
        address = theirs.local
        theirs.close()
        ours.send(address, b"anybody there?", 0)
        refused: list[object] = []

        def told() -> bool:
            ours.read(lambda *_: None)
            if ours.icmp_pending:
                refused.extend(ours.refused())
            return bool(refused)

        eventually(told)
        assert refused == [address]
        assert ours.counts["icmp_errors"] == 1
        assert not ours.icmp_pending


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_dead_peer_costs_a_living_one_no_datagram(host: str) -> None:
    with two_links(host) as (ours, theirs), two_links(host) as (dead, _):
        dead.close()
        received = bytearray()
        for number in range(5):
            ours.send(dead.local, b"anybody there?", 0)
            ours.send(theirs.local, bytes([number]), 0)
        ours.send(dead.local, b"anybody there?", 0)
        ours.send(theirs.local, bytes(2000), 1000)

        def all_here() -> bool:
            theirs.read(lambda _link, _source, data, _size: received.extend(data))
            return len(received) >= 2005

        eventually(all_here)
        assert received == bytes(range(5)) + bytes(2000)
        assert ours.counts["send_econnrefused"] == 0
        assert ours.icmp_pending


def test_what_the_kernel_does_not_take_is_counted_and_does_not_raise() -> None:
    with two_links("127.0.0.1") as (ours, theirs):
        ours.send(theirs.local, bytes(65508), 0)
        assert ours.counts["send_emsgsize"] == 1
        ours.send(parse_address("255.255.255.255:9"), b"x", 0)
        assert ours.counts["send_eacces"] == 1


def test_buffers_hold_at_least_a_window() -> None:
    with two_links("127.0.0.1") as (ours, _):
        assert min(ours.buffer_bytes) >= TransportConfig("x").window_bytes


def test_address_in_use_and_foreign_address_say_what_to_do() -> None:
    with two_links("127.0.0.1") as (ours, _), pytest.raises(OSError, match="port free") as taken:
        UdpLink(0, ours.local)
    assert taken.value.errno == errno.EADDRINUSE
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1 port 7400"):
        Sockets([parse_address("127.0.0.1:17999"), parse_address("192.0.2.1")])
    UdpLink(0, parse_address("127.0.0.1:17999")).close()  # the first one of the two was closed again


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:7401", ("10.0.0.1", 7401)),
        ("10.0.0.1", ("10.0.0.1", 7400)),
        ("[2001:db8::1]:7401", ("2001:db8::1", 7401, 0, 0)),
        ("[2001:db8::1]", ("2001:db8::1", 7400, 0, 0)),
        ("2001:db8::1", ("2001:db8::1", 7400, 0, 0)),
        ("[fe80::1%lo]:9", ("fe80::1", 9, 0, 1)),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "gw1", "gw1:7400", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:x", "[::1]x", "::1]:5"]
)
def test_addresses_that_are_not_understood(text: str) -> None:
    with pytest.raises(AddressError, match=r"write 10\.0\.0\.1:7400"):
        parse_address(text)


def test_datagram_size_follows_the_route_and_has_a_floor() -> None:
    assert datagram_max(parse_address("127.0.0.1"), parse_address("127.0.0.1")) == 65507
    assert datagram_max(parse_address("192.0.2.1"), parse_address("192.0.2.2")) == 1472
    assert datagram_max(parse_address("[2001:db8::1]"), parse_address("[2001:db8::2]")) == 1452


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("path_max", [1472, 65507])
def test_transport_over_real_sockets(host: str, path_max: int) -> None:
    with two_links(host) as links:
        config = TransportConfig("test", KeyRing([bytes(32)]), failure_after_s=2.0)
        transports = [
            Transport(
                config,
                local=index + 1,
                incarnation=SystemRandom().getrandbits(63) | 1,
                rng=SystemRandom(),
                peers={2 - index: PeerConfig((Path(index, links[1 - index].local, path_max),))},
            )
            for index in range(2)
        ]
        sent = [os.urandom(size) for size in (0, 100, 1400, 65536, 1_000_000)]
        for payload in sent:
            transports[0].send(time.monotonic(), 2, 1, payload)
        arrived: list[bytes] = []
        delivered = 0
        end = time.monotonic() + PATIENCE_S
        while (len(arrived), delivered) != (len(sent), len(sent)) and time.monotonic() < end:
            for transport, link in zip(transports, links, strict=True):
                now = time.monotonic()
                link.read(partial(transport.receive, now))
                transport.tick(now)
                for effect in transport.take():
                    if type(effect) is Transmit:
                        link.send(effect.address, effect.data, effect.segment_size)  # type: ignore[arg-type]
                    elif type(effect) is Arrived:
                        arrived.append(bytes(effect.payload))
                    else:
                        assert type(effect) is Delivered
                        delivered += 1
        assert sorted(arrived) == sorted(sent)
        assert delivered == len(sent)
        assert not any(name.startswith("send_") for link in links for name in link.counts)
