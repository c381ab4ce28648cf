# SPDX-License-Identifier: Apache-2.0
"""What a cluster of gateways looks like from outside: asked over the API of any gateway that answers."""

import http.client
from collections.abc import Iterable
from typing import Any

from netlab.lab import Lab, eventually
from netlab.state import LabError

SETTLE_S = 20.0


def reachable(lab: Lab, path: str, but: Iterable[str] = ()) -> Any:
    """The answer of the first gateway whose daemon answers. `but`: gateways not to ask."""
    problems = []
    for gateway in lab.gateways:
        if gateway.name in but:
            continue
        try:
            return lab.api(gateway.name, "GET", path)
        except (LabError, OSError, http.client.HTTPException) as error:
            problems.append(f"{gateway.name}: {error}")
    raise LabError(f"no gateway answers {path}: {'; '.join(problems)}")


def owners(lab: Lab, but: Iterable[str] = ()) -> dict[str, str | None]:
    """VIP (without prefix length) → name of the gateway that holds it, None while nobody does."""
    return {row["address"].split("/")[0]: row["owner"] for row in reachable(lab, "/v1/vips", but)}


def owner(lab: Lab, vip: str, but: Iterable[str] = ()) -> str:
    name = owners(lab, but)[vip]
    if name is None:
        raise LabError(f"nobody holds {vip}")
    return name


def members(lab: Lab, node: str) -> set[str]:
    """Gateways in the view that `node` has committed."""
    view = lab.api(node, "GET", "/v1/status")["view"]
    return set(view["members"]) if view else set()


def wait_for_members(lab: Lab, names: Iterable[str], seconds: float = SETTLE_S) -> None:
    """Until each of these gateways sees exactly these gateways."""
    expected = set(names)
    for name in sorted(expected):
        eventually(lambda name=name: members(lab, name) == expected, seconds, f"{name} sees {sorted(expected)}")  # type: ignore[misc]


def wait_in_service(lab: Lab, names: Iterable[str], seconds: float = SETTLE_S) -> None:
    for name in names:
        eventually(
            lambda name=name: lab.api(name, "GET", "/v1/status")["state"] == "in_service",  # type: ignore[misc]
            seconds,
            f"{name} is in service",
        )


def wait_for_owners(lab: Lab, among: Iterable[str], seconds: float = SETTLE_S, but: Iterable[str] = ()) -> None:
    """Until every VIP is held by one of these gateways, in the eyes of a gateway that may be asked."""
    allowed = set(among)
    eventually(lambda: set(owners(lab, but).values()) <= allowed, seconds, f"every VIP is with one of {allowed}")


def settle(lab: Lab) -> None:
    """Until all gateways of the lab form one group, serve, and hold every VIP among them."""
    names = [gateway.name for gateway in lab.gateways]
    wait_for_members(lab, names)
    wait_in_service(lab, names)
    wait_for_owners(lab, names)
