# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that a group of users may connect to."""

import grp
import logging
import os
import socket
from pathlib import Path

SOCKET_MODE = 0o660
log = logging.getLogger("lb.process")


def unix_listener(path: Path, group: str, backlog: int) -> socket.socket:
    """A listening socket at path, 0660 root:group. It appears complete, replacing an older process's in one step."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(fresh))
    fresh.chmod(SOCKET_MODE)
    try:
        os.chown(fresh, -1, grp.getgrnam(group).gr_gid)
    except (KeyError, PermissionError) as error:
        log.warning("%s belongs to its creator's group, not to '%s': %s", path, group, error)
    listener.listen(backlog)
    fresh.rename(path)
    return listener
