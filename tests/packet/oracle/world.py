# SPDX-License-Identifier: Apache-2.0
"""A configuration rich enough to reach every branch, as plain values, and its way into the maps."""

import ipaddress
import random
from dataclasses import dataclass, field

import numpy as np

from ebpf import layout
from ebpf.layout import AddressFlag, Method, NodeFlag, Replicate, Scheduler, ServiceFlag, Setting, TargetFlag
from ebpf.maps import Maps

TCP, UDP = 6, 17
NO_FLAGS = ServiceFlag(0)
SELF, BY_MAC, BY_TUNNEL, GONE = 1, 2, 3, 4
TABLE_SLOTS = 257
STEERING_SLOTS = layout.TABLE_SLOTS_DEFAULT
# Destination, the interface it leaves by ("": the kernel keeps it), MAC address of the next hop (None: not resolved).
Route = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str, bytes | None]


def packed(address: str) -> bytes:
    """16 bytes, IPv4 mapped."""
    return bytes(layout.pack_address(address))


@dataclass(slots=True)
class Target:
    id: int
    address: bytes
    port: int = 0
    flags: TargetFlag = TargetFlag.ALIVE | TargetFlag.RESOLVED
    mtu: int = 0
    vlan: int = 0
    egress: str = "lan"
    mac: bytes = b""
    source_mac: bytes = b"\x02\x00\x00\x00\x00\x01"
    nat_next: int = 0


@dataclass(slots=True)
class Service:
    id: int
    address: bytes
    port: int
    protocol: int
    method: Method
    scheduler: Scheduler = Scheduler.MAGLEV
    flags: ServiceFlag = NO_FLAGS
    replicate: Replicate = Replicate.ESTABLISHED
    persistence_s: int = 0
    targets: list[Target] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


@dataclass(slots=True)
class World:
    """All that an operator and the ring decide, plus how frames get out of this host."""

    seeds: tuple[int, int]
    flags: Setting
    services: dict[int, Service]
    targets: dict[int, Target]
    service_of_target: dict[int, int]
    steering: list[int]
    vips: dict[bytes, AddressFlag]
    own: set[bytes]
    tunnel_source4: bytes
    tunnel_vary4: int
    tunnel_source6: bytes
    tunnel_vary6: int
    node_address: dict[int, bytes]
    members: set[int]
    peer_mac: dict[bytes, int]
    peer_address: dict[bytes, int]
    node_path: tuple[bytes, bytes]
    # The kernel's routing table, longest prefix first.
    routes: list[Route]
    route_source_mac: dict[str, bytes]
    route_mtu: dict[str, int]
    ifindex: dict[str, int]
    epoch: int = 1


MAGLEV, ROUND, LEAST, SOURCE = (
    Scheduler.MAGLEV,
    Scheduler.ROUND_ROBIN,
    Scheduler.LEAST_CONNECTIONS,
    Scheduler.SOURCE,
)
REMEMBER, RECHOOSE, STEERED = ServiceFlag.REMEMBER_NEW, ServiceFlag.RECHOOSE_DEAD, ServiceFlag.STEERED
UNRESOLVED = TargetFlag.ALIVE


def _services() -> list[Service]:
    v4, v6 = packed("10.100.0.1"), packed("fd00:100::1")
    nat4, nat6, any4 = packed("10.100.0.5"), packed("fd00:100::5"), packed("10.100.0.2")
    services = [
        Service(1, v4, 80, TCP, Method.TUNNEL),
        Service(2, v6, 80, TCP, Method.TUNNEL, flags=RECHOOSE),
        Service(3, any4, 0, TCP, Method.DSR, SOURCE),
        Service(4, v6, 53, UDP, Method.DSR, ROUND, REMEMBER),
        Service(5, nat4, 80, TCP, Method.NAT, flags=REMEMBER),
        Service(6, nat4, 53, UDP, Method.NAT, flags=REMEMBER | RECHOOSE),
        Service(7, nat6, 443, TCP, Method.NAT, ROUND, REMEMBER, persistence_s=100_000),
        Service(8, nat6, 0, UDP, Method.NAT, flags=REMEMBER, replicate=Replicate.ALL),
        Service(9, v4, 22, TCP, Method.LOCAL, flags=STEERED),
        Service(10, v6, 4500, UDP, Method.LOCAL, flags=STEERED),
        Service(11, bytes(16), 0, 0, Method.LOCAL, flags=STEERED),
        Service(12, v4, 53, UDP, Method.DSR, LEAST, REMEMBER, replicate=Replicate.NONE),
        Service(13, v4, 81, TCP, Method.DSR),
        Service(14, v4, 82, TCP, Method.TUNNEL),
        Service(15, v4, 443, UDP, Method.TUNNEL),
        Service(16, v4, 83, TCP, Method.DSR, flags=RECHOOSE),
        Service(17, nat4, 8000, TCP, Method.NAT, flags=REMEMBER | STEERED),
    ]
    ids = iter(range(1, 500))

    def give(service: int, addresses: list[str], **options: object) -> None:
        for address in addresses:
            target = Target(next(ids), packed(address), **options)  # type: ignore[arg-type]
            target.mac = b"\x02\xbb" + target.id.to_bytes(4, "big")
            services[service - 1].targets.append(target)

    give(1, ["10.2.0.11", "10.2.0.12", "10.2.0.13", "fd00:2::14"])
    give(2, ["fd00:2::11", "fd00:2::12", "10.2.0.15"], egress="wan")
    give(3, ["10.2.0.21", "10.2.0.22", "10.2.0.23"])
    give(4, ["fd00:2::21", "fd00:2::22"], vlan=0x2064)
    give(5, ["10.2.0.31", "10.2.0.32", "10.2.0.33"], port=8080)
    give(6, ["10.2.0.31", "10.2.0.32"])
    give(7, ["fd00:2::31", "fd00:2::32", "fd00:2::33"], port=8443)
    give(8, ["fd00:2::31", "fd00:2::32"])
    give(12, ["10.2.0.41", "10.2.0.42", "10.2.0.43"], flags=TargetFlag.ALIVE | TargetFlag.RESOLVED | TargetFlag.COUNTED)
    give(13, ["10.2.0.51", "fd00:2::51"])
    give(15, ["10.2.0.61", "fd00:2::61"], mtu=600)
    give(16, ["10.2.0.71", "10.2.0.72", "10.2.0.99"], flags=UNRESOLVED)
    give(17, ["10.2.0.31"], port=8080)
    give(17, ["10.2.0.99"], port=8080, flags=UNRESOLVED)
    return services


def links_of(interface: str, router: bytes, four: str, six: str) -> list[Route]:
    """An interface's networks: nobody but the router answers there, the kernel keeps what is for itself or for all."""
    return [
        (ipaddress.ip_network(network), egress, mac)
        for network, egress, mac in (
            (f"{four}.254/32", interface, router),
            (f"{four}.0/32", "", None),
            (f"{four}.1/32", "", None),
            (f"{four}.255/32", "", None),
            (f"{four}.0/24", interface, None),
            (f"{six}::fe/128", interface, router),
            (f"{six}::/128", "", None),
            (f"{six}::1/128", "", None),
            (f"{six}::/64", interface, None),
        )
    ]


def make(rng: random.Random, ifindex: dict[str, int], route_source_mac: dict[str, bytes]) -> World:
    """The world of a run; `ifindex` of `wan` and `lan`, and their own MAC addresses."""
    services = {service.id: service for service in _services()}
    targets = {target.id: target for service in services.values() for target in service.targets}
    for service in services.values():
        if service.targets:
            service.slots = [rng.choice(service.targets).id for _ in range(TABLE_SLOTS)]
            # Some slots differ from an earlier table: connections there may live elsewhere.
            service.slots = [slot | (layout.SLOT_MOVED if rng.random() < 0.2 else 0) for slot in service.slots]
    held, vip = AddressFlag.VIP | AddressFlag.HELD, AddressFlag.VIP
    own_end, peer_end = rng.choice((("172.16.0.1", "10.2.0.3"), ("fd00:99::1", "fd00:2::3")))
    world = World(
        seeds=(rng.getrandbits(64), rng.getrandbits(64)),
        flags=Setting.ANY_PORT | Setting.NAT | Setting.ROUTED | Setting.STEERING | Setting.RECORDS,
        services=services,
        targets=targets,
        service_of_target={target.id: service.id for service in services.values() for target in service.targets},
        steering=[rng.choice((SELF, SELF, BY_MAC, BY_TUNNEL, GONE)) for _ in range(STEERING_SLOTS)],
        vips={
            packed("10.100.0.1"): held,
            packed("fd00:100::1"): held,
            packed("10.100.0.2"): vip,
            packed("10.100.0.5"): held,
            packed("fd00:100::5"): vip,
        },
        own={packed("10.1.0.1"), packed("fd00:1::1")},
        tunnel_source4=bytes([172, 16, 0, 1]),
        tunnel_vary4=0xFFFF,
        tunnel_source6=packed("fd00:99::1"),
        tunnel_vary6=0xFFFFFF,
        node_address={
            SELF: packed(own_end),
            BY_MAC: packed("10.2.0.2"),
            BY_TUNNEL: packed(peer_end),
            GONE: packed("10.2.0.4"),
        },
        members={SELF, BY_MAC, BY_TUNNEL},
        peer_mac={b"\x02\xee\x00\x00\x00\x02": BY_MAC},
        peer_address={packed("172.16.0.3"): BY_TUNNEL, packed("fd00:99::3"): BY_TUNNEL},
        node_path=(b"\x02\xee\x00\x00\x00\x02", b"\x02\xee\x00\x00\x00\x01"),
        routes=[
            (ipaddress.ip_network("10.2.0.99/32"), "lan", None),
            (ipaddress.ip_network("10.2.0.0/24"), "lan", b"\x02\xcc\x00\x00\x00\x02"),
            (ipaddress.ip_network("fd00:2::/64"), "lan", b"\x02\xcc\x00\x00\x00\x02"),
            *links_of("wan", b"\x02\xcc\x00\x00\x00\x01", "10.1.0", "fd00:1"),
            *links_of("lan", b"\x02\xcc\x00\x00\x00\x02", "10.20.0", "fd00:20"),
            (ipaddress.ip_network("0.0.0.0/0"), "wan", b"\x02\xcc\x00\x00\x00\x01"),
            (ipaddress.ip_network("::/0"), "wan", b"\x02\xcc\x00\x00\x00\x01"),
        ],
        route_source_mac=route_source_mac,
        route_mtu={"wan": 1400, "lan": 1500},
        ifindex=ifindex,
    )
    _chain_nat_targets(world)
    return world


def nat_endpoints(world: World) -> dict[tuple[bytes, int, int], int]:
    """(address, port, protocol) of nat backends -> first target id of that endpoint."""
    first: dict[tuple[bytes, int, int], int] = {}
    for service in world.services.values():
        if service.method is Method.NAT:
            for target in service.targets:
                first.setdefault((target.address, target.port or service.port, service.protocol), target.id)
    return first


def _chain_nat_targets(world: World) -> None:
    seen: dict[tuple[bytes, int, int], Target] = {}
    for service in world.services.values():
        if service.method is Method.NAT:
            for target in service.targets:
                key = (target.address, target.port or service.port, service.protocol)
                if key in seen:
                    seen[key].nat_next = target.id
                seen[key] = target


def install(maps: Maps, world: World) -> None:
    """Writes everything; called again after a change, as a daemon would."""
    endpoints, ids = np.zeros(len(world.services), layout.ENDPOINT), np.zeros(len(world.services), "u4")
    for row, service in enumerate(world.services.values()):
        endpoints[row] = (np.frombuffer(service.address, "u1"), service.port, service.protocol, 0)
        ids[row] = service.id
        _install_service(maps, service)
    maps.services.update(endpoints, ids)
    for target in world.targets.values():
        _install_target(maps, world, target)
    for (address, port, protocol), target_id in nat_endpoints(world).items():
        key = np.zeros((), layout.ENDPOINT)
        key["address"], key["port"], key["protocol"] = np.frombuffer(address, "u1"), port, protocol
        maps.nat_return.set(key, target_id)
    _install_cluster(maps, world)
    maps.change_settings(
        hash_seed=world.seeds,
        flags=int(world.flags),
        node=SELF,
        tunnel_source4=np.frombuffer(world.tunnel_source4, "u1"),
        tunnel_vary4=world.tunnel_vary4,
        tunnel_source6=np.frombuffer(world.tunnel_source6, "u1"),
        tunnel_vary6=world.tunnel_vary6,
    )
    settings = maps.settings.get(0)
    assert settings is not None
    world.epoch = int(settings["epoch"])


def _install_service(maps: Maps, service: Service) -> None:
    value = np.zeros((), layout.SERVICE)
    value["address"] = np.frombuffer(service.address, "u1")
    for name in ("port", "protocol", "method", "scheduler", "replicate", "flags", "persistence_s"):
        value[name] = int(getattr(service, name))
    value["table_slots"] = len(service.slots)
    maps.service_table.set(service.id, value)
    maps.replace_table(service.id, np.array(service.slots, np.uint16))


def _install_target(maps: Maps, world: World, target: Target) -> None:
    value, service = np.zeros((), layout.TARGET), world.services[world.service_of_target[target.id]]
    value["address"] = np.frombuffer(target.address, "u1")
    value["mac"], value["source_mac"] = np.frombuffer(target.mac, "u1"), np.frombuffer(target.source_mac, "u1")
    value["ifindex"], value["port"], value["service"] = world.ifindex[target.egress], target.port, service.id
    value["flags"], value["method"], value["mtu"] = int(target.flags), int(service.method), target.mtu
    value["weight"], value["nat_next"], value["vlan"] = 1, target.nat_next, target.vlan
    maps.targets.set(target.id, value)


def _install_cluster(maps: Maps, world: World) -> None:
    for address, flags in world.vips.items():
        _set_address(maps, address, flags)
    for address in world.own:
        _set_address(maps, address, AddressFlag.OWN)
    maps.lease.set(0, 1 << 62)
    for node, address in world.node_address.items():
        entry = np.zeros((), layout.NODE_ENTRY)
        entry["address"], entry["flags"] = np.frombuffer(address, "u1"), NodeFlag.MEMBER * (node in world.members)
        maps.nodes.set(node, entry)
    path, path_key = np.zeros((), layout.NODE_PATH), np.zeros((), layout.NODE_PATH_KEY)
    path_key["ifindex"], path_key["node"] = world.ifindex["wan"], BY_MAC
    path["mac"], path["source_mac"] = (np.frombuffer(mac, "u1") for mac in world.node_path)
    maps.node_paths.set(path_key, path)
    for mac, node in world.peer_mac.items():
        key = np.zeros((), layout.MAC_KEY)
        key["mac"] = np.frombuffer(mac, "u1")
        maps.peer_macs.set(key, node)
    for address, node in world.peer_address.items():
        maps.peer_addresses.set(np.frombuffer(address, layout.ADDRESS_KEY), node)
    maps.replace_table(layout.STEERING_TABLE, np.array(world.steering, np.uint16))


def _set_address(maps: Maps, address: bytes, flags: AddressFlag) -> None:
    entry = np.zeros((), layout.ADDRESS_ENTRY)
    entry["flags"] = int(flags)
    maps.addresses.set(np.frombuffer(address, layout.ADDRESS_KEY), entry)
