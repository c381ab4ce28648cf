# SPDX-License-Identifier: Apache-2.0
"""How fit this gateway is, and what it tells the others of itself."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from lb import __version__
from lb.cluster.in_force import InForce
from lb.cluster.ownership import NODE_PREFIX, NodeFacts, pack
from lb.cluster.placement import Standing
from lb.cluster.resources import Resources
from lb.cluster.routed_vips import RoutedVips
from lb.cluster.state import ClusterState
from lb.cluster.steering import LocalLink, tunnel_end
from lb.configuration.fields import IpAddress
from lb.configuration.node import NodeConfig
from lb.connections.replication import Replication
from lb.conntrack.replication import ConntrackReplication
from lb.network.links import LinkWatch
from sync.driver import Ring

# Of a gateway's own addresses; those on the interfaces of the packet path come first, and are the dangerous ones.
ADDRESSES_TOLD_MAX = 256
STATE_NAMES = {
    Standing.READY: "in_service",
    Standing.DRAINED: "draining",
    Standing.JOINING: "joining",
    Standing.IMPAIRED: "impaired",
    Standing.OUT: "out_of_service",
}
NOT_SERVING = "the partition policy takes this part of the cluster out of service"


class OwnNode:
    """Standing and facts of this gateway. `set_state(state, reason)` tells the daemon; `addresses()` are its own, by
    interface of the packet path, and `own_hosts()` all of them."""

    def __init__(
        self,
        node: NodeConfig,
        started_at: float,
        ring: Ring,
        state: ClusterState,
        resources: Resources,
        in_force: InForce,
        set_state: Callable[[str, str], None],
        links_changed: Callable[[bool], None],
        addresses: Callable[[], Mapping[str, tuple[IpAddress, ...]]],
        own_hosts: Callable[[], Iterable[str]],
    ) -> None:
        self._node = node
        self._started_at = started_at
        self._ring = ring
        self._state = state
        self._resources = resources
        self._in_force = in_force
        self._set_state = set_state
        self._links_changed = links_changed
        self._addresses = addresses
        self._own_hosts = own_hosts
        self._published: NodeFacts | None = None
        self._segments = {interface.name: interface.segment for interface in node.interfaces}
        self.links = LinkWatch(asyncio.get_running_loop(), self._segments, self._watch_links)
        self._up = self._up_now()
        self.replication: Replication | None = None
        self.conntrack: ConntrackReplication | None = None
        self.routed: RoutedVips | None = None
        self.stopping = False

    def local_links(self) -> list[LocalLink]:
        """This gateway's interfaces as the packet path's steering needs them."""
        return [LocalLink(link.index, self._segments[name], link.mac) for name, link in self.links.links.items()]

    def standing(self) -> Standing:
        """How fit this gateway is; an operator's drain is shared data of its own and not in here."""
        if self._resources.failed or not self._resources.settled or self.stopping or not self._state.serving:
            return Standing.OUT
        if len(self._up) < len(self._segments):
            return Standing.IMPAIRED
        return Standing.JOINING if self._missing() else Standing.READY

    def reason(self) -> str:
        """Why it is not simply in service; empty when it is."""
        view = self._state.view
        if self._resources.failed:
            return f"required resource failed: {', '.join(self._resources.failed)}"
        if not self._resources.settled:
            return "required resources have not been tried yet"
        if self._state.shut_out:
            return f"critical resource failed, so it has left the ring: {', '.join(self._resources.critical_failed)}"
        if self._state.struck_off:
            return "the other gateways do not name it in [ring.peers] any more: stop it, or name it there and reload"
        if view is not None and not view.serving:
            return NOT_SERVING
        if len(self._up) < len(self._segments):
            return f"down: {', '.join(sorted(self._segments.keys() - self._up))}"
        if missing := self._missing():
            return missing
        return "drained by an operator" if self._state.node in self._state.drained else ""

    def _missing(self) -> str:
        """What this gateway needs before it serves and does not have yet, in words; empty when it has everything."""
        if self.replication is None or not self.replication.complete:
            return "the connection table is not complete yet"
        if self.conntrack is not None and not self.conntrack.complete:
            return "the conntrack table is not complete yet"
        # One that serves goes on serving while a change is on its way to its packet path.
        if not self._told_ready and not self._in_force.is_current:
            return "the packet path does not have the cluster's configuration yet"
        return ""

    @property
    def _told_ready(self) -> bool:
        """Whether it has told the others that it is ready since it joined them."""
        told = self._published
        return told is not None and (told.standing, told.joined_in) == (Standing.READY, self._state.joined_in)

    def facts(self) -> NodeFacts:
        """What this gateway tells the others of itself."""
        links = self.links.links
        return NodeFacts(
            name=self._node.node.name,
            standing=int(self.standing()),
            reason=self.reason(),
            segments=tuple(sorted({self._segments[name] for name in self._up})),
            macs=tuple((segment, links[name].mac) for name, segment in self._segments.items() if name in links),
            tunnel_address=self._tunnel_end(),
            version=__version__,
            config_version=self._in_force.config.version,
            started_at=self._started_at,
            route_problem=self.routed.problem if self.routed is not None else "",
            addresses=tuple(islice(self._own_hosts(), ADDRESSES_TOLD_MAX)),
            joined_in=self._state.joined_in,
        )

    def _tunnel_end(self) -> str:
        ring = self._node.ring
        return tunnel_end(ring.listen if ring is not None else (), self._addresses())

    def publish(self, *, anew: bool = False) -> NodeFacts:
        """Tell the daemon and, when they have changed (or `anew`), the others."""
        facts = self.facts()
        drained = self._state.node in self._state.drained and facts.standing == Standing.READY
        self._set_state(STATE_NAMES[Standing.DRAINED if drained else Standing(facts.standing)], facts.reason)
        if (anew or facts != self._published) and self._state.view is not None:
            before, self._published = self._published, facts
            key = f"{NODE_PREFIX}{self._state.node}"
            if before is not None and _is_awaited(facts) != _is_awaited(before):
                self._ring.data.hasten(key, pack(facts))
            else:
                self._ring.data[key] = pack(facts)
        return facts

    def close(self) -> None:
        """Stop watching the links."""
        self.links.close()

    def _up_now(self) -> frozenset[str]:
        return frozenset(name for name in self._segments if self.links.up(name))

    def _watch_links(self) -> None:
        before, self._up = self._up, self._up_now()
        self._links_changed(bool(self._up - before))


def _is_awaited(facts: NodeFacts) -> tuple[object, ...]:
    """What of a gateway's facts somebody waits for: clients, for who has which address; an operator, for a change to be
    in force."""
    return facts.standing, facts.segments, facts.config_version
