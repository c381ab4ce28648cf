# SPDX-License-Identifier: Apache-2.0
"""What this host can do and what it lacks: the packet path's needs, then the processes'."""

from dataclasses import asdict
from typing import Any

from ebpf.probe import probe
from lb.api.routing import check_routing
from lb.api.settings import Settings
from lb.conntrack.kernel import ConntrackUnavailable, check_conntrack


def _conntrack() -> dict[str, Any]:
    try:
        found, remedy = check_conntrack(), None
    except ConntrackUnavailable as error:
        found, _, remedy = str(error).partition(": ")
    return {"name": "conntrack", "ok": remedy is None, "required": True, "detail": found, "remedy": remedy}


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
    if settings.replicates_conntrack:
        checks.append(_conntrack())
    return {"ok": all(check["ok"] or not check["required"] for check in checks), "checks": checks}
