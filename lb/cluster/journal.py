# SPDX-License-Identifier: Apache-2.0
"""What the cluster writes into the journals: events told to all over the ring, and lines every gateway derives itself.

Changes of ownership and of the view are seen by every gateway in the same order, so each writes them for itself. What
only one gateway knows (a resource, a duplicate address, an operator's command) it tells the others. Times are those of
the gateway whose journal it is where clocks disagree.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from time import time

from lb.cluster.clocks import here
from lb.cluster.ownership import NOBODY, Holding, reason_text
from lb.events import Event, pack_event, unpack_event, vip_duplicate, vip_put_back
from sync.driver import Ring
from sync.events import Deliver, View

CHANNEL_EVENTS = 17
log = logging.getLogger("lb.cluster")


class ClusterJournal:
    """`record(event)` writes into this gateway's journal; `name(node)` is what people call a node."""

    def __init__(
        self, own_name: str, ring: Ring, record: Callable[[Event], object], name: Callable[[int], str]
    ) -> None:
        self._own_name = own_name
        self._ring = ring
        self._record = record
        self._name = name
        ring.subscribe(CHANNEL_EVENTS, self._told)

    def tell(self, event: Event) -> None:
        """An event of this gateway, for all journals; into its own at least, if the ring takes nothing."""
        named = replace(event, node=event.node or self._own_name, time=event.time or time())
        told = self._ring.view is not None and self._ring.offer(CHANNEL_EVENTS, pack_event(named), bulk=False)
        if not told:
            self._record(named)

    def tell_config(self, kind: str, text: str) -> None:
        """Something happened to the shared configuration here."""
        self.tell(Event(kind, text, severity="warning"))

    def duplicate(self, address: str, mac: str, interface: str) -> None:
        """A host outside the cluster uses one of its addresses."""
        self.tell(vip_duplicate(address, mac, interface))

    def put_back(self, address: str, interface: str) -> None:
        """Somebody had taken an address off this gateway that it holds."""
        self.tell(vip_put_back(address, interface))

    def merged(self) -> None:
        """This gateway's group gave up its state for another group's."""
        self._record(Event("cluster.merged", "this gateway's group was merged into another and took over its state"))

    def holding(self, address: str, before: Holding | None, after: Holding | None) -> str | None:
        """An address changed hands; returns the reason, None when the owner is the same."""
        owner, was = after.owner if after else NOBODY, before.owner if before else NOBODY
        if owner == was:
            return None
        reason = after.reason if after else "removed"
        text = f"{address} is at {self._name(owner)}"
        text += f" (was at {self._name(was)})" if was else ""
        text += f": {reason_text(reason)}"
        node = self._name(owner) if owner else ""
        severity = "info" if owner or after is None else "error"
        who = after.who if after else ""
        self._record(Event("vip.moved", text, node=node, subject=address, why=reason, who=who, severity=severity))
        return reason

    def view(self, before: View | None, view: View) -> None:
        """A view was committed."""
        left = sorted(set(before.members) - set(view.members)) if before is not None else []
        came = sorted(set(view.members) - set(before.members)) if before is not None else []
        text = f"view {view.number}: {self._names(sorted(view.members))}"
        text += f"; left: {self._names(left)}" if left else ""
        text += f"; joined: {self._names(came)}" if came else ""
        text += "" if view.serving else "; out of service by the partition policy"
        severity = "warning" if left or not view.serving else "info"
        self._record(Event("view.changed", text, subject=f"view {view.number}", severity=severity))

    def _names(self, nodes: list[int]) -> str:
        return ", ".join(self._name(node) for node in nodes)

    def _told(self, batch: Deliver) -> None:
        for payload in batch.payloads():
            try:
                event = unpack_event(bytes(payload))
                self._record(replace(event, time=here(event.time, time())))
            except ValueError as error:
                log.warning("node %d: %s", batch.origin, error)
