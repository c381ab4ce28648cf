# SPDX-License-Identifier: Apache-2.0
"""Which addresses of this host are its own: there before rainlb, and not rainlb's to take, to give up or to delete.

What rainlb puts on an interface carries its mark (IFA_PROTO), so that the kernel itself remembers, over restarts of
the daemon, whose it is. Kernels before 5.18 have no such mark: there what is configured as a VIP counts as ours.
"""

import os
import re
from collections.abc import Collection, Iterable

from lb.configuration.fields import IpAddress
from lb.network.netlink_messages import Address

MARKS_SINCE = (5, 18)


def has_marks(release: str) -> bool:
    """Whether a kernel of that release (`uname -r`) remembers who has made an address."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is not None and (int(found[1]), int(found[2])) >= MARKS_SINCE


def own(present: Iterable[Address], vips: Collection[IpAddress], *, marks: bool | None = None) -> list[Address]:
    """Those of the addresses `present` that are the host's own. `marks`: as `has_marks`, None: of this kernel."""
    if has_marks(os.uname().release) if marks is None else marks:
        return [address for address in present if not address.is_ours]
    return [address for address in present if address.interface.ip not in vips]
