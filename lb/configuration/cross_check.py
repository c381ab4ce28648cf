# SPDX-License-Identifier: Apache-2.0
"""Faults of a configuration that no single field shows. Pure: values in, faults out."""

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from lb.configuration.model import ANY_PORT, ClusterConfig, HealthCheck, Service, Vip
from lb.configuration.node import NodeConfig, Resource, split_address

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """`path` in terms of the file (`("service", 0, "backend", 1, "port")`), the value found, what is wrong, and what
    is allowed."""

    path: Path
    value: object
    problem: str
    allowed: str


def check_cluster(config: ClusterConfig) -> list[Fault]:
    faults = list(_repeated("vip", [vip.host for vip in config.vips], "address", "every address once"))
    faults += _repeated("service", [service.name for service in config.services], "name", "every name once")
    endpoints = [_endpoint(service) for service in config.services]
    faults += _repeated("service", endpoints, "port", "every address, protocol and port once")
    for index, vip in enumerate(config.vips):
        faults += _at(("vip", index), _check_vip(vip))
    vips = {vip.host for vip in config.vips}
    for index, service in enumerate(config.services):
        faults += _at(("service", index), _check_service(service, vips))
    return faults


def _endpoint(service: Service) -> str:
    return f"{service.protocol} {service.ip} port {service.port or 'any'}"


def _repeated(table: str, keys: list[str], field: str, allowed: str) -> Iterator[Fault]:
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in first:
            yield Fault((table, index, field), key, f"already used by {table} number {first[key] + 1}", allowed)
        first.setdefault(key, index)


def _at(prefix: Path, faults: Iterable[Fault]) -> Iterator[Fault]:
    for fault in faults:
        yield Fault((*prefix, *fault.path), fault.value, fault.problem, fault.allowed)


def _check_vip(vip: Vip) -> Iterator[Fault]:
    interface = ipaddress.ip_interface(vip.address)
    ip, network = interface.ip, interface.network
    if ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_link_local:
        allowed = "a unicast address that clients can reach"
        yield Fault(("address",), vip.address, "cannot be shared by gateways", allowed)
    elif network.version == 4 and network.prefixlen < 31 and ip in (network.network_address, network.broadcast_address):
        yield Fault(("address",), vip.address, "is the address of its network or of all hosts", f"a host of {network}")
    yield from _check_routed(vip) if vip.is_routed else _check_on_segment(vip)
    if vip.pin and vip.prefer:
        yield Fault(("prefer",), list(vip.prefer), f"contradicts pin = {vip.pin!r}", "either pin or prefer")


def _check_on_segment(vip: Vip) -> Iterator[Fault]:
    if not vip.segment:
        allowed = 'the name of a segment, or announce = "route"'
        yield Fault(("segment",), vip.segment, "is needed", allowed)


def _check_routed(vip: Vip) -> Iterator[Fault]:
    network = ipaddress.ip_interface(vip.address).network
    if network.prefixlen != network.max_prefixlen:
        allowed = f"{vip.host}/{network.max_prefixlen}: routers learn the address alone"
        yield Fault(("address",), vip.address, "is announced as a route and has a network", allowed)
    # What says at which gateway a VIP is.
    for name in ("segment", "prefer", "pin", "sticky"):
        if value := getattr(vip, name):
            problem = "has no meaning for a VIP that every gateway in service holds"
            shown = list(value) if isinstance(value, tuple) else value
            yield Fault((name,), shown, problem, f'no {name}, or announce = "arp"')


def _check_service(service: Service, vips: set[str]) -> Iterator[Fault]:
    if str(service.ip) not in vips:
        known = ", ".join(sorted(vips)) or "none"
        yield Fault(
            ("address",), service.address, "is no VIP of this file", f"the address of a [[vip]] (there are: {known})"
        )
    if service.forward == "local":
        yield from _check_local(service)
    yield from _check_backends(service, vips)
    if service.health is not None:
        yield from _at(("health",), _check_health(service, service.health))


def _check_local(service: Service) -> Iterator[Fault]:
    if service.backends:
        yield Fault(("backend",), len(service.backends), "a local service is served by the gateways", "no backend")
    if service.scheduler not in ("maglev", "source"):
        yield Fault(("scheduler",), service.scheduler, "gateways can only be chosen by a hash", "maglev, source")


def _check_backends(service: Service, vips: set[str]) -> Iterator[Fault]:
    yield from _repeated(
        "backend", [backend.name for backend in service.backends], "name", "every name once in a service"
    )
    endpoints = [f"{backend.ip} port {service.port_of(backend)}" for backend in service.backends]
    yield from _repeated("backend", endpoints, "address", "every address and port once in a service")
    for index, backend in enumerate(service.backends):
        if str(backend.ip) in vips:
            yield Fault(("backend", index, "address"), backend.address, "is a VIP", "the server's own address")
        if service.forward == "nat" and backend.ip.version != service.ip.version:
            allowed = f'an IPv{service.ip.version} address, or forward = "tunnel"'
            yield Fault(("backend", index, "address"), backend.address, "nat cannot change the IP version", allowed)
        translates = backend.port not in (0, service.port)
        if translates and service.forward != "nat":
            allowed = f'0 or {service.port}, or forward = "nat"'
            yield Fault(("backend", index, "port"), backend.port, f"{service.forward} cannot change the port", allowed)
        elif translates and service.port == ANY_PORT:
            yield Fault(("backend", index, "port"), backend.port, "the service takes any port and keeps it", "0")


NEEDED_FIELD: dict[str, tuple[str, Callable[[HealthCheck], object]]] = {
    "script": ("command", lambda health: health.command),
    "dns": ("send", lambda health: health.send),
}


def _check_health(service: Service, health: HealthCheck) -> Iterator[Fault]:
    name, value_of = NEEDED_FIELD.get(health.kind, ("", lambda _: True))
    if not value_of(health):
        yield Fault((name,), value_of(health), "is empty", f"{health.kind} needs {name}")
    if health.kind in ("http", "https") and not health.path.startswith("/"):
        yield Fault(("path",), health.path, "is not absolute", "a path that starts with /")
    if health.timeout_ms > health.interval_ms:
        yield Fault(("timeout_ms",), health.timeout_ms, "is longer than the interval", f"at most {health.interval_ms}")
    portless = any(service.port_of(backend) == ANY_PORT for backend in service.backends)
    if health.kind not in ("icmp", "script") and not health.port and portless:
        yield Fault(("port",), 0, "the service takes any port, so there is none to try", "1 to 65535")


def check_node(config: NodeConfig) -> list[Fault]:
    faults = list(
        _repeated("interface", [interface.name for interface in config.interfaces], "name", "every interface once")
    )
    faults += _repeated("resource", [resource.name for resource in config.resources], "name", "every name once")
    faults += _check_ring(config)
    for index, resource in enumerate(config.resources):
        faults += _at(("resource", index), _check_resource(resource))
    return faults


def _check_ring(config: NodeConfig) -> Iterator[Fault]:
    if config.ring is None:
        if config.conntrack.replicate:
            yield Fault(("conntrack", "replicate"), True, "has nobody to replicate to", "false, or a [ring] with peers")
        return
    yield from _check_ring_addresses(("ring", "listen"), config.ring.listen)
    ids = {config.node.id: config.node.name}
    for name, peer in config.ring.peers.items():
        where = ("ring", "peers", name)
        if name == config.node.name:
            yield Fault(where, name, "is this node", "the other gateways")
        if peer.id in ids:
            yield Fault((*where, "id"), peer.id, f"is the number of {ids[peer.id]}", "a number of its own")
        ids.setdefault(peer.id, name)
        yield from _check_ring_addresses((*where, "addresses"), peer.addresses)


def _check_ring_addresses(path: Path, addresses: tuple[str, ...]) -> Iterator[Fault]:
    for index, text in enumerate(addresses):
        try:
            host, port = split_address(text)
            ipaddress.ip_address(host)
            usable = 0 < port < 65536
        except ValueError:
            usable = False
        if not usable:
            yield Fault((*path, index), text, "is no ring address", "address, address:port or [IPv6 address]:port")


RESOURCE_NEEDS = {
    "link": ("interface",),
    "ping": ("address",),
    "arp": ("interface", "address"),
    "process": ("process",),
    "unit": ("process",),
    "tcp": ("address", "port"),
    "script": ("command",),
}


def _check_resource(resource: Resource) -> Iterator[Fault]:
    for name in RESOURCE_NEEDS[resource.kind]:
        if not getattr(resource, name):
            yield Fault((name,), getattr(resource, name), "is empty", f"{resource.kind} needs {name}")
    if resource.timeout_ms > resource.interval_ms:
        yield Fault(
            ("timeout_ms",), resource.timeout_ms, "is longer than the interval", f"at most {resource.interval_ms}"
        )
