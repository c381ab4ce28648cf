# SPDX-License-Identifier: Apache-2.0
"""Ways to find out whether something is there, used by the local failure detectors and the backend health checks.

A probe returns an `Outcome` or raises OSError, ValueError or TimeoutError; `bounded` turns all of these into a bad
outcome with its reason. `Judge` turns single outcomes into a state that does not flap.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from ipaddress import ip_address

from lb.process.children import ended

DETAIL_LENGTH_MAX = 200
PROGRAM_OUTPUT_BYTES_MAX = 4096
_SOL_RAW = 255  # not exported by the socket module
_ICMP_FILTER, _ICMPV6_FILTER = 1, 1
_ECHO_REPLY, _ECHO_REPLY_V6 = 0, 129
_echo_sequence = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one try, with words for people."""

    good: bool
    detail: str


@dataclass(slots=True)
class Judge:
    """Turns single outcomes into a state that does not flap. `healthy` is None before the first outcome."""

    rise: int
    fall: int
    healthy: bool | None = None
    _run: int = field(default=0, repr=False)

    def observe(self, good: bool, *, certain: bool = False) -> bool:
        """Take in an outcome; True when the state changed. A `certain` outcome needs no repetition."""
        if good == self.healthy:
            self._run = 0
            return False
        self._run += 1
        if self.healthy is not None and not certain and self._run < (self.rise if good else self.fall):
            return False
        self.healthy, self._run = good, 0
        return True


async def bounded(probe: Awaitable[Outcome], timeout_ms: int) -> Outcome:
    """One try with a limit; whatever goes wrong is a bad outcome with its reason."""
    try:
        # Not wait_for: before Python 3.12 it may swallow a cancellation that meets the result.
        async with asyncio.timeout(timeout_ms / 1000):
            outcome = await probe
    except TimeoutError:
        outcome = Outcome(False, f"no answer within {timeout_ms} ms")
    except (OSError, ValueError) as error:
        outcome = Outcome(False, _wording(error))
    return Outcome(outcome.good, outcome.detail[:DETAIL_LENGTH_MAX])


def _wording(error: Exception) -> str:
    # Errors of TLS and of name resolution have numbers of their own; of the others asyncio leaves the reason out.
    if isinstance(error, OSError) and error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        reason = os.strerror(error.errno)
        return f"{reason}: {error.filename}" if error.filename else reason
    return str(error) or type(error).__name__


async def readable(descriptor: int) -> None:
    """Return when `descriptor` has something to read."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)


def marked(address: str, kind: socket.SocketKind, mark: int) -> socket.socket:
    """A socket of the address's family whose packets carry `mark` (0: none)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    return sock


async def connected(address: str, port: int, mark: int = 0) -> socket.socket:
    """A TCP connection to an address (no name), its packets marked."""
    sock = marked(address, socket.SOCK_STREAM, mark)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _ping_socket(version: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    if version == 4:
        sock = socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
        # A set bit blocks that type: only echo replies wake us.
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << _ECHO_REPLY) & 0xFFFFFFFF))
        return sock
    sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
    blocked = bytearray(b"\xff" * 32)
    word, bit = divmod(_ECHO_REPLY_V6, 32)
    struct.pack_into("=I", blocked, word * 4, ~(1 << bit) & 0xFFFFFFFF)
    sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, bytes(blocked))
    return sock


def _echo_request(version: int, identity: int, sequence: int) -> bytes:
    if version == 6:
        return struct.pack("!BBHHH", 128, 0, 0, identity, sequence)  # the kernel fills in the checksum
    total = 0x0800 + identity + sequence
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, identity, sequence)


async def ping(address: str, mark: int = 0) -> Outcome:
    """An ICMP echo is answered."""
    target = ip_address(address)
    identity, sequence = os.getpid() & 0xFFFF, next(_echo_sequence) & 0xFFFF
    with _ping_socket(target.version) as sock:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.connect((address, 0))
        began = time.monotonic()
        sock.send(_echo_request(target.version, identity, sequence))
        while True:
            await readable(sock.fileno())
            reply = sock.recv(256)
            reply = reply[(reply[0] & 0xF) * 4 :] if target.version == 4 else reply
            if len(reply) >= 8 and struct.unpack_from("!HH", reply, 4) == (identity, sequence):
                return Outcome(True, f"{address} answered in {(time.monotonic() - began) * 1000:.1f} ms")


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset: a probe a second must not fill the target with TIME_WAIT."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def tcp(address: str, port: int, mark: int = 0) -> Outcome:
    """A TCP connection is accepted."""
    _, writer = await asyncio.open_connection(sock=await connected(address, port, mark))
    reset_on_close(writer)
    return Outcome(True, f"{address} port {port} accepts")


async def program(command: tuple[str, ...]) -> tuple[int, str]:
    """Run a program without a shell; its exit code and the beginning of its output. Killed when cancelled.

    It is started in a worker thread, as `lb.process.children` does and for the same reason.
    """
    process = await _start(command)
    try:
        output = await _output(process)
        await ended(process)
        return process.returncode, " ".join(output.decode(errors="replace").split())
    finally:
        await _finish(process)


async def _start(command: tuple[str, ...]) -> "subprocess.Popen[bytes]":
    starting = asyncio.ensure_future(
        asyncio.to_thread(
            subprocess.Popen,
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a timeout ends its children too
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be stopped any more: what it starts is ended as soon as it is there.
        with contextlib.suppress(OSError):
            await _finish(await starting)
        raise


async def _output(process: "subprocess.Popen[bytes]") -> bytes:
    """All of it is read, so that the program never waits for us; the beginning is kept."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    kept = b""
    while True:
        await readable(descriptor)
        data = os.read(descriptor, PROGRAM_OUTPUT_BYTES_MAX)
        if not data:
            return kept
        kept += data[: PROGRAM_OUTPUT_BYTES_MAX - len(kept)]


async def _finish(process: "subprocess.Popen[bytes]") -> None:
    """Leave nothing of it behind."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await ended(process)
    if process.stdout is not None:
        process.stdout.close()


async def script(command: tuple[str, ...]) -> Outcome:
    """A program ends with exit code 0."""
    code, text = await program(command)
    return Outcome(code == 0, f"exit code {code}{': ' + text if text else ''}")
