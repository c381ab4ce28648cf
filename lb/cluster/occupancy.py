# SPDX-License-Identifier: Apache-2.0
"""Which VIPs somebody answers for: asked by a gateway that has started and found none of its peers.

Most often it is the one that is set up wrongly (another key, another version) or whose ring links are not plugged in,
and the others are well: what they hold it must not take from them. As soon as nobody answers for an address any more,
it takes it after all.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address

from lb.configuration.fields import IpAddress
from lb.configuration.model import Vip
from lb.network.announce import Segment, probe
from lb.network.netlink_messages import Link

# Three questions without an answer.
ASK_EVERY_S = 0.3
HEARD_S = 1.0
log = logging.getLogger("lb.vips")


class Occupancy:
    """Asks on interfaces (`links()`: by name, as they are now; `segments`: the segment of each) and hears answers."""

    def __init__(
        self,
        segments: Mapping[str, str],
        links: Callable[[], Mapping[str, Link]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = segments
        self._links = links
        self._clock = clock
        self._open: dict[str, Segment] = {}
        # By address: who answered, and when.
        self._heard: dict[str, tuple[str, float]] = {}

    def ask(self, vips: Iterable[Vip]) -> None:
        """Ask for each of these addresses on its segment; answers are there at the next call."""
        wanted = list(vips)
        self._listen()
        for name, link in self._links().items():
            here = [ip_address(vip.host) for vip in wanted if vip.segment == self._names.get(name)]
            if here and link.up and len(link.mac) == 6:
                try:
                    self._ask_on(name, link.mac, here)
                except OSError as error:
                    log.error("nobody can be asked on %s who has the VIPs: %s", name, error)
                    self._forget(name)

    def occupied(self) -> dict[str, str]:
        """Address → MAC address of somebody else who answers for it at present."""
        self._listen()
        now = self._clock()
        return {host: mac for host, (mac, at) in self._heard.items() if now - at < HEARD_S}

    def close(self) -> None:
        """Give the sockets back and forget what was heard."""
        for name in list(self._open):
            self._forget(name)
        self._heard.clear()

    def _ask_on(self, name: str, mac: bytes, addresses: list[IpAddress]) -> None:
        if name not in self._open:
            self._open[name] = Segment(name, mac)
        self._open[name].watch(addresses)
        self._open[name].send(probe(mac, address) for address in addresses)

    def _forget(self, name: str) -> None:
        segment = self._open.pop(name, None)
        if segment is not None:
            segment.close()

    def _listen(self) -> None:
        own = {link.mac for link in self._links().values()}
        for segment in self._open.values():
            for claim in segment.claims():
                if claim.mac not in own:
                    self._heard[str(claim.address)] = claim.mac.hex(":"), self._clock()
