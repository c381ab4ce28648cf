# SPDX-License-Identifier: Apache-2.0
"""One try of one backend, by kind of check."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import h11

from lb.configuration.model import HealthCheck
from lb.health.probes import Outcome, connected, marked, ping, reset_on_close, script, tcp

BODY_BYTES_MAX = 64 << 10
DATAGRAM_BYTES_MAX = 4096
_DNS_ID = 0x4C42
_DNS_TYPE_A, _DNS_CLASS_IN = 1, 1
_DNS_RESPONSE, _DNS_RCODE = 0x8000, 0x000F


@dataclass(frozen=True, slots=True)
class Target:
    """A backend to try: `address` and `port` are those the check goes to, `host` the service's own address.

    With a `mark` the check's packets carry it, and the kernel brings them to the VIP on that backend instead
    (ebpf/probe_path.c); the sockets are told nothing of that.
    """

    backend_id: int
    name: str
    address: str
    port: int
    host: str
    check: HealthCheck
    mark: int = 0


async def check_tcp(target: Target) -> Outcome:
    return await tcp(target.address, target.port, target.mark)


async def check_icmp(target: Target) -> Outcome:
    return await ping(target.address, target.mark)


async def check_script(target: Target) -> Outcome:
    return await script((*target.check.command, target.address, str(target.port)))


async def check_http(target: Target) -> Outcome:
    """A GET is answered with an expected status and, where asked for, a body that contains the text."""
    tls = tls_context(target.check) if target.check.kind == "https" else None
    name = (target.check.tls_name or target.check.host or target.host) if tls else None
    sock = await connected(target.address, target.port, target.mark)
    reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=name)
    try:
        status, body = await _get(reader, writer, target)
    except h11.ProtocolError as error:
        raise ValueError(f"not HTTP: {error}") from None
    finally:
        reset_on_close(writer)
    return judge_http(target.check, status, body)


def judge_http(check: HealthCheck, status: int, body: bytes) -> Outcome:
    """What an answer says about the backend."""
    if status not in check.status if check.status else not 200 <= status <= 399:
        return Outcome(False, f"status {status}")
    if check.body and check.body.encode() not in body:
        return Outcome(False, f"status {status}, but the body lacks {check.body!r}")
    return Outcome(True, f"status {status}")


def tls_context(check: HealthCheck) -> ssl.SSLContext:
    """With a name the certificate must be valid for it; without, encryption alone is tried."""
    context = ssl.create_default_context()
    if not check.tls_name:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target) -> tuple[int, bytes]:
    connection = h11.Connection(h11.CLIENT)
    authority = target.check.host or (f"[{target.host}]" if ":" in target.host else target.host)
    request = h11.Request(
        method="GET",
        target=target.check.path,
        headers=[("Host", authority), ("User-Agent", "rainlb-health"), ("Connection", "close")],
    )
    writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    status, body = 0, bytearray()
    while len(body) < BODY_BYTES_MAX:
        event: Any = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(BODY_BYTES_MAX))
        elif type(event) is h11.Response:
            status = event.status_code
            if not target.check.body:
                break
        elif type(event) is h11.Data:
            body += event.data
        elif type(event) in (h11.EndOfMessage, h11.ConnectionClosed):
            break
    return status, bytes(body)


class _OneAnswer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(data[:DATAGRAM_BYTES_MAX])

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _exchange(target: Target, payload: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    sock = marked(target.address, socket.SOCK_DGRAM, target.mark)
    try:
        sock.connect((target.address, target.port))
    except OSError:
        sock.close()
        raise
    transport, protocol = await loop.create_datagram_endpoint(_OneAnswer, sock=sock)
    try:
        transport.sendto(payload)
        return await protocol.answer
    finally:
        transport.close()


async def check_udp(target: Target) -> Outcome:
    """A datagram is answered; with `body`, by one that contains it."""
    answer = await _exchange(target, target.check.send.encode())
    if target.check.body and target.check.body.encode() not in answer:
        return Outcome(False, f"answered, but without {target.check.body!r}")
    return Outcome(True, f"{len(answer)} bytes answered")


def dns_query(name: str) -> bytes:
    """A recursive question for the A record of `name`. ValueError for what is no domain name."""
    labels = [label.encode("idna") for label in name.rstrip(".").split(".") if label]
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    if len(question) > 255:
        raise ValueError(f"{name!r} is too long for a domain name")
    return struct.pack("!6H", _DNS_ID, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", _DNS_TYPE_A, _DNS_CLASS_IN)


def judge_dns(answer: bytes) -> Outcome:
    """NOERROR and NXDOMAIN both mean a server that works."""
    if len(answer) < 12:
        return Outcome(False, "the answer is too short for DNS")
    identity, flags = struct.unpack_from("!HH", answer)
    if identity != _DNS_ID or not flags & _DNS_RESPONSE:
        return Outcome(False, "the answer is not one to our question")
    code = flags & _DNS_RCODE
    return Outcome(code in (0, 3), f"DNS response code {code}")


async def check_dns(target: Target) -> Outcome:
    return judge_dns(await _exchange(target, dns_query(target.check.send or ".")))


CHECKS: dict[str, Callable[[Target], Awaitable[Outcome]]] = {
    "tcp": check_tcp,
    "http": check_http,
    "https": check_http,
    "udp": check_udp,
    "dns": check_dns,
    "icmp": check_icmp,
    "script": check_script,
}
