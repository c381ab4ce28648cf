# SPDX-License-Identifier: Apache-2.0
"""From the addresses in a configuration to the transport's paths."""

from collections.abc import Sequence

from .sockets import datagram_max, parse_address
from .transport.effects import Path, PeerConfig


def peer_paths(listen: Sequence[str], addresses: Sequence[str], *, parallel: bool = False) -> PeerConfig:
    """How to reach a peer: its n-th address over our n-th link, surplus addresses over the last link.

    Raises AddressError for what is no address, ValueError if the link has another address family.
    """
    links = [parse_address(text) for text in listen]
    paths = []
    for index, text in enumerate(addresses):
        address = parse_address(text)
        link = min(index, len(links) - 1)
        if len(links[link]) != len(address):
            raise ValueError(f"{text} is of another address family than {listen[link]}, over which it would be reached")
        paths.append(Path(link, address, datagram_max(links[link], address)))
    return PeerConfig(tuple(paths), parallel)
