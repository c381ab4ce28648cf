# SPDX-License-Identifier: Apache-2.0
"""Which gateways belong to the cluster, and what becomes of those that belong to it no more."""

from lb.cluster.ownership import DRAIN_PREFIX, NODE_PREFIX, RESTART_PREFIX
from lb.cluster.ring_settings import ids_of, peers_of
from lb.cluster.state import ClusterState
from lb.configuration.node import NodeConfig
from lb.events import Event
from sync.driver import Ring


def take_peers(ring: Ring, state: ClusterState, node: NodeConfig) -> None:
    """The node file names other gateways than before. Raises ConfigError, and nothing is changed then."""
    peers = peers_of(node)
    state.take_ids(ids_of(node))
    ring.set_peers(peers)


def forget_strangers(ring: Ring, state: ClusterState) -> None:
    """What gateways that are gone for good have told, or were told to do, is forgotten; the coordinator deletes it."""
    state.forget_names()
    if state.coordinator != state.node or not state.complete:
        return
    for node in state.strangers():
        for prefix in (NODE_PREFIX, DRAIN_PREFIX, RESTART_PREFIX):
            if f"{prefix}{node}" in ring.data:
                del ring.data[f"{prefix}{node}"]


def struck_off(name: str) -> Event:
    """The others do not name this gateway any more."""
    text = "the other gateways do not name it in [ring.peers] any more: it has left the ring and holds nothing"
    return Event("node.struck_off", text, subject=name, severity="warning")
