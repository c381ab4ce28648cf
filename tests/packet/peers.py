# SPDX-License-Identifier: Apache-2.0
"""A gateway that has a peer: who is a member, how it is reached, and whom the steering table names."""

from __future__ import annotations

import numpy as np
from scapy.packet import Packet

from ebpf import layout
from ebpf.layout import Method, NodeFlag, ServiceFlag, Setting
from tests.packet import gateway as g
from tests.packet.frames import PORT, VIP4

PEER, PEER_MAC = 2, "02:00:00:00:00:02"
OWN_TUNNEL, PEER_TUNNEL = "198.51.100.254", "198.51.100.2"
LOCAL = g.Service(1, VIP4, PORT, g.TCP, Method.LOCAL, flags=ServiceFlag.STEERED)


def make_cluster(gateway: g.Gateway) -> None:
    """Two members; every new connection belongs to the peer by the table."""
    gateway.flags(Setting.STEERING)
    for node, end in ((g.NODE, OWN_TUNNEL), (PEER, PEER_TUNNEL)):
        set_member(gateway, node, True, end)
    path, key = np.zeros((), layout.NODE_PATH), np.zeros((), layout.NODE_PATH_KEY)
    path["mac"], path["source_mac"] = g.mac_bytes(PEER_MAC), g.mac_bytes(g.GATEWAY_MAC)
    key["ifindex"], key["node"] = g.LOOPBACK, PEER
    gateway.maps.node_paths.set(key, path)
    mac = np.zeros((), layout.MAC_KEY)
    mac["mac"] = g.mac_bytes(PEER_MAC)
    gateway.maps.peer_macs.set(mac, PEER)
    gateway.maps.peer_addresses.set(layout.pack_address(PEER_TUNNEL).view(layout.ADDRESS_KEY), PEER)
    steer_all_to(gateway, PEER)
    gateway.put_service(LOCAL)


def steer_all_to(gateway: g.Gateway, node: int) -> None:
    gateway.maps.replace_table(layout.STEERING_TABLE, np.full(layout.TABLE_SLOTS_DEFAULT, node, np.uint16))
    gateway.settings()


def steer_half(gateway: g.Gateway) -> None:
    slots = np.resize(np.array([g.NODE, PEER], np.uint16), layout.TABLE_SLOTS_DEFAULT)
    gateway.maps.replace_table(layout.STEERING_TABLE, slots)
    gateway.settings()


def set_member(gateway: g.Gateway, node: int, member: bool, tunnel_end: str = "") -> None:
    entry = np.zeros((), layout.NODE_ENTRY)
    entry["flags"] = int(NodeFlag.MEMBER) if member else 0
    if tunnel_end:
        entry["address"] = layout.pack_address(tunnel_end)
    gateway.maps.nodes.set(node, entry)


def from_peer(packet: Packet) -> bytes:
    copy = packet.copy()
    copy.src = PEER_MAC
    return bytes(copy)


def serve_nat(gateway: g.Gateway) -> None:
    backend = g.Backend(1, "198.51.100.1", 8080, g.backend_mac(1))
    flags = ServiceFlag.REMEMBER_NEW | ServiceFlag.STEERED
    gateway.put_service(g.Service(3, VIP4, 81, g.TCP, Method.NAT, [backend], flags=flags))
