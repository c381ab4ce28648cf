# SPDX-License-Identifier: Apache-2.0
"""What a cluster of gateways looks like from outside: asked over the API of any gateway that answers."""

import http.client
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netlab import faults, gateway_files
from netlab.gateway_files import Scalar
from netlab.lab import Lab
from netlab.state import LabError
from netlab.waiting import eventually

SETTLE_S = 20.0


def others(lab: Lab, *names: str) -> list[str]:
    """The gateways but these."""
    return [gateway.name for gateway in lab.gateways if gateway.name not in names]


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
    """VIP (without prefix length) → name of the gateway that holds it, None while nobody does; those on segments."""
    rows = reachable(lab, "/v1/vips", but)
    return {row["address"].split("/")[0]: row["owner"] for row in rows if row["announce"] != "route"}


def owner(lab: Lab, vip: str, but: Iterable[str] = ()) -> str:
    name = owners(lab, but)[vip]
    if name is None:
        raise LabError(f"nobody holds {vip}")
    return name


def view(lab: Lab, node: str) -> tuple[int, set[str]]:
    """Number and gateways of the view that `node` has committed; (0, nobody) before the first."""
    seen = lab.api(node, "GET", "/v1/status")["view"]
    return (int(seen["number"]), set(seen["members"])) if seen else (0, set())


def members(lab: Lab, node: str) -> set[str]:
    """Gateways in the view that `node` has committed."""
    return view(lab, node)[1]


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


def place(lab: Lab, wanted: Mapping[str, str]) -> None:
    """Move VIPs (without prefix length) to gateways, and wait until they are there."""

    def placed() -> bool:
        held = owners(lab)
        astray = {vip: gateway for vip, gateway in wanted.items() if held[vip] != gateway}
        for vip, gateway in astray.items():
            lab.api(gateway, "POST", f"/v1/vips/{vip}/move", {"node": gateway})
        return not astray

    eventually(placed, SETTLE_S, f"the VIPs are at {wanted}")


def owner_of_all(lab: Lab) -> str:
    """The gateway that holds the clients' IPv4 VIP, and now every other one as well."""
    held = owner(lab, lab.topology.vip(4))
    place(lab, dict.fromkeys(owners(lab), held))
    return held


def last_event(lab: Lab, node: str) -> int:
    """The number of the newest line in a gateway's journal."""
    return max((row["id"] for row in lab.api(node, "GET", "/v1/events?limit=1")), default=0)


def moves(lab: Lab, node: str, after: int) -> set[tuple[str, str]]:
    """(VIP, why it moved) of what a gateway has noted since that line of its journal."""
    rows = lab.api(node, "GET", f"/v1/events?after={after}&limit=1000")
    return {(row["subject"], row["why"]) for row in rows if row["kind"] == "vip.moved"}


def settle(lab: Lab) -> None:
    """Until all gateways of the lab form one group, serve, and hold every VIP among them."""
    names = [gateway.name for gateway in lab.gateways]
    wait_for_members(lab, names)
    wait_in_service(lab, names)
    wait_for_owners(lab, names)


def revive(lab: Lab) -> None:
    """Undo every fault, start what has died, and wait until all are one cluster again."""
    faults.heal(lab)
    dead = [gateway.name for gateway in lab.gateways if not lab.daemon(gateway.name).alive()]
    for name in dead:
        lab.start_daemon(name, wait=False)
    for name in dead:
        lab.wait_ready(name)
    settle(lab)


def reconfigure(lab: Lab, ring_options: dict[str, Scalar], resources: Sequence[Mapping[str, Scalar]] = ()) -> None:
    """Give every gateway a new node file, with these resources added, and restart the daemons with it."""
    gateway_files.write_nodes(lab.name, lab.topology, lab.directory, ring_options, resources)
    for gateway in lab.gateways:
        faults.signal_daemon(lab, gateway.name, "kill")
    revive(lab)


def state_of(lab: Lab, node: str, asked: str) -> str:
    """A gateway's state as another one shows it."""
    rows = lab.api(asked, "GET", "/v1/nodes")
    return next(str(row["state"]) for row in rows if row["name"] == node)


def wait_for_ring_link(lab: Lab, node: str, segment: str, seconds: float = SETTLE_S) -> None:
    """Until a gateway reaches all others on a segment again."""
    for gateway in lab.gateways:
        if gateway.name != node:
            ping = ["ping", "-c", "1", "-W", "1", gateway.address(segment, 4)]
            eventually(lambda ping=ping: lab.run(node, ping), seconds, f"{node} reaches {gateway.name}")  # type: ignore[misc]
