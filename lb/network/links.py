# SPDX-License-Identifier: Apache-2.0
"""Which of the gateway's interfaces are up, told the moment the kernel knows."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from lb.network.netlink import Netlink
from lb.network.netlink_messages import Link
from lb.network.netlink_monitor import Monitor


class LinkWatch:
    """The state of named interfaces. `on_change` is called on the event loop when one of them changes.

    An interface that does not exist is simply absent from `links`: it may appear later.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, names: Iterable[str], on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._names = frozenset(names)
        self._on_change = on_change
        # The monitor first, then the dump: a change between the two is seen twice rather than never.
        self._monitor = Monitor(links=True)
        self._lost = 0
        self.links: dict[str, Link] = {}
        self._dump()
        loop.add_reader(self._monitor.fileno(), self._read)

    def close(self) -> None:
        """Stop watching."""
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(self._monitor.fileno())
        self._monitor.close()

    def up(self, name: str) -> bool:
        """Whether the interface exists, is administratively up and has carrier."""
        link = self.links.get(name)
        return link is not None and link.up

    def _dump(self) -> None:
        with Netlink() as kernel:
            self.links = {link.name: link for link in kernel.links() if link.name in self._names}

    def _read(self) -> None:
        before = dict(self.links)
        for change in self._monitor.read():
            link = change.object
            if isinstance(link, Link):
                self._apply(link, change.gone)
        if self._monitor.lost != self._lost:
            self._lost = self._monitor.lost
            self._dump()
        if self.links != before:
            self._on_change()

    def _apply(self, link: Link, gone: bool) -> None:
        for name, known in list(self.links.items()):
            # By index, so that a renamed interface does not live on under its old name.
            if known.index == link.index and (gone or name != link.name):
                del self.links[name]
        if not gone and link.name in self._names:
            self.links[link.name] = link
