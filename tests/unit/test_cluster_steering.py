# SPDX-License-Identifier: Apache-2.0
"""What the packet path is told of the other gateways: from the cluster's state to rows, and rows into real maps."""

from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import numpy.typing as npt
import pytest

from ebpf import layout
from ebpf.layout import NodeFlag
from ebpf.map_specs import SPECS
from ebpf.maps import Maps
from lb.cluster.ownership import Cluster, NodeFacts
from lb.cluster.placement import Standing
from lb.cluster.steering import LocalLink, SteeringWriter, peering, steering_slots, tunnel_end
from tools.bench.record_source import new_map


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def facts(number: int, standing: Standing = Standing.READY, segments: tuple[str, ...] = ("lan",)) -> NodeFacts:
    macs = tuple((segment, mac(number)) for segment in segments)
    return NodeFacts(f"gw{number}", int(standing), segments=segments, macs=macs, tunnel_address=f"10.0.0.{number}")


def cluster(*numbers: int, **changes: object) -> Cluster:
    made = Cluster(frozenset(numbers), True, {n: facts(n) for n in numbers}, frozenset(), {}, ())
    return replace(made, **changes)  # type: ignore[arg-type]


LINKS = [LocalLink(7, "lan", mac(101)), LocalLink(8, "wan", mac(102))]


def test_peers_are_reached_over_the_segments_both_are_on() -> None:
    made = peering(cluster(1, 2, 3, facts={1: facts(1), 2: facts(2), 3: facts(3, segments=("dmz",))}), 1, LINKS)
    assert made.paths == ((7, 2, mac(2), mac(101)),)
    assert set(made.macs) == {(mac(2), 2), (mac(3), 3)}
    assert made.sharing == (1, 2, 3)
    assert made.members == {1, 2, 3}


TUNNEL_ENDS = [
    (
        "the ring's address, as peers have a way there",
        ("10.0.2.1:7400",),
        {"eth0": "10.0.1.1", "eth1": "10.0.2.1"},
        "10.0.2.1",
    ),
    (
        "of two the preferred one",
        ("[fd00::1]:7400", "10.0.1.1:7400"),
        {"eth0": "10.0.1.1", "eth1": "fd00::1"},
        "fd00::1",
    ),
    ("not one where the packet path is not", ("10.0.9.1:7400",), {"eth0": "10.0.1.1"}, "10.0.1.1"),
    ("nothing before addresses are known", ("10.0.9.1:7400",), {}, ""),
]


@pytest.mark.parametrize(("what", "listen", "addresses", "expected"), TUNNEL_ENDS, ids=[row[0] for row in TUNNEL_ENDS])
def test_tunnels_of_peers_end_at(what: str, listen: tuple[str, ...], addresses: dict[str, str], expected: str) -> None:
    own = {name: (ip_address(address),) for name, address in addresses.items()}
    assert tunnel_end(listen, own) == expected


def test_a_node_out_of_service_keeps_no_connection_and_a_drained_one_gets_no_new() -> None:
    state = cluster(1, 2, 3, facts={1: facts(1), 2: facts(2, Standing.OUT), 3: facts(3)}, drained=frozenset({3}))
    made = peering(state, 1, LINKS)
    assert made.members == {1, 3}
    assert made.sharing == (1,)


def test_a_joiner_gets_no_share_before_its_table_is_complete() -> None:
    state = cluster(1, 2, facts={1: facts(1), 2: facts(2, Standing.JOINING)})
    assert peering(state, 1, LINKS).sharing == (1,)
    assert peering(state, 2, LINKS).sharing == (1,)


@pytest.mark.parametrize("serving", [True, False])
def test_where_nobody_may_serve_each_gateway_is_left_to_itself(serving: bool) -> None:
    """Steering is not turned off: with it would go what is done about answers of unknown connections."""
    out = {number: facts(number, Standing.OUT) for number in (1, 2)}
    state = cluster(1, 2, facts=out if serving else {1: facts(1), 2: facts(2)}, serving=serving)
    for node in (1, 2):
        made = peering(state, node, LINKS)
        assert made.sharing == (node,)
        assert made.members == {node}


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_shares_are_even_and_little_moves(count: int) -> None:
    nodes = range(1, count + 1)
    slots = steering_slots(nodes)
    shares = np.bincount(slots, minlength=count + 1)[1:]
    assert shares.sum() == len(slots)
    assert shares.max() < 1.01 * shares.min()
    moved = steering_slots(range(1, count + 2)) != slots
    assert moved.mean() < 1.25 / (count + 1)


def test_all_gateways_compute_the_same_table() -> None:
    state = cluster(1, 2, 3)
    tables = [steering_slots(peering(state, node, LINKS).sharing) for node in (1, 2, 3)]
    assert all(np.array_equal(tables[0], other) for other in tables)


def own_maps() -> Maps:
    names = ("nodes", "node_paths", "peer_macs", "peer_addresses", "tables")
    assert set(names) <= SPECS.keys()
    return Maps({name: new_map(name) for name in names})


def test_the_maps_hold_exactly_what_is_wanted() -> None:
    maps = own_maps()
    writer = SteeringWriter(maps)
    assert writer.write(peering(cluster(1, 2, 3), 1, LINKS)) is True
    assert writer.write(peering(cluster(1, 2, 3), 1, LINKS)) is False
    assert writer.write(peering(cluster(1, 3), 1, LINKS)) is True
    _, nodes = maps.nodes.dump()
    assert [int(number) for number in np.flatnonzero(nodes["flags"] & NodeFlag.MEMBER)] == [1, 3]
    assert str(layout.unpack_address(nodes["address"][3])) == "10.0.0.3"
    paths, _ = maps.node_paths.dump()
    assert [(int(key["ifindex"]), int(key["node"])) for key in paths] == [(7, 3)]
    macs, owners = maps.peer_macs.dump()
    assert [(key["mac"].tobytes(), int(owner)) for key, owner in zip(macs, owners, strict=True)] == [(mac(3), 3)]
    addresses, _ = maps.peer_addresses.dump()
    assert {str(layout.unpack_address(key["address"])) for key in addresses} == {"10.0.0.1", "10.0.0.3"}
    maps.close()


def written_table(maps: Maps) -> npt.NDArray[np.uint16]:
    table = maps.read_table(layout.STEERING_TABLE)
    assert table is not None
    return table


def test_members_and_ways_are_written_before_the_table_and_without_it() -> None:
    maps = own_maps()
    writer = SteeringWriter(maps)
    writer.write(peering(cluster(1, 2, 3), 1, LINKS))
    table = written_table(maps)
    assert writer.write_ways(peering(cluster(1, 3), 1, LINKS)) is True
    _, nodes = maps.nodes.dump()
    assert [int(number) for number in np.flatnonzero(nodes["flags"] & NodeFlag.MEMBER)] == [1, 3]
    assert np.array_equal(written_table(maps), table)
    assert writer.write(peering(cluster(1, 3), 1, LINKS)) is True
    assert writer.tables_written == 2
    assert not np.array_equal(written_table(maps), table)
    maps.close()
