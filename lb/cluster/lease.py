# SPDX-License-Identifier: Apache-2.0
"""The node's lease in the kernel: until when the packet path may answer for the VIPs it holds.

Written at every visit of the token, dozens of times a second for as long as the daemon lives, so the buffers of the
system call are made once.
"""

import time

import numpy as np

from ebpf import libbpf
from ebpf.map_access import Map


class KernelLease:
    """Writes the lease; times are seconds of CLOCK_MONOTONIC, the clock of the packet path."""

    def __init__(self, target: Map) -> None:
        self._fd = target.fd
        self._key = np.zeros(1, target.spec.key)
        self._value = np.zeros(1, target.spec.value)
        self._key_at, self._value_at = self._key.ctypes.data, self._value.ctypes.data
        self.until = 0.0

    def renew(self, until: float) -> None:
        """Answer until then, and not longer."""
        self.until = until
        self._value[0] = int(until * 1e9)
        libbpf.update(self._fd, self._key_at, self._value_at)

    def runs(self) -> bool:
        """Whether this gateway may answer now."""
        return self.until > time.monotonic()

    def end(self) -> None:
        """Answer no more."""
        self.renew(0.0)
