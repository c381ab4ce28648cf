# SPDX-License-Identifier: Apache-2.0
"""Every kind of check against a real server on loopback, and the scheduler over many of them."""

import asyncio
import random
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from netlab.waiting import until

from lb.configuration.model import HealthCheck, HealthKind
from lb.health.checks import CHECKS, Target, dns_query, judge_dns
from lb.health.probes import Outcome, bounded
from lb.health.scheduler import Finding, Scheduler

SO_RCVBUFFORCE = 33


def target(kind: HealthKind, port: int = 0, backend_id: int = 1, **check: Any) -> Target:
    return Target(backend_id, f"web/b{backend_id}", "127.0.0.1", port, "localhost", HealthCheck(kind=kind, **check))


async def attempt(wanted: Target) -> Outcome:
    return await bounded(CHECKS[wanted.check.kind](wanted), 1000)


@asynccontextmanager
async def http_server(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


def http_answer(status: str, body: bytes = b"hello") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "check", "good", "words"),
    [
        (http_answer("200 OK"), {}, True, "status 200"),
        (http_answer("302 Found"), {}, True, "status 302"),
        (http_answer("503 Service Unavailable"), {}, False, "status 503"),
        (http_answer("503 Service Unavailable"), {"status": (503,)}, True, "status 503"),
        (http_answer("200 OK", b"x" * 5000 + b"ready"), {"body": "ready"}, True, "status 200"),
        (http_answer("200 OK", b"starting"), {"body": "ready"}, False, "lacks 'ready'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", {}, False, "not HTTP"),
        (b"", {}, False, "not HTTP"),
    ],
)
async def test_http(answer: bytes, check: dict[str, Any], good: bool, words: str) -> None:
    async with http_server(answer) as port:
        outcome = await attempt(target("http", port, **check))
    assert outcome.good is good
    assert words in outcome.detail


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=backend"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


async def test_https_verifies_the_name_only_where_one_is_given(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with http_server(http_answer("200 OK"), context) as port:
        assert (await attempt(target("https", port))).good
        refused = await attempt(target("https", port, tls_name="backend"))
    assert not refused.good
    assert "certificate verify failed" in refused.detail


async def test_tcp_accepts_and_refuses() -> None:
    async with http_server(b"") as port:
        assert (await attempt(target("tcp", port))).good
    refused = await attempt(target("tcp", port))
    assert not refused.good
    assert "refused" in refused.detail.lower() or "connect call failed" in refused.detail.lower()


class Answering(asyncio.DatagramProtocol):
    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(self.answer or data, addr)


@asynccontextmanager
async def udp_server(answer: bytes) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Answering(answer), local_addr=("127.0.0.1", 0))
    # Room for all checks that may be under way at once: a lost datagram would be a failed check.
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def test_udp_answer_and_its_text() -> None:
    async with udp_server(b"") as port:
        assert (await attempt(target("udp", port, send="ping", body="ping"))).good
        assert not (await attempt(target("udp", port, send="ping", body="pong"))).good
    assert not (await attempt(target("udp", port, send="ping"))).good


@pytest.mark.parametrize(("code", "good"), [(0, True), (3, True), (2, False), (5, False)])
async def test_dns_response_codes(code: int, good: bool) -> None:
    answer = struct.pack("!6H", 0x4C42, 0x8000 | code, 1, 0, 0, 0)
    async with udp_server(answer) as port:
        assert (await attempt(target("dns", port, send="example.org"))).good is good


def test_dns_wire_form() -> None:
    assert dns_query("example.org").endswith(b"\x07example\x03org\x00\x00\x01\x00\x01")
    assert not judge_dns(b"short").good
    assert not judge_dns(b"\0" * 12).good
    with pytest.raises(ValueError, match="too long"):
        dns_query(".".join(["a" * 60] * 5))


async def test_icmp_and_script() -> None:
    assert (await attempt(target("icmp"))).good
    assert (await attempt(target("script", 80, command=("/usr/bin/test", "127.0.0.1", "=")))).good is False
    assert (
        await attempt(target("script", 80, command=("/bin/echo", "fine")))
    ).detail == "exit code 0: fine 127.0.0.1 80"


async def test_scheduler_judges_with_rise_and_fall_and_forgets_removed_targets() -> None:
    found: list[Finding] = []
    scheduler = Scheduler(found.append, rng=random.Random(1))
    quick = {"interval_ms": 50, "timeout_ms": 500, "rise": 2, "fall": 2}
    async with udp_server(b"yes") as port:
        wanted = target("udp", port, send="?", **quick)
        scheduler.set_targets([wanted])
        await until(lambda: [f.alive for f in found] == [True])
    await until(lambda: [f.alive for f in found] == [True, False])
    scheduler.set_targets([replace(wanted, name="renamed")])
    assert scheduler.findings() == []
    scheduler.set_targets([])
    await scheduler.stop()


async def test_two_thousand_checks_are_all_made() -> None:
    found: dict[int, Finding] = {}
    scheduler = Scheduler(lambda f: found.__setitem__(f.backend_id, f), rng=random.Random(2))
    async with udp_server(b"yes") as port:
        check = {"send": "?", "interval_ms": 4000, "timeout_ms": 30_000}
        scheduler.set_targets(target("udp", port, backend_id=i, **check) for i in range(1, 2001))
        await until(lambda: len(found) == 2000, 60)
    assert all(finding.alive for finding in found.values())
    assert len(scheduler.findings()) == 2000
    await scheduler.stop()


class AtOnce(random.Random):
    """Draws nothing but zero: the first try is not put off."""

    def random(self) -> float:
        return 0.0


async def test_a_suspicion_counts_as_a_failed_try_and_brings_the_next_at_once() -> None:
    found: list[Finding] = []
    scheduler = Scheduler(found.append, rng=AtOnce())
    async with http_server(http_answer("200 OK")) as port:
        slow = target("http", port, interval_ms=600_000, fall=2)
        scheduler.suspect(1, "not checked yet: nothing happens")
        scheduler.set_targets([slow])
        await until(lambda: bool(found))
        tries = scheduler.tries
        scheduler.suspect(1, "many refused")
        assert scheduler.findings()[0].alive, "one sign condemns nobody"
        await until(lambda: scheduler.tries > tries, what="the next try, long before its time")
        await until(lambda: scheduler.findings()[0].detail == "status 200")
    scheduler.suspect(1, "many refused")
    await until(lambda: len(found) > 1)
    assert (found[-1].alive, scheduler.suspicions) == (False, 2)
    await scheduler.stop()
