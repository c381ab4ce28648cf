# SPDX-License-Identifier: Apache-2.0
"""Who else uses the addresses of this gateway: claims of hosts that belong to no gateway, each told of once."""

import time
from collections.abc import Callable

from lb.network.announce import Claim

# A claim is a stranger's when it comes again after this time and still from nobody in the cluster: right after a start
# the members' addresses are not known yet.
STRANGER_AFTER_S = 0.5
SUSPECTS_MAX = 1024


class Strangers:
    """Judges claims to addresses that this gateway holds. `on_stranger(address, mac, interface)` is called for hosts
    outside the cluster."""

    def __init__(self, on_stranger: Callable[[str, str, str], None]) -> None:
        self._on_stranger = on_stranger
        self._suspected: dict[tuple[str, str], float] = {}
        self._reported: set[tuple[str, str]] = set()
        # Nobody is called a stranger before the members are known.
        self.judging = False
        self.member_macs: frozenset[bytes] = frozenset()

    def heard(self, interface: str, claim: Claim) -> None:
        """Somebody claims an address that is held here."""
        if claim.mac in self.member_macs or not self.judging:
            return
        key, now = (str(claim.address), claim.mac.hex(":")), time.monotonic()
        if len(self._suspected) >= SUSPECTS_MAX:
            self._suspected.clear()
        if now - self._suspected.setdefault(key, now) >= STRANGER_AFTER_S and key not in self._reported:
            self._reported.add(key)
            self._on_stranger(*key, interface)
