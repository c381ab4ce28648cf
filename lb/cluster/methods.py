# SPDX-License-Identifier: Apache-2.0
"""Control methods of a clustered gateway: nodes, VIPs, and what operators do to them, from any node about all."""

import ipaddress
import time
from dataclasses import replace
from typing import Any

import msgpack

from lb import methods
from lb.cluster.cluster import Cluster
from lb.cluster.own_node import NOT_SERVING, STATE_NAMES
from lb.cluster.ownership import (
    DRAIN_PREFIX,
    HOLDING_PREFIX,
    NOBODY,
    Holding,
    NodeFacts,
    announcers,
    pack,
    reason_text,
    seat_of,
    transfer,
)
from lb.cluster.placement import Standing
from lb.cluster.state import ClusterState
from lb.cluster.unheld import why_unannounced, why_unheld
from lb.configuration.model import Vip
from lb.control import Caller, ControlError
from lb.events import Event
from lb.methods import Params, text_param
from sync.data import OutcomeUnknown, RequestRefused, VersionConflict

PREFER_MAX = 32


def register_methods(cluster: Cluster) -> None:
    """Offer the methods on the daemon's control socket."""
    offered = {
        "nodes": _nodes,
        "vips": _vips,
        "traffic.exchange": _exchange_traffic,
        "vip.move": _move,
        "vip.pin": _pin,
        "vip.unpin": _unpin,
        "vip.prefer": _prefer,
        "node.drain": _drain,
        "node.undrain": _undrain,
    }
    for name, method in offered.items():
        cluster.gateway.control.register(name, _bound(cluster, method))


def _bound(cluster: Cluster, method: Any) -> Any:
    async def handle(params: Params, caller: Caller) -> Any:
        try:
            return await method(cluster, params, caller)
        except VersionConflict as error:
            raise ControlError("conflict", str(error), remedy="look again, then decide anew") from None
        except (OutcomeUnknown, RequestRefused) as error:
            remedy = "look at `lbctl nodes`: does this part of the cluster serve?"
            raise ControlError("unavailable", str(error), remedy=remedy) from None

    return handle


# --- looking ---------------------------------------------------------------------------------------------------------


async def _exchange_traffic(cluster: Cluster, params: Params, _caller: Caller) -> dict[str, Any]:
    view = cluster.state.view
    return cluster.traffic.exchange(params, view.members if view is not None else ())


async def _nodes(cluster: Cluster, _params: Params, _caller: Caller) -> list[dict[str, Any]]:
    view = cluster.state.view
    known = set(cluster.state.ids.values()) | (set(view.members) if view is not None else set())
    routed = dict.fromkeys(_holders(cluster), len(cluster.store.current.routed_vips))
    return [_node_row(cluster, node, routed.get(node, 0)) for node in sorted(known)]


def _holders(cluster: Cluster) -> list[int]:
    """The gateways that announce the routed VIPs."""
    problems = _route_problems(cluster)
    return [node for node in announcers(cluster.state.cluster(cluster.store.current)) if node not in problems]


def _route_problems(cluster: Cluster) -> dict[int, str]:
    """Why members that should announce the routed VIPs do not."""
    view = cluster.state.view
    members = view.members if view is not None else ()
    told = {node: cluster.state.facts.get(node, NodeFacts()).route_problem for node in members}
    return {node: problem for node, problem in told.items() if problem}


def _node_row(cluster: Cluster, node: int, routed_count: int) -> dict[str, Any]:
    state, view = cluster.state, cluster.state.view
    member = view is not None and node in view.members
    facts = state.facts.get(node, NodeFacts())
    standing = seat_of(state.cluster(cluster.store.current), node).standing
    stats = cluster.stats.of(node) if member else {}
    return stats | {
        "name": state.name(node),
        "id": node,
        "state": STATE_NAMES[standing] if member else "gone",
        "reason": _why_so(cluster, node, member, facts) or None,
        "in_view": member,
        "view": view.number if view is not None and member else None,
        "drained": node in state.drained,
        "version": facts.version or None,
        "config_version": facts.config_version,
        "segments": list(facts.segments) if member else [],
        "vip_count": _vip_count(state, node) + routed_count,
    }


def _vip_count(state: ClusterState, node: int) -> int:
    """How many addresses a gateway owns; none in a part that may not serve, whatever was written down before."""
    return sum(holding.owner == node for holding in state.holdings.values()) if state.serving else 0


def _why_so(cluster: Cluster, node: int, member: bool, facts: NodeFacts) -> str:
    """Why a gateway is not simply in service. In a part that may not serve nobody tells anything new of itself."""
    if not member:
        return _why_gone(cluster, node)
    if cluster.state.serving:
        return facts.reason
    return cluster.own.reason() if node == cluster.node else NOT_SERVING


def _why_gone(cluster: Cluster, node: int) -> str:
    if node in cluster.state.restarting:
        return "restarting"
    return cluster.refusals.of(node, time.monotonic()) or "not in the cluster's view"


async def _vips(cluster: Cluster, params: Params, caller: Caller) -> list[dict[str, Any]]:
    nodes, vips = await _nodes(cluster, params, caller), cluster.store.current.vips
    holders = _holders(cluster)
    why = why_unannounced(
        nodes, {cluster.state.name(node): f"cannot: {text}" for node, text in _route_problems(cluster).items()}
    )
    return [_routed_row(cluster, vip, holders, why) if vip.is_routed else _vip_row(cluster, vip, nodes) for vip in vips]


def _routed_row(cluster: Cluster, vip: Vip, holders: list[int], why: str) -> dict[str, Any]:
    leases = [cluster.stats.vips_of(node).lease_ms for node in holders]
    return {
        "address": vip.address,
        "announce": vip.announce,
        "segment": None,
        "owner": None,
        "owners": [cluster.state.name(node) for node in holders],
        "since": None,
        "reason": "announced as a route" + (f", but not everywhere: {why}" if why else "") if holders else why or None,
        "lease_ms": min(leases, default=None),
        "packets_per_s": round(cluster.state.loads.get(vip.host, 0.0), 1),
        "prefer": [],
        "pin": None,
        "sticky": False,
        "state": "held" if holders else "unplaced",
        "goes_to": None,
        "term": 0,
    }


def _vip_row(cluster: Cluster, vip: Vip, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    # A part of the cluster that may not serve does not know who holds what, only that it does not.
    holding = cluster.state.holdings.get(vip.host, Holding()) if cluster.state.serving else Holding()
    view = cluster.state.view
    there = view is not None and holding.owner in view.members
    state = "held" if holding.owner else "unplaced"
    owner = cluster.state.name(holding.owner) if holding.owner else None
    return {
        "address": vip.address,
        "announce": vip.announce,
        "segment": vip.segment,
        "owner": owner,
        "owners": [owner] if owner else [],
        "since": cluster.state.since.get(vip.host),
        "reason": _why(cluster, vip, holding, nodes) or None,
        "lease_ms": cluster.stats.vips_of(holding.owner).lease_ms if there else None,
        "packets_per_s": round(cluster.state.loads.get(vip.host, 0.0), 1),
        "prefer": list(vip.prefer),
        "pin": vip.pin or None,
        "sticky": vip.sticky,
        "state": "moving" if holding.releasing else state,
        "goes_to": cluster.state.name(holding.heir) if holding.releasing and holding.heir else None,
        "term": holding.term,
    }


def _why(cluster: Cluster, vip: Vip, holding: Holding, nodes: list[dict[str, Any]]) -> str:
    """Why an address is where it is, or why it is nowhere."""
    told = cluster.vips.problems.get(vip.host) or reason_text(holding.reason)
    gateway = _gateway_of(cluster, vip)
    if gateway:
        return f"it is {gateway}'s own address: take it off there, or out of the VIPs"
    if holding.owner != NOBODY:
        return told
    mac = cluster.alone.occupied().get(vip.host)
    if mac:
        return f"{mac} answers for it, and no other gateway has been found (lbctl nodes)"
    return why_unheld(vip.segment, nodes) or told


def _gateway_of(cluster: Cluster, vip: Vip) -> str:
    """The gateway whose own address a VIP is by mistake; empty if it is none's."""
    node = cluster.state.cluster(cluster.store.current).gateway_addresses.get(vip.host)
    return cluster.state.name(node) if node is not None else ""


# --- moving ----------------------------------------------------------------------------------------------------------


async def _move(cluster: Cluster, params: Params, caller: Caller) -> dict[str, Any]:
    vip, target = _exclusive_vip(cluster, params), _node(cluster, params)
    name = cluster.state.name(target)
    _check_fit(cluster, vip)
    _check_reachable(cluster, vip, target)
    if vip.pin and vip.pin != name:
        raise ControlError("conflict", f"{vip.host} is pinned to {vip.pin}", remedy="unpin it, or pin it elsewhere")
    if cluster.store.current.policy.failback and vip.prefer and vip.prefer[0] != name:
        message = f"{vip.host} prefers {vip.prefer[0]} and policy.failback would bring it back"
        raise ControlError("conflict", message, remedy="change its preference, or pin it")
    await _start_moving(cluster, vip, target, "operator", caller.who)
    return {"message": f"{vip.host} goes to {name}"}


async def _start_moving(cluster: Cluster, vip: Vip, target: int, reason: str, who: str) -> None:
    state = cluster.state
    write = transfer(state.cluster(cluster.store.current), vip.host, target, reason, who, time.time())
    if write is None or write.after is None or (write.before is not None and write.before.goes_to == target):
        return
    version = state.versions.get(vip.host, 0)
    await cluster.ring.data.put(HOLDING_PREFIX + vip.host, pack(write.after), version=version)


async def _pin(cluster: Cluster, params: Params, caller: Caller) -> dict[str, Any]:
    vip = _exclusive_vip(cluster, params)
    if params.get("node") is None:
        owner = cluster.state.holdings.get(vip.host, Holding()).goes_to
        if owner == NOBODY:
            raise ControlError("conflict", f"nobody holds {vip.host}", field="node", remedy="name a node to pin it to")
        target = owner
    else:
        target = _node(cluster, params)
    name = cluster.state.name(target)
    await _change_vip(cluster, vip, caller, pin=name)
    return {"message": f"{vip.host} is pinned to {name}"}


async def _unpin(cluster: Cluster, params: Params, caller: Caller) -> dict[str, Any]:
    vip = _exclusive_vip(cluster, params)
    await _change_vip(cluster, vip, caller, pin="")
    return {"message": f"{vip.host} is not pinned"}


async def _prefer(cluster: Cluster, params: Params, caller: Caller) -> dict[str, Any]:
    vip, names = _exclusive_vip(cluster, params), params.get("nodes")
    if not isinstance(names, list) or len(names) > PREFER_MAX or not all(isinstance(name, str) for name in names):
        raise ControlError("bad_request", f"nodes must be a list of at most {PREFER_MAX} names", field="nodes")
    for name in names:
        _node(cluster, {"node": name})
    await _change_vip(cluster, vip, caller, prefer=tuple(dict.fromkeys(names)))
    return {"message": f"{vip.host} prefers {', '.join(names) or 'nobody'}"}


async def _change_vip(cluster: Cluster, vip: Vip, caller: Caller, **changes: Any) -> None:
    config = cluster.store.current
    vips = tuple(replace(each, **changes) if each is vip else each for each in config.vips)
    await methods.apply(cluster.gateway, replace(config, vips=vips), config.version, caller)


# --- draining --------------------------------------------------------------------------------------------------------


async def _drain(cluster: Cluster, params: Params, caller: Caller) -> dict[str, Any]:
    node = _node(cluster, params)
    name = cluster.state.name(node)
    if node in cluster.state.drained:
        return {"message": f"{name} is drained already"}
    await cluster.ring.data.put(f"{DRAIN_PREFIX}{node}", msgpack.packb([caller.who, time.time()]))
    cluster.journal.tell(Event("node.drained", f"{name} is drained", subject=name, who=caller.who))
    return {"message": f"{name} gives up its VIPs and takes no new connections of its own; existing ones stay"}


async def _undrain(cluster: Cluster, params: Params, caller: Caller) -> dict[str, Any]:
    node = _node(cluster, params)
    name = cluster.state.name(node)
    if node not in cluster.state.drained:
        return {"message": f"{name} is not drained"}
    await cluster.ring.data.delete(f"{DRAIN_PREFIX}{node}")
    cluster.journal.tell(Event("node.undrained", f"{name} takes part again", subject=name, who=caller.who))
    return {"message": f"{name} takes part again"}


# --- parameters ------------------------------------------------------------------------------------------------------


def _vip(cluster: Cluster, params: Params) -> Vip:
    text = text_param(params, "address").partition("/")[0]
    try:
        host = str(ipaddress.ip_address(text))
    except ValueError:
        raise ControlError("bad_request", f"{text!r} is no address", field="address") from None
    vip = cluster.store.current.vip(host)
    if vip is None:
        known = ", ".join(each.host for each in cluster.store.current.vips) or "none"
        raise ControlError("not_found", f"there is no VIP {host}", field="address", remedy=f"there are: {known}")
    return vip


def _exclusive_vip(cluster: Cluster, params: Params) -> Vip:
    """A VIP that one gateway holds at a time, so that it matters which."""
    vip = _vip(cluster, params)
    if vip.is_routed:
        message = f"{vip.host} is announced as a route by every gateway in service"
        remedy = "to keep it off one of them: lbctl node drain NODE"
        raise ControlError("conflict", message, field="address", remedy=remedy)
    return vip


def _node(cluster: Cluster, params: Params) -> int:
    name = text_param(params, "node")
    node = cluster.state.ids.get(name)
    if node is None:
        known = ", ".join(sorted(cluster.state.ids))
        raise ControlError("not_found", f"there is no node {name!r}", field="node", remedy=f"there are: {known}")
    return node


def _check_fit(cluster: Cluster, vip: Vip) -> None:
    gateway = _gateway_of(cluster, vip)
    if gateway:
        message = f"{vip.host} is {gateway}'s own address: nobody holds it"
        raise ControlError("conflict", message, field="address", remedy="take it off there, or out of the VIPs")


def _check_reachable(cluster: Cluster, vip: Vip, node: int) -> None:
    """The planner would take the address back from a node that is not fit to hold it: refuse at once, with why."""
    name = cluster.state.name(node)
    view = cluster.state.view
    if view is None or node not in view.members:
        raise ControlError("conflict", f"{name} is not in the cluster now", field="node", remedy="see `lbctl nodes`")
    seat = seat_of(cluster.state.cluster(cluster.store.current), node)
    if vip.segment not in seat.segments:
        message = f"{name} has no link that is up on segment {vip.segment}"
        raise ControlError("conflict", message, field="node", remedy="see `lbctl nodes`")
    if seat.standing is not Standing.READY:
        message = f"{name} is {STATE_NAMES[seat.standing].replace('_', ' ')}"
        remedy = f"lbctl node undrain {name}" if seat.standing is Standing.DRAINED else "see `lbctl nodes`"
        raise ControlError("conflict", message, field="node", remedy=remedy)
