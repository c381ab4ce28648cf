# SPDX-License-Identifier: Apache-2.0
"""What is wrong in the cluster right now, the worst first, from what the API shows. Pure: rows in, sentences out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.lbctl.output import duration

Rows = Sequence[Mapping[str, Any]]
LINES_MAX = 8
# Leases and takeovers do not mind; whoever compares logs does.
CLOCK_OFF_S = 5.0


def troubles(nodes: Rows, vips: Rows, services: Rows, backends: Rows) -> list[str]:
    """One sentence for each thing to look at, with the command that tells more; beyond LINES_MAX only how many."""
    found = [*_of_vips(vips), *_of_services(services, backends), *_of_nodes(nodes), *_of_backends(services, backends)]
    more = len(found) - LINES_MAX
    return found if more <= 0 else [*found[:LINES_MAX], f"and {more} more"]


def _of_vips(vips: Rows) -> Iterator[str]:
    unheld: dict[str, list[str]] = {}
    for row in vips:
        if not row["owners"]:
            unheld.setdefault(row.get("reason") or "see", []).append(row["address"])
    for reason, addresses in unheld.items():
        subject = f"VIP {addresses[0]} is" if len(addresses) == 1 else f"VIPs {', '.join(addresses)} are"
        yield f"{subject} held by nobody: {reason} (lbctl vips)"


def _is_dead(service: Mapping[str, Any]) -> bool:
    return bool(service["backend_count"] and not service["backends_up"])


def _of_services(services: Rows, backends: Rows) -> Iterator[str]:
    for service in filter(_is_dead, services):
        reasons = {row.get("reason") for row in backends if row["service"] == service["name"] and row.get("reason")}
        said = f": {'; '.join(sorted(map(str, reasons)))}" if reasons else ""
        yield f"service {service['name']} has no backend that is up{said} (lbctl backends {service['name']})"


def _of_nodes(nodes: Rows) -> Iterator[str]:
    for row in nodes:
        if row["state"] != "in_service":
            said = f": {row['reason']}" if row.get("reason") else ""
            yield f"gateway {row['name']} is {row['state'].replace('_', ' ')}{said} (lbctl nodes)"
    for row in nodes:
        offset = row.get("clock_offset_s") or 0.0
        if abs(offset) > CLOCK_OFF_S:
            where = "ahead of" if offset > 0 else "behind"
            yield f"the clock of gateway {row['name']} is {duration(abs(offset))} {where} this one's: set the wrong one"


def _of_backends(services: Rows, backends: Rows) -> Iterator[str]:
    told = {service["name"] for service in services if _is_dead(service)}
    for row in backends:
        if row["state"] in ("down", "unresolved") and row["service"] not in told:
            name = f"{row['service']}/{row['name']}"
            yield f"backend {name} is {row['state']}: {row.get('reason') or 'see'} (lbctl backends)"
