# SPDX-License-Identifier: Apache-2.0
"""What this host can do and what it lacks: the packet path's needs, then the processes'."""

from dataclasses import asdict
from typing import Any

from ebpf.probe import probe
from lb.api.routing import check_routing
from lb.api.settings import Settings


def examine(settings: Settings, vips: list[dict[str, Any]]) -> dict[str, Any]:
    """As of shapes.Doctor; `vips` as of shapes.Vip, as far as they are known. Blocks: it asks the kernel, and tries
    what it can try without a trace."""
    checks = [asdict(check) for check in probe(settings.interfaces)]
    checks.append(
        {
            "name": "control socket",
            "ok": settings.control_socket.exists(),
            "required": True,
            "detail": str(settings.control_socket),
            "remedy": None if settings.control_socket.exists() else "systemctl start lbd",
        }
    )
    checks += check_routing(vips)
    return {"ok": all(check["ok"] or not check["required"] for check in checks), "checks": checks}
