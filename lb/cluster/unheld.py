# SPDX-License-Identifier: Apache-2.0
"""Why nobody holds an address, or not everybody announces it: what each gateway lacks for it. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any


def why_unheld(segment: str, gateways: Iterable[Mapping[str, Any]]) -> str:
    """In words, for an address on a segment; `gateways` as `nodes` shows them. Empty if one could take it."""
    by_lack: dict[str, list[str]] = {}
    for gateway in gateways:
        by_lack.setdefault(_lack(segment, gateway), []).append(str(gateway["name"]))
    if "" in by_lack:
        return ""
    if by_lack.keys() == {_no_link(segment)}:
        return f"no gateway has a link that is up on segment {segment}: is it the `segment` of an `[[interface]]`?"
    lacking = "; ".join(f"{', '.join(names)} {lack}" for lack, names in by_lack.items())
    return f"no gateway can hold it: {lacking}"


def why_unannounced(gateways: Iterable[Mapping[str, Any]], problems: Mapping[str, str]) -> str:
    """In words, for addresses announced as routes: what keeps which gateway from it. `problems`: by gateway, what it
    has met with while trying. Empty if nothing does."""
    lacks = {str(gateway["name"]): problems.get(str(gateway["name"])) or _unfit(gateway) for gateway in gateways}
    return "; ".join(f"{name} {lack}" for name, lack in lacks.items() if lack)


def _unfit(gateway: Mapping[str, Any]) -> str:
    state = str(gateway["state"])
    if state == "in_service":
        return ""
    reason = f" ({gateway['reason']})" if gateway.get("reason") else ""
    return f"{state.replace('_', ' ')}{reason}"


def _lack(segment: str, gateway: Mapping[str, Any]) -> str:
    if gateway["state"] in ("gone", "out_of_service"):
        return _unfit(gateway)
    return "" if segment in gateway["segments"] else _no_link(segment)


def _no_link(segment: str) -> str:
    return f"without a link that is up on segment {segment}"
