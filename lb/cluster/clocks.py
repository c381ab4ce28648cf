# SPDX-License-Identifier: Apache-2.0
"""The gateways' wall clocks may disagree, by years if one was never set. Ownership, leases and membership do not depend
on them; what people read does."""

# Closer together than that, clocks agree: what is told is on its way for milliseconds, seconds on a bad day.
TOLERANCE_S = 5.0


def here(told: float, now: float) -> float:
    """When something happened that a gateway tells just as it happens, on this gateway's clock (Unix seconds)."""
    return told if abs(told - now) <= TOLERANCE_S else now
