# SPDX-License-Identifier: Apache-2.0
"""The cluster's configuration: shown, compared with a wanted one, changed."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lb.configuration import validate
from lb.configuration.advice import advice
from lb.configuration.change import Change, IdentitiesExhausted, diff
from lb.configuration.document import document, toml_text
from lb.configuration.model import ClusterConfig
from lb.configuration.node import ConfigError
from lb.configuration.store import VersionConflict
from lb.control import Caller, ControlError
from lb.engine.packet_engine import EngineError
from lb.events import Event
from lb.gateway import Gateway
from lb.methods.params import Params, int_param, text_param

NEXT_HOPS_SECONDS = 0.3
CHANGES_IN_EVENT_MAX = 5
FORWARDING = {
    4: Path("/proc/sys/net/ipv4/ip_forward"),
    6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


def get(gateway: Gateway, _params: Params, _caller: Caller) -> dict[str, Any]:
    """`config.get`: the current configuration, as a document and as a cluster file."""
    config = gateway.store.current
    content = document(config)
    return {"version": config.version, "document": content, "text": toml_text(content)}


async def difference(gateway: Gateway, params: Params, _caller: Caller) -> dict[str, Any]:
    """`config.diff`: what a cluster file would change, and what to mind about it."""
    wanted = await _validated(gateway, params)
    config = gateway.store.current
    return {"version": config.version, "changes": _plain(diff(config, wanted)), "warnings": warnings(gateway, wanted)}


async def apply_request(gateway: Gateway, params: Params, caller: Caller) -> dict[str, Any]:
    """`config.apply`: make a cluster file the current configuration, if it still is the version that was looked at."""
    version = params.get("if_version")
    if version is not None:
        version = int_param(params, "if_version", 0, 1 << 62)
    form = params.get("format", "toml")
    text, source = text_param(params, "text"), str(params.get("source") or "request")
    return await apply_text(gateway, text, form, source, version, caller)


async def apply_text(
    gateway: Gateway, text: str, form: str, source: str, version: int | None, caller: Caller
) -> dict[str, Any]:
    """Validates a cluster file and makes it the current configuration. Raises ConfigError or ControlError."""
    wanted = await _validated(gateway, {"text": text, "format": form, "source": source})
    return await apply(gateway, wanted, version, caller)


async def _validated(gateway: Gateway, params: Params) -> ClusterConfig:
    form = params.get("format", "toml")
    if form not in ("toml", "json"):
        raise ControlError("bad_request", f"unknown format {form!r}", field="format", remedy="toml or json")
    source = str(params.get("source") or "request")[:256]
    text = params.get("text")
    if not isinstance(text, str):
        raise ControlError("bad_request", "parameter text must be a text", field="text")
    try:
        return await asyncio.to_thread(
            validate.cluster_config, text, source, form, gateway_addresses=_not_for_vips(gateway)
        )
    except ConfigError as error:
        first = error.problems[0]
        raise ControlError("invalid", str(error), field=first["path"] or None, remedy=_remedy(first)) from None


def _not_for_vips(gateway: Gateway) -> dict[str, str]:
    """The addresses that no VIP may have. A VIP whose address a gateway has got later is warned about instead: it must
    not be in the way of another change."""
    present = {vip.host for vip in gateway.store.current.vips}
    return {host: whose for host, whose in gateway.gateway_addresses().items() if host not in present}


def _remedy(problem: dict[str, Any]) -> str | None:
    return f"allowed: {problem['allowed']}" if problem["allowed"] else None


async def apply(gateway: Gateway, wanted: ClusterConfig, version: int | None, caller: Caller) -> dict[str, Any]:
    """Makes a validated configuration the current one, and waits until every gateway's packet path has it.

    A gateway that takes too long is warned about. Raises ControlError.
    """
    old = gateway.store.current
    changes = diff(old, wanted)
    notes = warnings(gateway, wanted)
    if version is not None and version != old.version:
        raise _conflict(VersionConflict(version, old.version))
    if not changes and old.version:
        return {"version": old.version, "changes": [], "warnings": notes}
    try:
        new = await gateway.store.apply(wanted, version, caller)
        await gateway.driver.settled()
        # Who is told "applied" may send at once: neighbours answer in well under a millisecond, or are not there.
        await gateway.neighbours.settled(NEXT_HOPS_SECONDS)
        await gateway.driver.settled()
        late = await gateway.everywhere(new.version)
    except VersionConflict as error:
        raise _conflict(error) from None
    except IdentitiesExhausted as error:
        raise ControlError("invalid", str(error)) from None
    except OSError as error:
        remedy = f"see whether {gateway.node.state_dir} is writable and has room"
        raise ControlError("unavailable", f"the configuration cannot be kept: {error}", remedy=remedy) from None
    except EngineError as error:
        raise ControlError("unavailable", str(error), remedy="see `lbctl events` and the daemon's journal") from None
    gateway.report(
        Event("config.applied", _in_short(new.version, changes), subject=f"version {new.version}", who=caller.who)
    )
    notes += [f"{name} does not have it in its packet path yet: see `lbctl nodes` and `lbctl events`" for name in late]
    return {"version": new.version, "changes": _plain(changes), "warnings": notes}


def _conflict(error: VersionConflict) -> ControlError:
    return ControlError(
        "version_mismatch", str(error), field="if_version", remedy="look at the difference again, then apply"
    )


def _in_short(version: int, changes: list[Change]) -> str:
    texts = [change.text for change in changes[:CHANGES_IN_EVENT_MAX]]
    if len(changes) > CHANGES_IN_EVENT_MAX:
        texts.append(f"and {len(changes) - CHANGES_IN_EVENT_MAX} more")
    return f"configuration {version}: {'; '.join(texts)}"


def _plain(changes: list[Change]) -> list[dict[str, Any]]:
    return [asdict(change) for change in changes]


def warnings(gateway: Gateway, config: ClusterConfig) -> list[str]:
    """What is allowed and probably not meant."""
    forwarding = {version: file.read_text().strip() != "0" for version, file in FORWARDING.items()}
    return advice(config, gateway.networks, forwarding, gateway.gateway_addresses())
