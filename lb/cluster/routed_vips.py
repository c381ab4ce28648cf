# SPDX-License-Identifier: Apache-2.0
"""VIPs announced as routes on a gateway of a cluster: it holds them while it is one of those that serve.

Nobody hands them on to anybody: each member sees from the replicated state alone whether it is one of the holders.
"""

from collections.abc import Callable

from lb.cluster.ownership import Cluster, announces
from lb.cluster.placement import Standing
from lb.configuration.model import ClusterConfig
from lb.events import Event
from lb.gateway import Gateway
from lb.network.routes import RouteAnnouncer


class RoutedVips:
    """Announces and withdraws this gateway's. For `entitled` see RouteAnnouncer."""

    def __init__(self, gateway: Gateway, entitled: Callable[[], bool], tell: Callable[[Event], object]) -> None:
        self._gateway = gateway
        self._node = gateway.node.node.id
        self._announcer = RouteAnnouncer(gateway.node, gateway.driver.settled, entitled, tell)
        self._leaving = False

    @property
    def problem(self) -> str:
        """Why what should be announced here is not; empty while all is well."""
        return self._announcer.problem

    def start(self, config: ClusterConfig) -> None:
        """What an earlier daemon announced stays announced until the cluster's state is known."""
        self._announcer.start(self._fit(config))

    async def close(self) -> None:
        """Stop; what is announced stays for as long as the kernel lends it."""
        await self._announcer.close()

    def follow(self, cluster: Cluster, own: Standing, config: ClusterConfig) -> None:
        """Hold what follows from the cluster's state and this gateway's standing."""
        holds = announces(cluster, self._node, own) and not self._leaving
        self._announcer.want(self._fit(config) if holds else frozenset())

    def _fit(self, config: ClusterConfig) -> frozenset[str]:
        """Those that are no gateway's own address by mistake."""
        return frozenset(vip.host for vip in config.routed_vips) - self._gateway.gateway_addresses().keys()

    def withdraw(self) -> None:
        """Announce nothing until the next `follow`."""
        self._announcer.want(frozenset())

    async def leave(self, wait_s: float) -> None:
        """Withdraw for good, and give the routers time to send their packets elsewhere while this gateway serves."""
        self._leaving = True
        await self._announcer.leave(wait_s)
