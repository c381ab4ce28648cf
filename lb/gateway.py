# SPDX-License-Identifier: Apache-2.0
"""One gateway as its parts see it: what they share, and what each may tell the others. It knows none of them."""

import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from lb import __version__
from lb.configuration.advice import Network
from lb.configuration.fields import IpAddress
from lb.configuration.gateway_addresses import ring_addresses
from lb.configuration.model import ClusterConfig
from lb.configuration.node import NodeConfig
from lb.configuration.store import ConfigStore, FileStore
from lb.control import Caller, ControlServer
from lb.engine.driver import EngineDriver
from lb.engine.neighbours import Neighbours
from lb.engine.packet_engine import PacketEngine
from lb.engine.packet_path import Attached
from lb.engine.plan import Health
from lb.engine.sweeper import Census
from lb.events import Event, Journal, to_plain
from lb.health.board import Condition, HealthBoard
from lb.health.news import HealthNews
from lb.metrics import Registry
from lb.network.netlink_messages import Address
from lb.process.background import Background
from lb.process.notify import Notifier

JOURNAL_NAME = "events.jsonl"
OWN_CALLER = Caller(0, os.getpid(), "lbd", "daemon")


async def _nowhere_else(_version: int) -> list[str]:
    return []


class Component(Protocol):
    """A part with a life of its own. `planned`: the node comes back at once (restart, upgrade)."""

    name: str

    async def start(self) -> None: ...

    async def stop(self, planned: bool) -> None: ...


class Gateway:
    """The attributes are what components may use; `engine`, `driver` and `neighbours` are there once the packet path
    is open."""

    def __init__(self, node: NodeConfig) -> None:
        self.node = node
        self.started_at = time.time()
        self._started = time.monotonic()
        self.metrics = Registry()
        self.background = Background(self.metrics)
        self.journal = Journal(node.state_dir / JOURNAL_NAME)
        self.control = ControlServer(node.control_socket, node.api.get("group", "lb"))
        self.store: ConfigStore = FileStore(node.state_dir)
        self.notifier = Notifier()
        self.attached: list[Attached] = []
        self.state, self.reason = "joining", ""
        self.engine: PacketEngine
        self.driver: EngineDriver
        self.neighbours: Neighbours
        # By segment, the networks in which this gateway has an address of its own.
        self.networks: dict[str, set[Network]] = {segment: set() for segment in node.segments}
        # By interface of the packet path, the gateway's own addresses there: no VIPs, none of the link's alone.
        self.own_addresses: dict[str, tuple[IpAddress, ...]] = {}
        # Every address that is the gateway's own → the interface it is on; those of the packet path come first.
        self.own_hosts: dict[str, str] = {}
        # What the last sweep over the connections found.
        self.census = Census()
        # The event loop's worst delay of late, in seconds.
        self.lag_s = 0.0
        # A cluster replaces these four: events are told to the peers, the ring has a view, the others tell which
        # addresses are theirs (→ the gateway's name), and a version of the configuration is waited for until it is in
        # force on all of them (→ the names of those where it is not in time).
        self.report: Callable[[Event], object] = self.record
        self.view: Callable[[], dict[str, Any] | None] = lambda: None
        self.told_addresses: Callable[[], Mapping[str, str]] = dict
        self.everywhere: Callable[[int], Awaitable[list[str]]] = _nowhere_else
        # And it follows a node file that names other gateways than before; ConfigError for one it cannot follow.
        self.take_peers: Callable[[NodeConfig], None] = lambda node: None
        self._address_watchers: list[Callable[[list[Address], float], None]] = []
        self._news = HealthNews()
        self.board = HealthBoard(node.node.id, self._share_alone, self._health_changed)

    @property
    def uptime_s(self) -> float:
        """Seconds since the start, whatever was done to the wall clock meanwhile."""
        return time.monotonic() - self._started

    @property
    def name(self) -> str:
        return self.node.node.name

    def use_board(self, share: Callable[[str, bytes | None], None]) -> None:
        """Findings of health checks are shared in another way from now on (over the ring)."""
        self.board = HealthBoard(self.node.node.id, share, self._health_changed)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """See `Background.spawn`."""
        self.background.spawn(work, name)

    def keep(self, work: Callable[[], Coroutine[Any, Any, Any]], name: str) -> None:
        """See `Background.keep`."""
        self.background.keep(work, name)

    def on_addresses(self, watcher: Callable[[list[Address], float], None]) -> None:
        """Whenever addresses have changed: what is on the interfaces, as of when (monotonic seconds)."""
        self._address_watchers.append(watcher)

    def addresses_changed(self, present: list[Address], as_of: float) -> None:
        """Tell all who watch the addresses."""
        for watcher in self._address_watchers:
            watcher(present, as_of)

    def record(self, event: Event) -> Event:
        """Writes an event, from here or from a peer, into this node's journal."""
        named = event if event.node else Event(**{**to_plain(event), "node": self.name})  # type: ignore[arg-type]
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
            "name": self.name,
            "id": self.node.node.id,
            "state": self.state,
            "reason": self.reason or None,
            "version": __version__,
            "uptime_s": self.uptime_s,
            "config_version": self.store.current.version,
            "loop_lag_ms": self.lag_s * 1000,
        }

    def gateway_addresses(self) -> dict[str, str]:
        """The addresses that are gateways' own, as far as they are known here → whose each is, in words."""
        told = {host: f"gateway {name}" for host, name in self.told_addresses().items()}
        own = {host: f"gateway {self.name} (on {interface})" for host, interface in self.own_hosts.items()}
        return told | ring_addresses(self.node) | own

    # --- health ------------------------------------------------------------------------------------------------------

    def health_of(self, config: ClusterConfig) -> dict[int, Health]:
        """What the packet path is to make of each checked backend of a configuration."""
        known = self.board.conditions()
        backends = [backend for service in config.services for backend in service.backends if backend.id in known]
        return {b.id: Health(known[b.id].alive, known[b.id].weight(b.weight)) for b in backends}

    def reach_vips(self, ready: bool | None) -> None:
        """Whether health checks can reach a VIP on one backend; see `HealthBoard.way_to_vips`."""
        if ready != self.board.reaches_vips:
            self.board.way_to_vips(ready)
            self.control.publish("health", {"kind": "targets.changed"})

    def _health_changed(self, changed: Mapping[int, Condition]) -> None:
        config = self.store.current
        self.driver.request(health=self.health_of(config))
        events = self._news.take(config, changed)
        # Every gateway agrees; one speaks.
        for event in events if self.board.leads else ():
            self.report(event)

    def _share_alone(self, key: str, value: bytes | None) -> None:
        self.board.shared(key, value)
