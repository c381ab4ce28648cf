# SPDX-License-Identifier: Apache-2.0
"""The ring's settings, from what the operator wrote into the node file."""

from pathlib import Path

from lb.configuration.node import ConfigError, NodeConfig
from sync.config import ConfigError as RingConfigError
from sync.config import Mode, Policy, RingConfig
from sync.driver import peer_paths
from sync.key_file import KeyFileError, load_key_file
from sync.transport.effects import PeerConfig

BEACON_MS = 250.0
_MODES = {"consistent": Mode.CONSISTENT, "fast": Mode.FAST}
_POLICIES = {"continue": Policy.ALL, "majority": Policy.MAJORITY, "critical": Policy.CRITICAL}


def peers_of(node: NodeConfig) -> dict[int, PeerConfig]:
    """The other gateways and how to reach them. Raises ConfigError."""
    ring = node.ring
    assert ring is not None
    try:
        return {peer.id: peer_paths(ring.listen, peer.addresses) for peer in ring.peers.values()}
    except ValueError as error:
        raise _refusal("ring.peers", error) from None


def ids_of(node: NodeConfig) -> dict[str, int]:
    """The numbers of all gateways that belong to the cluster, by name."""
    peers = node.ring.peers if node.ring is not None else {}
    return {name: peer.id for name, peer in peers.items()} | {node.node.name: node.node.id}


def ring_config(node: NodeConfig) -> RingConfig:
    """The ring's settings from the node file. Raises ConfigError, also for what is wrong with the key file."""
    try:
        return _ring_config(node)
    except (KeyFileError, RingConfigError) as error:
        raise _refusal("ring", error) from None


def _refusal(path: str, error: Exception) -> ConfigError:
    return ConfigError([{"path": path, "problem": str(error), "text": f"{path}: {error}"}])


def _ring_config(node: NodeConfig) -> RingConfig:
    ring = node.ring
    assert ring is not None
    return RingConfig(
        node=node.node.id,
        peers=peers_of(node),
        cluster=node.cluster,
        keys=load_key_file(Path(ring.key_file)),
        encrypt=ring.encrypt,
        failure_detection_ms=float(ring.failure_detection_ms),
        beacon_ms=max(BEACON_MS, float(ring.failure_detection_ms)),
        mode=_MODES[ring.mode],
        policy=_POLICIES[ring.partition_policy],
    )
