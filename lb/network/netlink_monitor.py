# SPDX-License-Identifier: Apache-2.0
"""What changes in the kernel's tables of links, addresses and neighbours, as it happens.

Everything is about the network namespace the process (or thread) was in when the monitor was made.
"""

import select
import socket

from lb.network import netlink_messages as wire
from lb.network.netlink_messages import Change
from sync import rtnetlink

MONITOR_BUFFER_BYTES = 1 << 20
# More messages than this in one read of a monitor are left for the next one, so that the caller's loop goes on.
MONITOR_BATCH_MAX = 1024


class Monitor:
    """Notifications of changes to links, addresses and neighbours; non-blocking, for an event loop's reader.

    `lost` counts the times the kernel dropped notifications because nobody read them in time: dump again then.
    """

    def __init__(self, *, links: bool = False, addresses: bool = False, neighbours: bool = False) -> None:
        groups = links * wire.GROUP_LINK | neighbours * wire.GROUP_NEIGH
        groups |= addresses * (wire.GROUP_IPV4_ADDR | wire.GROUP_IPV6_ADDR)
        self._socket = rtnetlink.open_socket(groups)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MONITOR_BUFFER_BYTES)
        self.lost = 0

    def fileno(self) -> int:
        """For `loop.add_reader`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def read(self) -> list[Change]:
        """What has changed since the last read, oldest first; empty when nothing has."""
        changes: list[Change] = []
        for data in rtnetlink.told(self._socket, self._overrun):
            for kind, _, body in rtnetlink.messages(data):
                change = wire.parse_change(kind, body)
                if change is not None:
                    changes.append(change)
            if len(changes) >= MONITOR_BATCH_MAX:
                break
        return changes

    def _overrun(self) -> None:
        self.lost += 1

    def wait(self, timeout_s: float) -> bool:
        """Block until something can be read or the time is over; for threads, not for an event loop."""
        return bool(select.select([self._socket], [], [], timeout_s)[0])
