# SPDX-License-Identifier: Apache-2.0
"""The ring alone, as real processes in namespaces: death, cut and one-way links, loss, twins, many nodes."""

import time
from pathlib import Path

import pytest
from netlab.commands import run
from netlab.waiting import eventually

from scenarios.ring_nodes import PORT, Ring


def test_messages_have_one_order_and_data_one_value(tmp_path: Path) -> None:
    with Ring(tmp_path, 3) as ring:
        ring.form()
        ring.assert_same_order(ring.say_everywhere(50))
        for number, node in ring.nodes.items():
            node.ask(f"/set from/{number} hello", "set")
            node.ask("/add total 5", "add")
        assert ring.nodes[1].ask("/add total 0", "add")["sum"] == 15
        ring.assert_equal_copies()


def test_a_killed_node_is_missed_at_once_and_returns_with_a_full_copy(tmp_path: Path) -> None:
    with Ring(tmp_path, 3) as ring:
        ring.form()
        for number in range(50):
            ring.nodes[1].ask(f"/set key/{number} {'v' * 1000}", "set")
        fencing = ring.nodes[3].ask("/lock vip", "lock")["fencing"]
        ring.nodes[2].type("/lock vip")
        killed_at = time.monotonic()
        ring.kill(3)
        ring.await_view([1, 2])
        views = [view for view in ring.nodes[1].all("view") if view["t"] > killed_at]
        assert views[0]["t"] - killed_at < 1.0
        eventually(lambda: ring.nodes[2].all("lock"), what="the dead holder's lock passing on")
        assert ring.nodes[2].all("lock")[0]["fencing"] > fencing
        ring.start(3)
        ring.form()
        ring.assert_equal_copies()
        assert ring.nodes[3].ask("/get key/49", "get")["value"] == "v" * 1000


def test_a_cut_link_divides_and_mending_it_merges(tmp_path: Path) -> None:
    with Ring(tmp_path, 3) as ring:
        ring.form()
        ring.nodes[1].ask("/set x before", "set")
        ring.network.cut(3)
        ring.await_view([1, 2])
        ring.await_view([3])
        ring.nodes[1].ask("/set x majority", "set")
        ring.nodes[3].ask("/set x alone", "set")
        ring.network.mend(3)
        ring.await_view([1, 2, 3])
        eventually(lambda: ring.nodes[3].all("replaced"), what="node 3 adopting the larger part's data")
        ring.assert_equal_copies()
        assert ring.nodes[3].ask("/get x", "get")["value"] == "majority"
        assert not ring.nodes[1].all("replaced")
        ring.assert_same_order(ring.say_everywhere(10))


def test_with_two_links_one_may_be_cut_unnoticed(tmp_path: Path) -> None:
    with Ring(tmp_path, 3, links=2) as ring:
        ring.form()
        views = len(ring.nodes[1].all("view"))
        for node, link in ((2, 0), (3, 1)):
            ring.network.cut(node, link)
            ring.assert_same_order(ring.say_everywhere(20, first=20 * link))
            ring.network.mend(node, link)
            ring.await_link(node, link)
        assert len(ring.nodes[1].all("view")) == views, "a view change although every node was reachable"


@pytest.mark.parametrize("deaf", [2, 3])
def test_a_one_way_link_is_routed_around(tmp_path: Path, deaf: int) -> None:
    """Node `deaf` hears nothing from node 1, all else works: the ring forms again in an order that avoids the pair."""
    with Ring(tmp_path, 3) as ring:
        ring.form()
        ring.drop(deaf, f"ip saddr {ring.network.address(1)}")
        time.sleep(0.5)
        ring.await_view([1, 2, 3])
        ring.nodes[1].ask("/set x through", "set")
        eventually(
            lambda: ring.nodes[deaf].ask("/get x", "get")["value"] == "through", what="the write at the deaf node"
        )
        ring.heal(deaf)
        ring.form()
        ring.assert_equal_copies()


def test_a_fifth_of_all_datagrams_may_get_lost(tmp_path: Path) -> None:
    with Ring(tmp_path, 3, failure_detection_ms=400, beacon_ms=500) as ring:
        ring.form()
        for node in ring.nodes:
            ring.drop(node, f"udp dport {PORT} numgen random mod 100 < 20")
        ring.assert_same_order(ring.say_everywhere(40), timeout=60)
        for node in ring.nodes:
            ring.heal(node)
        ring.form()
        ring.assert_equal_copies()


def test_a_twin_with_the_same_address_does_not_stop_the_others(tmp_path: Path) -> None:
    """Somebody else starts a machine with node 3's address and configuration, by mistake."""
    with Ring(tmp_path, 3, spare=1) as ring:
        ring.form()
        namespace = ring.network.namespace(4)
        run("ip", "-n", namespace, "addr", "add", f"{ring.network.address(3)}/24", "dev", "eth0")
        twin = ring.start(3, place=4)
        time.sleep(2)
        for number in range(20):
            ring.nodes[1].type(f"1/{number}")
        eventually(lambda: "1/19" in ring.nodes[2].texts(), what="messages between the undisturbed nodes")
        ring.network.end(twin.process)
        run("ip", "-n", namespace, "addr", "flush", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "down")
        for node in (1, 2):
            run("ip", "-n", ring.network.namespace(node), "neigh", "flush", "all")
        ring.await_view([1, 2, 3])
        ring.assert_equal_copies()


def test_eight_nodes_and_two_deaths_at_once(tmp_path: Path) -> None:
    with Ring(tmp_path, 8) as ring:
        ring.form()
        ring.assert_same_order(ring.say_everywhere(10))
        ring.kill(1)
        ring.kill(5)
        ring.await_view([2, 3, 4, 6, 7, 8])
        ring.assert_same_order(ring.say_everywhere(10, first=10))
        ring.assert_equal_copies()


def test_an_orderly_departure_is_no_failure(tmp_path: Path) -> None:
    with Ring(tmp_path, 3) as ring:
        ring.form()
        leaving = ring.nodes.pop(2)
        asked_at = time.monotonic()
        leaving.type("/leave")
        ring.await_view([1, 3])
        assert ring.nodes[1].all("view")[-1]["t"] - asked_at < 0.5
        assert leaving.process.wait(5) == 0
