# SPDX-License-Identifier: Apache-2.0
"""Local failure detectors: is what this gateway needs in order to serve still there?

Each `[[resource]]` of the node file is tried in turn by its own task; `rise` and `fall` successes or failures in a row
change its state. The first result counts at once, so that a node knows soon after its start whether it may serve.
A link that goes down is told by the kernel and needs no `fall` tries.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from lb.configuration.node import Resource
from lb.health.probes import Judge, Outcome, bounded, ping, program, readable, script, tcp
from lb.network.announce import Segment, probe
from lb.network.links import LinkWatch


@dataclass(frozen=True, slots=True)
class ResourceState:
    """A resource as `lbctl nodes` shows it."""

    name: str
    kind: str
    required: bool
    critical: bool
    healthy: bool | None
    detail: str


async def check_ping(resource: Resource) -> Outcome:
    """An ICMP echo is answered."""
    return await ping(resource.address)


async def check_arp(resource: Resource) -> Outcome:
    """A neighbour answers for its address on the interface."""
    target = ip_address(resource.address)
    segment = Segment(resource.interface)
    try:
        segment.watch([target])
        segment.send([probe(segment.mac, target)])
        while True:
            await readable(segment.fileno())
            for claim in segment.claims():
                if claim.address == target:
                    return Outcome(True, f"{resource.address} is at {claim.mac.hex(':')}")
    finally:
        segment.close()


async def check_tcp(resource: Resource) -> Outcome:
    """A TCP connection is accepted."""
    return await tcp(resource.address, resource.port)


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
    code, text = await program(("systemctl", "is-active", resource.process))
    return Outcome(code == 0, f"unit {resource.process}: {text or code}")


async def check_script(resource: Resource) -> Outcome:
    """A program ends with exit code 0."""
    return await script(resource.command)


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
    return await bounded(CHECKS[resource.kind](resource), resource.timeout_ms)


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
        return not self.critical_failed

    @property
    def critical_failed(self) -> list[str]:
        """The resources that decide about partitions and are bad."""
        return [r.name for r in self._resources if r.critical and self._judges[r.name].healthy is False]

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
