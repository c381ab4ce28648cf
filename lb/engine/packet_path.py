# SPDX-License-Identifier: Apache-2.0
"""Brings the packet path into the kernel, sees that it stays there, and takes it out. Everything here blocks."""

import contextlib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ebpf import libbpf, loader, probe_path
from ebpf.layout import AddressFlag
from ebpf.maps import LayoutMismatchError, Maps, MapsMissingError
from ebpf.probe import CLOCK_REMEDY, clock_offset_s
from lb.configuration.fields import IpAddress
from lb.configuration.node import NodeConfig
from lb.engine.packet_engine import read_addresses
from lb.network.netlink import Netlink

PROGRAM_STAMP = "program.digest"


@dataclass(frozen=True, slots=True)
class Attached:
    """An interface with the packet path on it, and the kernel's id of the program."""

    name: str
    mode: str
    program: int


def open_path(node: NodeConfig) -> Maps:
    """The pinned maps of this node, made if they are missing. Raises loader.LoaderError, LayoutMismatchError."""
    if clock_offset_s():
        raise loader.LoaderError("clock", f"the monotonic clock is {clock_offset_s()} s off the kernel's", CLOCK_REMEDY)
    loader.ensure_bpffs(node.bpffs)
    sizes = {"connections": node.engine.connections_max, "half_open": node.engine.half_open_max}
    return loader.create_maps(node.pins / "maps", sizes)


def attach_path(node: NodeConfig) -> list[Attached]:
    """Puts this version's program on every interface; takes some seconds if it has to be compiled.

    A program that runs already is replaced in one step, without a gap. Raises loader.LoaderError.
    """
    digest, stamp = source_digest(), node.run_dir / PROGRAM_STAMP
    is_current = loader.current_programs(node.pins) is not None and _read_stamp(stamp) == digest
    if not is_current:
        loader.load_programs(node.pins)
    attached = []
    for interface in node.interfaces:
        done = loader.attach(interface.name, node.pins, loader.Mode(interface.xdp))
        attached.append(Attached(done.interface, str(done.mode), done.program))
    _prepare_kernel(node)
    loader.drop_old_versions(node.pins)
    stamp.write_text(digest)
    return attached


def _prepare_kernel(node: NodeConfig) -> None:
    """What the kernel does with the packets it is left with.

    Translated packets whose next hop is unknown go through the kernel, from an address that may be its own. Unless it
    accepts that, it drops such answers as forged: a gateway that holds the addresses of both sides, and that nobody has
    asked by ARP yet because it took over by announcement, would answer nobody.

    In a cluster it answers from VIPs that another gateway holds (see `deliver_locally`): in their name no ARP may
    leave, or neighbours would take this gateway for the holder.
    """
    names = {interface.name for interface in node.interfaces}
    with Netlink() as netlink:
        for link in netlink.links():
            if link.name in names:
                netlink.accept_own_sources(link.index, loosely=_setting(link.name, "rp_filter") == 1)
                if node.ring is not None:
                    netlink.keep_arp_apart(link.index, ignore=max(1, _setting(link.name, "arp_ignore")))


def _setting(interface: str, name: str) -> int:
    """An IPv4 setting of an interface; of its own value and that for all interfaces the greater counts."""
    places = [Path(f"/proc/sys/net/ipv4/conf/{place}/{name}") for place in ("all", interface)]
    return max(int(place.read_text()) for place in places)


def deliver_locally(wanted: Iterable[IpAddress]) -> None:
    """Makes packets to these addresses, and no others, ones for the kernel of this gateway, whoever holds them."""
    addresses = set(wanted)
    with Netlink() as netlink:
        present = netlink.delivered_locally()
        for address in addresses - present:
            netlink.deliver_locally(address)
        for address in present - addresses:
            netlink.deliver_no_longer(address)


def release_held(node: NodeConfig) -> list[str]:
    """Takes the VIPs that a daemon left behind off the interfaces, for a removal without a daemon; returns them."""
    try:
        maps = Maps.open(node.pins / "maps")
    except (MapsMissingError, LayoutMismatchError):
        return []
    # Every VIP, not only those marked as held: a daemon may have ended between the address and the mark.
    vips = read_addresses(maps, AddressFlag.VIP)
    maps.close()
    released = []
    with Netlink() as netlink:
        for address in netlink.addresses():
            if str(address.interface.ip) in vips:
                netlink.delete_address(address.index, address.interface)
                released.append(str(address.interface.ip))
    return sorted(released)


def source_digest() -> str:
    """Changes with everything that the compiled program depends on in this package."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(loader.__file__).parent.iterdir()):
        if path.suffix in (".c", ".h") or path.name in ("compile.py", "layout.py", "maps.py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _read_stamp(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def detach_path(node: NodeConfig) -> list[str]:
    """Takes the program off every interface and forgets maps and connections; returns the interfaces it was on."""
    names = [interface.name for interface in node.interfaces if loader.detach(interface.name, node.pins)]
    probe_path.detach([interface.name for interface in node.interfaces], node.pins)
    deliver_locally(())
    loader.remove(node.pins)
    (node.run_dir / PROGRAM_STAMP).unlink(missing_ok=True)
    # The kernel puts files of its own into a BPF file system; only directories are gateways.
    if libbpf.is_bpffs(node.bpffs) and not any(path.is_dir() for path in node.bpffs.iterdir()):
        with contextlib.suppress(OSError):  # mounted by the service manager, outside of our mount namespace
            libbpf.unmount(node.bpffs)
    return names


def lost_interfaces(attached: list[Attached]) -> list[str]:
    """Interfaces without our program: taken off by hand, displaced, or made anew. An absent interface is not listed."""
    lost = []
    for each in attached:
        with contextlib.suppress(loader.LoaderError):
            if loader.query(each.name).program != each.program:
                lost.append(each.name)
    return lost
