# SPDX-License-Identifier: Apache-2.0
"""Who answers for the VIPs on the segments, and whom the hosts there believe.

Whoever asks does so as a stranger, in the name and from the link address of no host: the answers put nobody's
neighbour table right. A host learns of a takeover from the announcement alone, as in an outage.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from netlab import build, cluster
from netlab.lab import Argument, Lab
from netlab.topology import FAMILIES
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

# Where claims are listened to, and the device of every gateway on that segment.
WATCHED = {"outside": ("client", "eth0"), "inside": ("b1", "eth1")}
STRANGER_HOST, STRANGER_MAC = 222, "02:1b:00:00:00:de"
# What hosts are made to believe: none of the gateways.
NOBODY_MAC = "02:1b:00:00:00:01"
LOOK_S = 0.6


@dataclass
class Claims:
    """Claims to the VIPs of all segments; there once the block has ended."""

    lab: Lab
    watchers: dict[str, Traffic]
    # Whatever was before is not looked at: seconds of the monotonic clock, and of the wall clock.
    since: float = 0.0
    since_wall: float = field(default_factory=time.time)

    def begin(self) -> None:
        """Look at what comes from now on."""
        self.since, self.since_wall = time.monotonic(), time.time()

    def claimants(self, segment: str, vip: str) -> list[str]:
        """The gateways that claimed an address, one for each run of claims."""
        device = WATCHED[segment][1]
        names = {build.mac_address(gateway.name, device): gateway.name for gateway in self.lab.gateways}
        runs = [run for run in self.watchers[segment].report[vip] if run["last"] >= self.since]
        return [names.get(run["mac"], run["mac"]) for run in runs]

    def all_claimants(self) -> set[str]:
        """Whoever has claimed any of the addresses."""
        return {
            name for segment in WATCHED for vip in vips_on(self.lab, segment) for name in self.claimants(segment, vip)
        }

    def assert_one_owner_at_a_time(self, asked: str) -> None:
        """Nobody is heard claiming an address that is another's: who claims it are its owners, in their order.

        `asked`: a gateway that has been there all the time, and knows what moved.
        """
        now = cluster.owners(self.lab, but=cluster.others(self.lab, asked))
        for segment, watcher in self.watchers.items():
            for vip in vips_on(self.lab, segment):
                claimants = self.claimants(segment, vip)
                assert claimants, f"nobody claimed {vip}"
                # A gateway that was away for a moment has missed what moved then.
                owners = [claimants[0], *self._moved_to(vip, asked), now[vip]]
                told = f"{vip} was claimed by {claimants}, and its owners were {owners}: {watcher.report[vip]}"
                # Each is found in what is left of the owners after the one before.
                left = iter(owners)
                assert all(claimant in left for claimant in claimants), told

    def _moved_to(self, vip: str, asked: str) -> list[str]:
        rows = self.lab.api(asked, "GET", "/v1/events?limit=1000")
        moves = [row for row in rows if (row["kind"], row["subject"]) == ("vip.moved", vip)]
        return [row["node"] for row in sorted(moves, key=lambda row: row["id"]) if row["time"] >= self.since_wall]


def vips_on(lab: Lab, segment: str) -> list[str]:
    return [lab.topology.vip(family, segment) for family in FAMILIES]


@contextmanager
def watched(lab: Lab, *options: Argument) -> Iterator[Claims]:
    """Everybody is asked for the VIPs all the time, on all segments; who answers is noted, and who claims unasked."""
    with ExitStack() as stack:
        watchers = {
            segment: stack.enter_context(
                lab.traffic("claims", "eth0", *vips_on(lab, segment), *asking(lab, segment), *options, node=node)
            )
            for segment, (node, _) in WATCHED.items()
        }
        yield Claims(lab, watchers)


def asking(lab: Lab, segment: str = "outside") -> list[Argument]:
    """Options that make `claims` ask as a stranger on a segment."""
    addresses = [lab.topology.segment(segment).address(STRANGER_HOST, family) for family in FAMILIES]
    sources = [word for address in addresses for word in ("--source", address)]
    return [*sources, "--source-mac", STRANGER_MAC, "--ask-ms", 20]


# ---------------------------------------------------------------------------------------------------------------------
# neighbour tables


def believers(lab: Lab) -> Iterator[tuple[str, str, str]]:
    """(host, segment, VIP): clients send to the outside VIPs, backends answer through the inside ones."""
    for segment, role in (("outside", "client"), ("inside", "backend")):
        for node in lab.topology.nodes:
            if node.role == role:
                yield from ((node.name, segment, vip) for vip in vips_on(lab, segment))


def mislead(lab: Lab) -> None:
    """Every host believes for a while that each VIP is where nobody is: only an announcement tells it better."""
    for host, _, vip in believers(lab):
        entry = [vip, "lladdr", NOBODY_MAC, "dev", "eth0", "nud", "reachable"]
        lab.run(host, ["ip", "neighbour", "replace", *entry])


def believed(lab: Lab, host: str, vip: str) -> str:
    """The link address that a host has for a VIP; empty if it has none, and would ask."""
    words = lab.run(host, ["ip", "neighbour", "show", vip]).stdout.split()
    return words[words.index("lladdr") + 1] if "lladdr" in words else ""


def assert_believed(lab: Lab, *, or_unknown: bool = False) -> bool:
    """Every host sends to the owner of each VIP. `or_unknown`: or it would ask before it sends."""
    owners = cluster.owners(lab)
    for host, segment, vip in believers(lab):
        owner, mac = owners[vip], believed(lab, host, vip)
        assert owner, f"nobody holds {vip}"
        right = mac == build.mac_address(owner, WATCHED[segment][1]) or (or_unknown and not mac)
        assert right, f"{host} has {vip} at {mac or 'no address'}, not at {owner}"
    return True


# ---------------------------------------------------------------------------------------------------------------------


def assert_one_owner_each(lab: Lab) -> None:
    """All gateways name the same owners, every host believes them without having asked, and only they answer.

    An address may still be handed on when this begins.
    """
    eventually(lambda: _is_one_owner_each(lab), 10, "one owner each")


def _is_one_owner_each(lab: Lab) -> bool:
    views = [cluster.owners(lab, but=cluster.others(lab, each.name)) for each in lab.gateways]
    assert all(view == views[0] for view in views), views
    assert_believed(lab, or_unknown=True)
    with watched(lab, "--seconds", LOOK_S) as claims:
        for watcher in claims.watchers.values():
            watcher.wait()
    for segment in WATCHED:
        for vip in vips_on(lab, segment):
            assert claims.claimants(segment, vip) == [views[0][vip]], f"{vip}: {claims.watchers[segment].report[vip]}"
    return True
