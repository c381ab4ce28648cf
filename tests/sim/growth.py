# SPDX-License-Identifier: Apache-2.0
"""How the ring grows with its size: ``python -m tests.sim.growth`` prints the table of docs/protocol.md.

With hop time d (network and step), n members, failure budget D, idle turn T:
turn under load = n·d; idle turn = T + n·d; death of a member to the new view at all others: until the token reaches its
predecessor (at most one idle turn), D, then two turns at network speed; of the token's holder: the hungry time instead
of the turn. Bytes per message and link: header/members on every hop, the payload on n-1 of n hops.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from sync.events import Order
from tests.sim.cluster import Cluster
from tests.sim.convergence import unsettled
from tests.sim.scenario import Scenario

DELAY_MS = 0.2
PAYLOAD = 64
MESSAGES = 50


class Growth(NamedTuple):
    nodes: int
    turn_ms: float
    """Under load."""
    idle_turn_ms: float
    detection_ms: float
    """From the death of a member to the last survivor's new view."""
    detection_bound_ms: float
    bytes_per_message: float
    """On the wire for one small message, all links together, acknowledgements included."""


def turn_model(nodes: int) -> float:
    return nodes * DELAY_MS


def measure(nodes: int, seed: int = 1) -> Growth:
    """One ring of this size, without faults but one death."""
    cluster = Cluster(Scenario.calm(seed, nodes, DELAY_MS))
    cluster.healed = True
    cluster.network.heal()
    _until(cluster, lambda: unsettled(cluster) is None)
    idle = _turn(cluster, load=False)
    turn = _turn(cluster, load=True)
    per_message = _bytes_per_message(cluster)
    timers = cluster.living[0].config.timers
    detection = _detection(cluster)
    hungry = timers.hungry_idle + nodes * timers.hungry_per_member
    bound = 1000 * (max(timers.turn_idle, hungry, 1.4 * idle / 1000) + timers.failure_after * 1.1) + 4 * turn_model(
        nodes
    )
    return Growth(nodes, turn, idle, detection, bound, per_message)


def _until(cluster: Cluster, reached: Callable[[], bool], limit_s: float = 60.0) -> None:
    end = cluster.now + limit_s
    check = 0
    while cluster.now < end:
        cluster.advance()
        check += 1
        if check % (8 * len(cluster.instances)) == 0 and reached():
            return
    raise AssertionError(f"not reached in {limit_s} s of simulated time")


def _turn(cluster: Cluster, *, load: bool) -> float:
    """Mean time of a turn over a while, in ms."""
    first = cluster.living[0]
    begin, hop = cluster.now, first.ring.token.hop if first.ring.token else 0
    end = begin + (0.1 if load else 0.5)
    while cluster.now < end:
        if load and not first.ring.outbox:
            cluster.multicast(first, [f"{cluster.next_message()} {first.incarnation} 0 x".encode()], Order.AGREED)
        cluster.advance()
    assert first.ring.token is not None
    turns = (first.ring.token.hop - hop) / len(cluster.instances)
    return (cluster.now - begin) * 1000 / max(turns, 1e-9)


def _bytes_per_message(cluster: Cluster) -> float:
    """What ``MESSAGES`` messages in one turn add to the wire, per message."""
    first = cluster.living[0]
    before = cluster.bytes_sent
    for _ in range(MESSAGES):
        payload = f"{cluster.next_message()} {first.incarnation} 0 ".encode().ljust(PAYLOAD, b".")
        cluster.multicast(first, [payload], Order.AGREED)
    _until(cluster, lambda: not first.open_tags)
    return (cluster.bytes_sent - before) / MESSAGES


def _detection(cluster: Cluster) -> float:
    victim = cluster.living[-1]
    view = cluster.living[0].node.view
    cluster.die(victim)
    begin = cluster.now
    last = [begin]

    def all_know() -> bool:
        views = {instance.node.view for instance in cluster.living}
        return len(views) == 1 and view not in views

    while not all_know():
        cluster.advance()
        last[0] = cluster.now
        assert cluster.now < begin + 10
    return (last[0] - begin) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.growth", description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[2, 3, 4, 8, 16, 32, 64])
    print("| nodes | turn under load | idle turn | death to new view | bound | bytes per 64-byte message |")
    print("|---|---|---|---|---|---|")
    for nodes in parser.parse_args().sizes:
        g = measure(nodes)
        print(
            f"| {g.nodes} | {g.turn_ms:.2f} ms | {g.idle_turn_ms:.1f} ms | {g.detection_ms:.1f} ms "
            f"| {g.detection_bound_ms:.1f} ms | {g.bytes_per_message:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
