# SPDX-License-Identifier: Apache-2.0
"""One request to a gateway's API over its socket, as anyone's script makes it."""

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from netlab.state import LabError

TIMEOUT_S = 20.0


def request(gateway: Path, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    """What the gateway with this folder answers; LabError with what it said unless the status is 2xx.

    `body` is text, or something that is sent as JSON.
    """
    connection = _UnixConnection(gateway / "run" / "api.sock")
    text = body if body is None or isinstance(body, str) else json.dumps(body)
    connection.request(method, path, text, headers or ({"Content-Type": "application/json"} if text else {}))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status >= 300:
        said = content[:1000].decode(errors="replace")
        raise LabError(f"{gateway.name}: {method} {path}: {response.status} {said}")
    return content


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("lab", timeout=TIMEOUT_S)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))
