# SPDX-License-Identifier: Apache-2.0
"""One loaded path for all packet tests; each test starts from an empty configuration."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from ebpf import loader
from tests.packet.frames import CLIENT4, CLIENT6
from tests.packet.gateway import CLIENT_MAC, Gateway, backend_mac, loaded_gateway
from tests.packet.peers import make_cluster


@pytest.fixture(scope="session")
def loaded(namespace: dict[str, int]) -> Iterator[Gateway]:
    """Compiled and verified once, and attached somewhere: the first reference to an XDP program and the last cost the
    kernel milliseconds, which every test run would pay.
    """
    with loaded_gateway() as gateway:
        loader.attach("lo", gateway.directory, loader.Mode.GENERIC)
        yield gateway
        loader.detach("lo", gateway.directory)


@pytest.fixture
def gateway(loaded: Gateway) -> Gateway:
    """Empty."""
    loaded.reset()
    return loaded


@pytest.fixture
def cluster(gateway: Gateway) -> Gateway:
    """One of two gateways, empty but for a steered service."""
    make_cluster(gateway)
    return gateway


CLONE_NEWNET = 0x40000000


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="session")
def namespace() -> Iterator[dict[str, int]]:
    """A network namespace with routes and neighbours on two segments: the thread is in it while the fixture lasts.

    Yields interface indices: ``inside`` (backends), ``outside`` (clients).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        yield _make_segments()
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0
        os.close(home)


def _make_segments() -> dict[str, int]:
    addresses = {
        "inside": ("198.51.100.254/24", "2001:db8:eeee::fe/64"),
        "outside": ("192.0.2.254/24", "2001:db8::fe/64"),
    }
    for family in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
        _run("sysctl", "-qw", f"net.{family}=1")
    for name, given in addresses.items():
        _run("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        for end in (name, f"{name}-far"):
            _run("sysctl", "-qw", f"net.ipv6.conf.{end}.accept_dad=0")
            _run("ip", "link", "set", end, "up")
        for address in given:
            _run("ip", "address", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
    for address in (CLIENT4, CLIENT6):
        _run("ip", "neighbour", "add", address, "lladdr", CLIENT_MAC, "dev", "outside", "nud", "permanent")
    for number in (1, 2, 3):
        for address in (f"198.51.100.{number}", f"2001:db8:eeee::{number}"):
            mac = backend_mac(number)
            _run("ip", "neighbour", "add", address, "lladdr", mac, "dev", "inside", "nud", "permanent")
    return {name: socket.if_nametoindex(name) for name in addresses}
