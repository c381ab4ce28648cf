# SPDX-License-Identifier: Apache-2.0
"""The audit log: one JSON line for each change asked for, refused ones included, with who asked and from where."""

import json
import os
import time
from pathlib import Path
from typing import Any

from lb.api.access import Identity

FILE_BYTES_MAX = 8 << 20
FILES_KEPT = 5
VALUE_LENGTH_MAX = 512


def shortened(value: Any) -> Any:
    """A request as it goes into the log: long texts (whole configurations) are cut, their length kept."""
    if isinstance(value, str) and len(value) > VALUE_LENGTH_MAX:
        return f"{value[:VALUE_LENGTH_MAX]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    return value


class AuditLog:
    """Appends to path; turns it over at FILE_BYTES_MAX and keeps FILES_KEPT old ones (path.1 the newest)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, identity: Identity, action: str, request: dict[str, Any], outcome: str, took_ms: float) -> None:
        """One line, on disk when this returns. Raises OSError: a change that cannot be recorded must not go unseen."""
        line = {
            "time": round(time.time(), 3),
            **identity.as_caller(),
            "action": action,
            "request": shortened(request),
            "outcome": outcome,
            "took_ms": round(took_ms, 1),
        }
        self._turn_over()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            os.write(fd, json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def _turn_over(self) -> None:
        if not self.path.exists() or self.path.stat().st_size < FILE_BYTES_MAX:
            return
        for number in range(FILES_KEPT, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            if newer.exists():
                newer.replace(older)
