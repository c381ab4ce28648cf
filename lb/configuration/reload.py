# SPDX-License-Identifier: Apache-2.0
"""What of a node file can be changed while the gateway runs: the other gateways of the ring. Pure."""

from dataclasses import fields
from typing import Any

from lb.configuration.node import NodeConfig, Peer


def needs_restart(old: NodeConfig, new: NodeConfig) -> list[str]:
    """The keys of the file, other than `ring.peers`, whose values differ: they are read at a start only."""
    changed = [_key(item) for item in fields(NodeConfig) if item.name != "ring" and _differ(old, new, item.name)]
    if old.ring is None or new.ring is None:
        return changed + (["ring"] if old.ring is not new.ring else [])
    parts = [item.name for item in fields(old.ring) if item.name != "peers"]
    return changed + [f"ring.{name}" for name in parts if _differ(old.ring, new.ring, name)]


def _key(item: Any) -> str:
    return str(item.metadata.get("key") or item.name)


def _differ(old: object, new: object, name: str) -> bool:
    return bool(getattr(old, name) != getattr(new, name))


def peer_changes(old: NodeConfig, new: NodeConfig) -> list[str]:
    """What changes of `ring.peers`, in words; empty if nothing does."""
    before, after = _peers(old), _peers(new)
    gone = [f"- gateway {name} (id {before[name].id})" for name in before if name not in after]
    come = [f"+ gateway {name} {_told(peer)}" for name, peer in after.items() if name not in before]
    kept = [name for name, peer in after.items() if name in before and peer != before[name]]
    return gone + come + [f"~ gateway {name}: {_told(before[name])} → {_told(after[name])}" for name in kept]


def _peers(node: NodeConfig) -> dict[str, Peer]:
    return node.ring.peers if node.ring is not None else {}


def _told(peer: Peer) -> str:
    return f"(id {peer.id}, {', '.join(peer.addresses)})"
