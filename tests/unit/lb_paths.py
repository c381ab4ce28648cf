# SPDX-License-Identifier: Apache-2.0
"""What tests of the daemon share: a node configuration in a directory of its own, and its BPF file system."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ebpf import libbpf
from ebpf.maps import Maps
from lb.configuration.node import Engine, Interface, Node, NodeConfig
from lb.engine.packet_path import open_path

SMALL = Engine(connections_max=65536, half_open_max=4096, sweep_interval_ms=200)


def node_config(directory: Path, *interfaces: str) -> NodeConfig:
    node = Node("gw1", 1, str(directory / "run"), str(directory / "state"))
    names = interfaces or ("lo",)
    return NodeConfig("test", node, tuple(Interface(name, "outside", "generic") for name in names), engine=SMALL)


@contextmanager
def opened_maps(node: NodeConfig) -> Iterator[Maps]:
    """The maps of a node, in a BPF file system that is gone afterwards."""
    maps = open_path(node)
    try:
        yield maps
    finally:
        maps.close()
        libbpf.unmount(node.bpffs)
