# SPDX-License-Identifier: Apache-2.0
"""The daemon's parts and how they hang together. What happens in which order at start, reload and stop is written
here, once.

The event loop never waits: tables, netlink lookups, sweeps, files and validation run in threads or children.
Restarting is not an event for the packets: maps, programs and VIPs stay where they are, and the new daemon takes over
what it finds.
"""

import asyncio
import fcntl
import logging
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from lb import methods
from lb.configuration import validate
from lb.configuration.fields import IpAddress
from lb.configuration.gateway_addresses import clashes, ring_addresses
from lb.configuration.model import ClusterConfig
from lb.configuration.node import NodeConfig
from lb.configuration.reload import needs_restart, peer_changes
from lb.engine.driver import EngineDriver
from lb.engine.neighbours import Neighbours
from lb.engine.packet_engine import PacketEngine
from lb.engine.packet_path import attach_path, detach_path, open_path
from lb.engine.plan import Hop
from lb.events import Event
from lb.gateway import OWN_CALLER, Component, Gateway
from lb.process.children import Child
from lb.single_node import SingleNode
from lb.upkeep.figures import collect_figures
from lb.upkeep.local_services import LocalServices
from lb.upkeep.loop_lag import LoopLag
from lb.upkeep.own_addresses import OwnAddresses
from lb.upkeep.path_watch import PathWatch
from lb.upkeep.probe_way import ProbeWay
from lb.upkeep.sweeps import Sweeps

JOURNAL_WRITE_SECONDS = 1.0
HEALTH_TICK_SECONDS = 1.0
LAST_ANSWER_SECONDS = 0.2
log = logging.getLogger("lb")


class AlreadyRunning(Exception):
    """Another daemon serves this node."""


def _refuse_reload(file: Path, changed: list[str], config: ClusterConfig, node: NodeConfig) -> None:
    """Raises ConfigError for a node file that cannot be followed while the gateway runs."""
    if changed:
        remedy = "only ring.peers can change while it runs: `systemctl restart lbd` takes the rest, and moves nothing"
        raise validate.refusal(str(file), f"{', '.join(changed)} changed; {remedy}")
    for fault in clashes(config, ring_addresses(node)):
        raise validate.refusal(str(file), f"VIP {fault.value} {fault.problem}")


class Daemon:
    """Starts, reloads and stops one gateway and its parts."""

    def __init__(
        self, node: NodeConfig, node_file: Path, services_file: Path | None, *, children: frozenset[str]
    ) -> None:
        self.gateway = Gateway(node)
        self.node = node
        self.node_file, self.services_file = node_file, services_file
        self.stopped = asyncio.Event()
        self._components: list[Component] = []
        self._probe_way = ProbeWay(self.gateway)
        self._lock_file: int | None = None
        self._is_stopping = False
        self._started = asyncio.Event()
        made = {"api": self._api_child(), "health": self._health_child()}
        self._children = {name: child for name, child in made.items() if name in children}

    # --- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up to the point where the gateway serves. Raises what the parts raise."""
        try:
            await self._start()
        finally:
            self._started.set()

    async def _start(self) -> None:
        gateway = self.gateway
        self._lock()
        maps = await asyncio.to_thread(open_path, self.node)
        gateway.engine = PacketEngine(maps, self.node)
        gateway.driver = EngineDriver(gateway.engine, self._engine_failed)
        gateway.neighbours = Neighbours(self._hops_changed)
        methods.register(gateway, lambda: self.shut_down(detach=True))
        own_addresses, cluster = OwnAddresses(gateway), self._cluster_component()
        parts: list[Component] = [cluster, Sweeps(gateway), PathWatch(gateway), self._probe_way]
        if self.node.ring is not None:
            parts.append(LocalServices(gateway))
        self._components = [own_addresses, *parts]
        await gateway.driver.start()
        self._follow_store()
        # Maps first, program last: from its first packet on the path knows everything.
        await gateway.neighbours.start()
        await gateway.driver.settled()
        await own_addresses.start()
        gateway.attached = await asyncio.to_thread(attach_path, self.node)
        for component in parts:
            await component.start()
        await gateway.control.start()
        collect_figures(gateway)
        gateway.keep(self._keep_journal, "journal")
        gateway.keep(self._tick, "health tick")
        gateway.keep(LoopLag(gateway).run, "loop lag")
        await self._start_children()
        if self.services_file is not None:
            await self.apply_file(self.services_file)
        if self.node.ring is None:
            gateway.set_state("in_service")

    def _lock(self) -> None:
        for directory in (self.node.run_dir, self.node.state_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = os.open(self.node.run_dir / "lbd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(f"another lbd runs with run_dir {self.node.run_dir}: stop it first") from None

    def _cluster_component(self) -> Component:
        if self.node.ring is None:
            return SingleNode(self.gateway)
        # The ring's libraries are for gateways that have one.
        from lb.cluster.cluster import Cluster
        from lb.cluster.methods import register_methods

        cluster = Cluster(self.gateway)
        register_methods(cluster)
        return cluster

    def _follow_store(self) -> None:
        self.gateway.store.on_change(self._config_changed)
        self._take_config(self.gateway.store.current)

    def _config_changed(self, old: ClusterConfig, new: ClusterConfig) -> None:
        self._take_config(new)
        self.gateway.control.publish("config", {"kind": "config.changed", "version": new.version, "time": time.time()})

    def _take_config(self, config: ClusterConfig) -> None:
        self.gateway.board.configure(config)
        self.gateway.driver.request(config, health=self.gateway.health_of(config))
        self.gateway.neighbours.configure(config)
        if any(service.health is not None for service in config.services) and "health" in self._children:
            self.gateway.spawn(self._children["health"].start(), "health child")
        self._probe_way.configure()
        self.gateway.control.publish("health", {"kind": "targets.changed"})

    def _hops_changed(self, hops: dict[int, Hop], sources: dict[int, IpAddress]) -> None:
        self.gateway.driver.request(hops=hops)
        self.gateway.spawn(asyncio.to_thread(self.gateway.engine.set_tunnel_sources, sources), "tunnel sources")

    # --- running -----------------------------------------------------------------------------------------------------

    def _engine_failed(self, problem: str) -> None:
        self.gateway.report(Event("engine.failed", problem, subject=self.node.node.name, severity="error"))

    async def _keep_journal(self) -> None:
        while True:
            await asyncio.sleep(JOURNAL_WRITE_SECONDS)
            await self._write_journal()

    async def _write_journal(self) -> None:
        events = self.gateway.journal.pending()
        if events:
            try:
                await asyncio.to_thread(self.gateway.journal.write, events)
            except OSError as error:
                log.error("events cannot be written to %s: %s", self.node.state_dir, error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_TICK_SECONDS)
            self.gateway.board.tick()

    async def watch_dog(self) -> None:
        """Tells the service manager that the loop turns."""
        while self.gateway.notifier.watchdog_interval_s > 0:
            self.gateway.notifier.alive()
            await asyncio.sleep(self.gateway.notifier.watchdog_interval_s)

    # --- reload ------------------------------------------------------------------------------------------------------

    async def apply_file(self, path: Path) -> None:
        """Reads, validates and applies a cluster file. Raises ConfigError; nothing is changed then."""
        text = await asyncio.to_thread(validate.read_file, path)
        await methods.apply_text(self.gateway, text, "toml", str(path), None, OWN_CALLER)

    async def reload(self) -> None:
        """SIGHUP: `[ring.peers]` of the node file is read again and, where there is one, the services file."""
        await self._started.wait()
        self.gateway.notifier.reloading()
        try:
            await self._or_refuse(self._reload_peers(), self.node_file)
            if self.services_file is not None:
                await self._or_refuse(self.apply_file(self.services_file), self.services_file)
        finally:
            self.gateway.notifier.ready(self.gateway.state.replace("_", " "))

    async def _or_refuse(self, work: Coroutine[Any, Any, None], file: Path) -> None:
        try:
            await work
        except Exception as error:
            log.error("reload of %s refused, what runs stays as it is: %s", file, error)
            refused = Event("config.refused", str(error)[:400], subject=str(file), severity="error")
            self.gateway.report(refused)

    async def _reload_peers(self) -> None:
        """Follows a node file that names other gateways than before. Raises ConfigError; nothing is changed then."""
        text = await asyncio.to_thread(validate.read_file, self.node_file)
        node = await asyncio.to_thread(validate.node_config, text, str(self.node_file))
        changes = peer_changes(self.node, node)
        _refuse_reload(self.node_file, needs_restart(self.node, node), self.gateway.store.current, node)
        if not changes:
            log.info("%s names the same gateways as before", self.node_file)
            return
        self.gateway.take_peers(node)
        self.node = self.gateway.node = node
        self.gateway.report(Event("node.reloaded", "; ".join(changes), subject=node.node.name))

    # --- children ----------------------------------------------------------------------------------------------------

    def _api_child(self) -> Child:
        # It survives the daemon's death, to answer from the pinned maps; the next daemon's API process replaces it.
        return Child(
            "lb-api", [sys.executable, "-m", "lb.api", "--config", str(self.node_file)], dies_with_parent=False
        )

    def _health_child(self) -> Child:
        places = ["--control", str(self.node.control_socket), "--maps", str(self.node.pins / "maps")]
        command = [sys.executable, "-m", "lb.health", *places]
        return Child("lb-health", command, dies_with_parent=True)

    async def _start_children(self) -> None:
        if "api" in self._children:
            await self._children["api"].start()

    # --- stop --------------------------------------------------------------------------------------------------------

    async def shut_down(self, *, detach: bool) -> None:
        """Ends the daemon, once. The data path stays and forwards, unless `detach` takes it out."""
        if self._is_stopping:
            return
        self._is_stopping = True
        # Half a start cannot be undone in order; a whole one can.
        await self._started.wait()
        try:
            # Whoever asked for it over the control socket is to have the answer.
            await asyncio.sleep(LAST_ANSWER_SECONDS if detach else 0)
            await self._stop(detach=detach)
        finally:
            self.stopped.set()

    async def _stop(self, *, detach: bool) -> None:
        self.gateway.notifier.stopping()
        for child in self._children.values():
            await child.stop()
        await self.gateway.control.stop()
        for component in reversed(self._components):
            await component.stop(planned=not detach)
        await self.gateway.background.end()
        await self.gateway.neighbours.stop()
        await self.gateway.driver.stop()
        await self._write_journal()
        if detach:
            await self.detach()
        self.gateway.engine.close()
        self.gateway.notifier.close()
        if self._lock_file is not None:
            os.close(self._lock_file)

    async def detach(self) -> list[str]:
        """Takes the data path out: programs, maps, connections, and the VIPs this gateway holds alone."""
        for component in self._components:
            if isinstance(component, SingleNode):
                await asyncio.to_thread(component.release)
        names = await asyncio.to_thread(detach_path, self.node)
        self.gateway.attached = []
        return names
