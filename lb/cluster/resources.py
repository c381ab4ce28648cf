# SPDX-License-Identifier: Apache-2.0
"""Local failure detectors: is what this gateway needs in order to serve still there?

Each `[[resource]]` of the node file is tried in turn by its own task; `rise` and `fall` successes or failures in a row
change its state. The first result counts at once, so that a node knows soon after its start whether it may serve.
A link that goes down is told by the kernel and needs no `fall` tries.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from lb.configuration.node import Resource
from lb.network.announce import Segment, probe
from lb.network.links import LinkWatch

DETAIL_LENGTH_MAX = 200
SCRIPT_OUTPUT_BYTES_MAX = 4096
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_ECHO_REPLY, _ECHO_REPLY_V6 = 0, 129


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


@dataclass(frozen=True, slots=True)
class ResourceState:
    """A resource as `lbctl nodes` shows it."""

    name: str
    kind: str
    required: bool
    critical: bool
    healthy: bool | None
    detail: str


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    loop.add_reader(descriptor, finish)
    try:
        await done
    finally:
        loop.remove_reader(descriptor)


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


async def check_ping(resource: Resource) -> Outcome:
    """An ICMP echo is answered."""
    target = ip_address(resource.address)
    identity, sequence = os.getpid() & 0xFFFF, time.monotonic_ns() >> 10 & 0xFFFF
    with _ping_socket(target.version) as sock:
        sock.connect((resource.address, 0))
        began = time.monotonic()
        sock.send(_echo_request(target.version, identity, sequence))
        while True:
            await _readable(sock.fileno())
            reply = sock.recv(256)
            reply = reply[(reply[0] & 0xF) * 4 :] if target.version == 4 else reply
            if len(reply) >= 8 and struct.unpack_from("!HH", reply, 4) == (identity, sequence):
                return Outcome(True, f"{resource.address} answered in {(time.monotonic() - began) * 1000:.1f} ms")


async def check_arp(resource: Resource) -> Outcome:
    """A neighbour answers for its address on the interface."""
    target = ip_address(resource.address)
    segment = Segment(resource.interface)
    try:
        segment.watch([target])
        segment.send([probe(segment.mac, target)])
        while True:
            await _readable(segment.fileno())
            for claim in segment.claims():
                if claim.address == target:
                    return Outcome(True, f"{resource.address} is at {claim.mac.hex(':')}")
    finally:
        segment.close()


async def check_tcp(resource: Resource) -> Outcome:
    """A TCP connection is accepted."""
    _, writer = await asyncio.open_connection(resource.address, resource.port)
    # Reset instead of closing in order: a probe a second must not fill the target with TIME_WAIT.
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return Outcome(True, f"{resource.address} port {resource.port} accepts")


def _running(name: str) -> bool:
    wanted = name.encode()[:15]  # the kernel keeps no more of a command's name
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = Path(entry.path, "stat").read_bytes()
                comm, rest = status[status.index(b"(") + 1 : status.rindex(b")")], status[status.rindex(b")") + 2 :]
                if comm == wanted and rest[:1] not in (b"Z", b"X"):
                    return True
    return False


async def check_process(resource: Resource) -> Outcome:
    """A process of that name runs."""
    running = await asyncio.to_thread(_running, resource.process)
    return Outcome(running, f"process {resource.process} {'runs' if running else 'does not run'}")


async def check_unit(resource: Resource) -> Outcome:
    """A systemd unit is active."""
    code, text = await _run(("systemctl", "is-active", resource.process))
    return Outcome(code == 0, f"unit {resource.process}: {text or code}")


async def check_script(resource: Resource) -> Outcome:
    """A program ends with exit code 0."""
    code, text = await _run(resource.command)
    return Outcome(code == 0, f"exit code {code}{': ' + text if text else ''}")


async def _run(command: tuple[str, ...]) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # so that a timeout ends its children too
    )
    assert process.stdout is not None
    try:
        output = await process.stdout.read(SCRIPT_OUTPUT_BYTES_MAX)
        while await process.stdout.read(SCRIPT_OUTPUT_BYTES_MAX):
            pass
        return await process.wait(), " ".join(output.decode(errors="replace").split())
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


CHECKS: dict[str, Callable[[Resource], Awaitable[Outcome]]] = {
    "ping": check_ping,
    "arp": check_arp,
    "tcp": check_tcp,
    "process": check_process,
    "unit": check_unit,
    "script": check_script,
}


async def try_once(resource: Resource) -> Outcome:
    """One bounded try; whatever goes wrong is a bad outcome with its reason."""
    timeout_s = resource.timeout_ms / 1000
    try:
        outcome = await asyncio.wait_for(CHECKS[resource.kind](resource), timeout_s)
    except TimeoutError:
        outcome = Outcome(False, f"no answer within {resource.timeout_ms} ms")
    except OSError as error:
        # asyncio's own wording leaves the reason out.
        reason = os.strerror(error.errno) if error.errno else str(error)
        outcome = Outcome(False, f"{reason}: {error.filename}" if error.filename else reason)
    except ValueError as error:
        outcome = Outcome(False, str(error))
    return Outcome(outcome.good, outcome.detail[:DETAIL_LENGTH_MAX])


OnChange = Callable[[ResourceState], None]


class Resources:
    """All resources of this node. `on_change` is called with each resource that becomes good or bad."""

    def __init__(self, resources: Iterable[Resource], on_change: OnChange) -> None:
        self._resources = tuple(resources)
        self._judges = {r.name: Judge(r.rise, r.fall) for r in self._resources}
        self._details = {r.name: "not tried yet" for r in self._resources}
        self._on_change = on_change
        self._tasks: list[asyncio.Task[None]] = []
        self._links: LinkWatch | None = None

    async def start(self) -> None:
        """Begin trying."""
        names = {r.interface for r in self._resources if r.kind == "link"}
        if names:
            self._links = LinkWatch(asyncio.get_running_loop(), names, self._links_changed)
        self._tasks = [asyncio.create_task(self._watch(r), name=f"resource {r.name}") for r in self._resources]

    async def stop(self) -> None:
        """End all tries."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._links is not None:
            self._links.close()

    @property
    def settled(self) -> bool:
        """Every required resource has been tried."""
        return all(self._judges[r.name].healthy is not None for r in self._resources if r.required)

    @property
    def failed(self) -> list[str]:
        """The required resources that are bad: reasons to be out of service."""
        return [r.name for r in self._resources if r.required and self._judges[r.name].healthy is False]

    @property
    def critical_ok(self) -> bool:
        """Whether all resources that decide about partitions are good; True where there are none."""
        return all(self._judges[r.name].healthy is not False for r in self._resources if r.critical)

    def states(self) -> list[ResourceState]:
        """All resources, in the order of the node file."""
        return [self._state(resource) for resource in self._resources]

    def _state(self, r: Resource) -> ResourceState:
        judge = self._judges[r.name]
        return ResourceState(r.name, r.kind, r.required, r.critical, judge.healthy, self._details[r.name])

    async def _watch(self, resource: Resource) -> None:
        while True:
            began = time.monotonic()
            if resource.kind == "link":
                self._observe(resource, self._link_outcome(resource))
            else:
                self._observe(resource, await try_once(resource))
            await asyncio.sleep(max(0.0, resource.interval_ms / 1000 - (time.monotonic() - began)))

    def _link_outcome(self, resource: Resource) -> Outcome:
        up = self._links is not None and self._links.up(resource.interface)
        return Outcome(up, f"{resource.interface} is {'up' if up else 'down'}")

    def _links_changed(self) -> None:
        for resource in self._resources:
            if resource.kind == "link":
                outcome = self._link_outcome(resource)
                if not outcome.good:
                    self._observe(resource, outcome, certain=True)

    def _observe(self, resource: Resource, outcome: Outcome, *, certain: bool = False) -> None:
        self._details[resource.name] = outcome.detail
        if self._judges[resource.name].observe(outcome.good, certain=certain):
            self._on_change(self._state(resource))
