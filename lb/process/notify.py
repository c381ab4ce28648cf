# SPDX-License-Identifier: Apache-2.0
"""Tells systemd how the daemon is (sd_notify(3)); silent where nobody listens."""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """One datagram per message to $NOTIFY_SOCKET, which may be a path or, with a leading @, an abstract name."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        self.watchdog_interval_s = _watchdog_interval(environment)

    def _send(self, text: str) -> None:
        if self._socket is None:
            return
        self._socket.setblocking(False)
        # The service manager restarting or being slow must not stop the daemon.
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(), self._address)

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def reloading(self) -> None:
        """Followed by `ready` when the reload is over."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _watchdog_interval(environment: Mapping[str, str]) -> float:
    """Half of the time after which the service manager would restart us; 0: it does not watch, or not us."""
    try:
        usec = int(environment.get("WATCHDOG_USEC", "0"))
        pid = int(environment.get("WATCHDOG_PID", "0"))
    except ValueError:
        return 0.0
    return usec / 2e6 if usec > 0 and pid in (0, os.getpid()) else 0.0
