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
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol

from lb import __version__, methods
from lb.children import Child
from lb.configuration import validate
from lb.configuration.model import ClusterConfig, IpAddress
from lb.configuration.node import NodeConfig
from lb.configuration.store import ConfigStore, FileStore
from lb.control import Caller, ControlServer
from lb.engine.driver import EngineDriver
from lb.engine.neighbours import Neighbours
from lb.engine.packet_engine import PacketEngine
from lb.engine.packet_path import Attached, attach_path, detach_path, open_path
from lb.engine.plan import Health, Hop
from lb.engine.probe_way import ProbeWay
from lb.events import Event, Journal, to_plain
from lb.health.board import Condition, HealthBoard
from lb.maintenance import LoopLag, PathWatch, Sweeps
from lb.metrics import Registry
from lb.network.own_addresses import OwnAddresses
from lb.notify import Notifier
from lb.single_node import SingleNode

JOURNAL_NAME = "events.jsonl"
JOURNAL_WRITE_SECONDS = 1.0
HEALTH_TICK_SECONDS = 1.0
TASKS_MAX = 1024
KEEP_PAUSE_SECONDS = 1
LAST_ANSWER_SECONDS = 0.2
OWN_CALLER = Caller(0, os.getpid(), "lbd", "daemon")
log = logging.getLogger("lb")


class AlreadyRunning(Exception):
    """Another daemon serves this node."""


class Component(Protocol):
    """A part with a life of its own. `planned`: the node comes back at once (restart, upgrade)."""

    name: str

    async def start(self) -> None: ...

    async def stop(self, planned: bool) -> None: ...


class Daemon:
    """One gateway. The attributes are what components may use."""

    def __init__(
        self, node: NodeConfig, node_file: Path, services_file: Path | None, *, children: frozenset[str]
    ) -> None:
        self.node = node
        self.node_file, self.services_file = node_file, services_file
        self.started_at = time.time()
        self.metrics = Registry()
        self.task_failures = self.metrics.counter("task_failures_total", "Background tasks that failed.", ["task"])
        self.journal = Journal(node.state_dir / JOURNAL_NAME)
        self.control = ControlServer(node.control_socket, node.api.get("group", "lb"))
        self.store: ConfigStore = FileStore(node.state_dir)
        self.notifier = Notifier()
        self.attached: list[Attached] = []
        self.state, self.reason = "joining", ""
        self.components: list[Component] = []
        self.lag = LoopLag(self.metrics)
        self.engine: PacketEngine
        self.driver: EngineDriver
        self.neighbours: Neighbours
        self.sweeps: Sweeps
        self.probe_way: ProbeWay
        self.stopped = asyncio.Event()
        self.board = HealthBoard(node.node.id, self._share_alone, self._health_changed)
        self._unresolved = self.metrics.gauge("backends_unresolved", "Backends whose next hop is not known.")
        self.metrics.collect(self._collect_metrics)
        self._known_alive: dict[int, bool] = {}
        self.loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock_file: int | None = None
        self._is_stopping = False
        self._started = asyncio.Event()
        made = {"api": self._api_child(), "health": self._health_child()}
        self._children = {name: child for name, child in made.items() if name in children}

    # --- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Everything up to the point where the gateway serves. Raises what the parts raise."""
        self.loop = asyncio.get_running_loop()
        try:
            await self._start()
        finally:
            self._started.set()

    async def _start(self) -> None:
        self._lock()
        maps = await asyncio.to_thread(open_path, self.node)
        self.engine = PacketEngine(maps, self.node)
        self.driver = EngineDriver(self.engine, self._engine_failed)
        self.neighbours = Neighbours(self._hops_changed)
        methods.register(self)
        self.sweeps = Sweeps(self)
        self.probe_way = ProbeWay(self)
        parts: list[Component] = [OwnAddresses(self), self.sweeps, PathWatch(self), self.probe_way]
        self.components = [self._cluster_component(), *parts]
        await self.driver.start()
        self._follow_store()
        # Maps first, program last: from its first packet on the path knows everything.
        await self.neighbours.start()
        await self.driver.settled()
        self.attached = await asyncio.to_thread(attach_path, self.node)
        for component in self.components:
            await component.start()
        await self.control.start()
        self.keep(self._keep_journal, "journal")
        self.keep(self._tick, "health tick")
        self.keep(self.lag.run, "loop lag")
        await self._start_children()
        if self.services_file is not None:
            await self.apply_file(self.services_file)
        if self.node.ring is None:
            self.set_state("in_service")

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
            return SingleNode(self)
        # The ring's libraries are for gateways that have one.
        from lb.cluster.gateway import Cluster

        return Cluster(self)

    def _follow_store(self) -> None:
        self.store.on_change(self._config_changed)
        self._take_config(self.store.current)

    def _config_changed(self, old: ClusterConfig, new: ClusterConfig) -> None:
        self._take_config(new)
        self.control.publish("config", {"kind": "config.changed", "version": new.version, "time": time.time()})

    def _take_config(self, config: ClusterConfig) -> None:
        self.board.configure(config)
        self.driver.request(config, health=self._health_of(config))
        self.neighbours.configure(config)
        if any(service.health is not None for service in config.services) and "health" in self._children:
            self.spawn(self._children["health"].start(), "health child")
        self.probe_way.configure()
        self.control.publish("health", {"kind": "targets.changed"})

    def reach_vips(self, ready: bool | None) -> None:
        """Whether health checks can reach a VIP on one backend; see `HealthBoard.way_to_vips`."""
        if ready != self.board.reaches_vips:
            self.board.way_to_vips(ready)
            self.control.publish("health", {"kind": "targets.changed"})

    def _hops_changed(self, hops: dict[int, Hop], sources: dict[int, IpAddress]) -> None:
        self.driver.request(hops=hops)
        self.spawn(asyncio.to_thread(self.engine.set_tunnel_sources, sources), "tunnel sources")

    # --- health ------------------------------------------------------------------------------------------------------

    def _health_of(self, config: ClusterConfig) -> dict[int, Health]:
        known = self.board.conditions()
        backends = [backend for service in config.services for backend in service.backends if backend.id in known]
        return {b.id: Health(known[b.id].alive, known[b.id].weight(b.weight)) for b in backends}

    def _health_changed(self, changed: Mapping[int, Condition]) -> None:
        config = self.store.current
        self.driver.request(health=self._health_of(config))
        names = {backend.id: f"{s.name}/{backend.name}" for s in config.services for backend in s.backends}
        for backend_id, condition in changed.items():
            # Other changes of a condition (its words, the steps of a slow start) are not news.
            if condition.alive != self._known_alive.get(backend_id, True):
                self._known_alive[backend_id] = condition.alive
                if self.board.leads:
                    self._report_health(names.get(backend_id, str(backend_id)), condition)
        self._known_alive = {each: alive for each, alive in self._known_alive.items() if each in names}

    def _report_health(self, name: str, condition: Condition) -> None:
        what, severity = ("alive", "info") if condition.alive else ("dead", "warning")
        message = f"backend {name} is {what}: {condition.detail}"
        self.report(Event(f"backend.{what}", message, subject=name, severity=severity))

    def _share_alone(self, key: str, value: bytes | None) -> None:
        self.board.shared(key, value)

    # --- running -----------------------------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Runs something in the background; its failure is logged."""
        if len(self._tasks) >= TASKS_MAX:
            work.close()
            log.error("%s is not started: %d background tasks run already", name, len(self._tasks))
            return
        task = self.loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        """Runs something without end: when it fails, that is logged and it begins anew."""
        self.spawn(self._keep(work, name), name)

    async def _keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        while True:
            try:
                await work()
            except Exception:
                self.task_failures.add(1, name)
                log.exception("%s failed; it begins anew in %d s", name, KEEP_PAUSE_SECONDS)
            await asyncio.sleep(KEEP_PAUSE_SECONDS)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    def report(self, event: Event) -> None:
        """An event of this node for the journal and all who watch. A cluster replaces this by one that tells the
        peers."""
        self.record(event)

    def record(self, event: Event) -> Event:
        """Writes an event, from here or from a peer, into this node's journal."""
        named = event if event.node else Event(**{**to_plain(event), "node": self.node.node.name})  # type: ignore[arg-type]
        kept = self.journal.append(named)
        self.control.publish("events", to_plain(kept))
        return kept

    def set_state(self, state: str, reason: str = "") -> None:
        """joining, in_service, draining or out_of_service, and why."""
        self.state, self.reason = state, reason
        self.notifier.status(f"{state.replace('_', ' ')}{': ' + reason if reason else ''}")

    def node_status(self) -> dict[str, Any]:
        """This node as `nodes` shows it."""
        return {
            "name": self.node.node.name,
            "id": self.node.node.id,
            "state": self.state,
            "reason": self.reason or None,
            "version": __version__,
            "uptime_s": time.time() - self.started_at,
            "config_version": self.store.current.version,
            "loop_lag_ms": self.lag.worst_s * 1000,
        }

    def _collect_metrics(self) -> None:
        counted = self.metrics.import_counts
        requests = {"answered": self.control.requests - self.control.refused, "refused": self.control.refused}
        counted("control_requests_total", "Requests on the control socket.", "outcome", requests)
        updates = {"done": self.driver.updates, "failed": self.driver.failures}
        counted("engine_updates_total", "Changes of the packet path's maps.", "outcome", updates)
        lookups = {"done": self.neighbours.lookups, "failed": self.neighbours.failures}
        counted("next_hop_lookups_total", "Lookups of backends' next hops.", "outcome", lookups)
        shed = {"subscribers": self.control.events_shed, "journal": self.journal.shed}
        counted("events_shed_total", "Events lost because nobody took them in time.", "where", shed)
        self._unresolved.set(len(self.neighbours.problems))

    def view(self) -> dict[str, Any] | None:
        """The committed view of the ring; None without one. A cluster replaces this."""
        return None

    def _engine_failed(self, problem: str) -> None:
        self.report(Event("engine.failed", problem, subject=self.node.node.name, severity="error"))

    async def _keep_journal(self) -> None:
        while True:
            await asyncio.sleep(JOURNAL_WRITE_SECONDS)
            await self._write_journal()

    async def _write_journal(self) -> None:
        events = self.journal.pending()
        if events:
            try:
                await asyncio.to_thread(self.journal.write, events)
            except OSError as error:
                log.error("events cannot be written to %s: %s", self.node.state_dir, error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_TICK_SECONDS)
            self.board.tick()

    async def watch_dog(self) -> None:
        """Tells the service manager that the loop turns."""
        while self.notifier.watchdog_interval_s > 0:
            self.notifier.alive()
            await asyncio.sleep(self.notifier.watchdog_interval_s)

    # --- reload ------------------------------------------------------------------------------------------------------

    async def apply_file(self, path: Path) -> None:
        """Reads, validates and applies a cluster file. Raises ConfigError; nothing is changed then."""
        text = await asyncio.to_thread(validate.read_file, path)
        await methods.apply_text(self, text, "toml", str(path), None, OWN_CALLER)

    async def reload(self) -> None:
        """SIGHUP: the services file is read again. The node file is read at start only."""
        self.notifier.reloading()
        try:
            if self.services_file is None:
                log.info("nothing to reload: started without --services; use `lbctl apply`")
            else:
                await self.apply_file(self.services_file)
        except Exception as error:
            log.error("reload refused, the running configuration stays: %s", error)
            self.report(Event("config.refused", str(error)[:400], subject=str(self.services_file), severity="error"))
        finally:
            self.notifier.ready(self.state.replace("_", " "))

    # --- children ----------------------------------------------------------------------------------------------------

    def _api_child(self) -> Child:
        # It survives the daemon's death, to answer from the pinned maps; the next daemon's API process replaces it.
        return Child(
            "lb-api", [sys.executable, "-m", "lb.api", "--config", str(self.node_file)], dies_with_parent=False
        )

    def _health_child(self) -> Child:
        command = [sys.executable, "-m", "lb.health", "--control", str(self.node.control_socket)]
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
        self.notifier.stopping()
        for child in self._children.values():
            await child.stop()
        await self.control.stop()
        for component in reversed(self.components):
            await component.stop(planned=not detach)
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.neighbours.stop()
        await self.driver.stop()
        await self._write_journal()
        if detach:
            await self.detach()
        self.engine.close()
        self.notifier.close()
        if self._lock_file is not None:
            os.close(self._lock_file)

    async def detach(self) -> list[str]:
        """Takes the data path out: programs, maps, connections, and the VIPs this gateway holds alone."""
        for component in self.components:
            if isinstance(component, SingleNode):
                await asyncio.to_thread(component.release)
        names = await asyncio.to_thread(detach_path, self.node)
        self.attached = []
        return names
