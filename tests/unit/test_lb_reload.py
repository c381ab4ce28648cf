# SPDX-License-Identifier: Apache-2.0
"""What of a node file is followed without a restart."""

from dataclasses import replace

from lb.configuration.node import Engine, Interface, Node, NodeConfig, Peer, Ring
from lb.configuration.reload import needs_restart, peer_changes

PEERS = {"gw2": Peer(2, ("10.0.1.2",)), "gw3": Peer(3, ("10.0.1.3", "10.0.2.3"))}
RING = Ring(("10.0.1.1",), "/etc/rainlb/ring.key", peers=PEERS)
NODE = NodeConfig("demo", Node("gw1", 1), (Interface("eth0", "outside"),), ring=RING)


def with_ring(**changes: object) -> NodeConfig:
    return replace(NODE, ring=replace(RING, **changes))  # type: ignore[arg-type]


def test_peers_alone_are_followed() -> None:
    other = with_ring(peers={"gw2": Peer(2, ("10.0.1.22",)), "gw4": Peer(4, ("10.0.1.4",))})
    assert needs_restart(NODE, other) == []
    assert peer_changes(NODE, other) == [
        "- gateway gw3 (id 3)",
        "+ gateway gw4 (id 4, 10.0.1.4)",
        "~ gateway gw2: (id 2, 10.0.1.2) → (id 2, 10.0.1.22)",
    ]
    assert peer_changes(NODE, NODE) == []


def test_everything_else_is_named_as_the_file_names_it() -> None:
    assert needs_restart(NODE, NODE) == []
    other = replace(with_ring(listen=("10.0.1.9",), peers={}), engine=Engine(connections_max=1024), cluster="other")
    assert needs_restart(NODE, other) == ["cluster", "engine", "ring.listen"]
    assert needs_restart(NODE, replace(NODE, interfaces=(Interface("eth1", "outside"),))) == ["interface"]
    alone = replace(NODE, ring=None)
    assert needs_restart(NODE, alone) == needs_restart(alone, NODE) == ["ring"]
    assert needs_restart(alone, alone) == peer_changes(alone, alone) == []
