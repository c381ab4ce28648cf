# SPDX-License-Identifier: Apache-2.0
"""Whether there is somebody to announce the VIPs that are announced as routes."""

import os
from pathlib import Path
from typing import Any

# What /proc calls the programs that take addresses from the kernel and tell other routers: BIRD, FRR, GoBGP, OpenBGPD,
# ExaBGP under either of its names.
ROUTING_DAEMONS = frozenset({"bird", "bird6", "zebra", "bgpd", "ospfd", "ospf6d", "isisd", "gobgpd", "exabgp"})


def check_routing(vips: list[dict[str, Any]], proc: Path = Path("/proc")) -> list[dict[str, Any]]:
    """Checks as of shapes.Check; none unless a VIP (rows as of shapes.Vip) is announced as a route."""
    if not any(row.get("announce") == "route" for row in vips):
        return []
    found = sorted({name for pid, name in _programs(proc) if name in ROUTING_DAEMONS and _is_beside_us(proc / pid)})
    remedy = "apt-get install bird2; what to configure: docs/operations.md, 'Beyond one segment'"
    return [
        {
            "name": "routing daemon",
            "ok": bool(found),
            "required": False,
            "detail": f"runs: {', '.join(found)}" if found else "none runs, and VIPs are to be announced as routes",
            "remedy": None if found else remedy,
        }
    ]


def _programs(proc: Path) -> list[tuple[str, str]]:
    found = []
    for directory in proc.iterdir():
        if directory.name.isdigit():
            try:
                found.append((directory.name, (directory / "comm").read_text().strip()))
            except OSError:
                continue  # ended meanwhile
    return found


def _is_beside_us(process: Path) -> bool:
    """Whether a process is in our network namespace; one that may not be asked counts as there."""
    try:
        return os.readlink(process / "ns" / "net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return True
