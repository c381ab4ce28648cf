# SPDX-License-Identifier: Apache-2.0
"""Three gateways: the owner of the virtual address is killed, cut off, brought back and drained; clients go on."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from netlab import build, cluster, faults, services
from netlab.lab import Argument, Lab
from netlab.topology import FAMILIES, HTTP_PORT
from netlab.traffic_run import Traffic
from netlab.waiting import eventually

from tools.demo.story import Story

DOWNLOADS = 10
HELD = 50
PUSHED = 20
DOWNLOAD_BYTES = 24 << 20
DOWNLOAD_RATE = 1 << 20
# What a client may notice of a takeover, at the most.
GAP_MS_MAX = 1000.0


TIMELINE_MAX = 12
# (milliseconds after the event, what happened)
Timeline = list[tuple[float, str]]


@dataclass
class Event:
    """One thing that was done to the cluster, and what a client probing each millisecond saw of it."""

    text: str
    gap_ms: float
    resolution_ms: float
    before: str
    after: str
    timeline: Timeline


class ClusterDemo:
    def __init__(self, story: Story, lab: Lab) -> None:
        self.story = story
        self.lab = lab
        self.vip = lab.topology.vip(4)
        self.events: list[Event] = []

    def names(self, *but: str) -> list[str]:
        return [gateway.name for gateway in self.lab.gateways if gateway.name not in but]

    def show(self) -> None:
        nodes = cluster.reachable(self.lab, "/v1/nodes")
        self.story.table(
            "The ring", ("gateway", "state", "in view"), ((row["name"], row["state"], row["in_view"]) for row in nodes)
        )
        vips = cluster.reachable(self.lab, "/v1/vips")
        self.story.table(
            "Virtual addresses",
            ("address", "segment", "owner"),
            ((v["address"], v["segment"], v["owner"]) for v in vips),
        )

    def disturb(self, text: str, action: Callable[[], None], done: Callable[[], None], asked: list[str]) -> None:
        """Do something, wait until it has had its effect, and note the longest gap a client saw. `asked`: gateways
        that can say what happened."""
        before = cluster.owner(self.lab, self.vip)
        sources: list[Argument] = []
        for family in FAMILIES:
            sources += ["--source", self.lab.topology.node("client").address("outside", family)]
        with (
            self.lab.traffic("udp_probe", self.vip) as probe,
            self.lab.traffic("claims", "eth0", self.vip, *sources) as claims,
        ):
            eventually(lambda: cluster.reachable(self.lab, "/v1/status"))
            time.sleep(0.3)  # so that the prober has a time before the event to compare with
            at, wall = time.monotonic(), time.time()
            action()
            done()
            time.sleep(0.3)  # and a time after it
        but = self.names(*asked)
        after = cluster.owner(self.lab, self.vip, but)
        timeline = [*self.claimed(claims.report[self.vip], at), *self.recorded(wall, but), *unanswered(probe, at)]
        event = Event(text, probe.report["gap_ms"], probe.report["latest_send_ms"], before, after, sorted(timeline))
        self.events.append(event)
        held = probe.report["answered_at_end"] and event.gap_ms < GAP_MS_MAX
        self.story.fact(f"{text}: gap {event.gap_ms:.1f} ms, the address is with {after} now", held)
        for milliseconds, line in event.timeline:
            self.story.detail(f"{milliseconds:+8.1f} ms  {line}")

    def claimed(self, runs: list[dict[str, Any]], at: float) -> Timeline:
        return [
            ((run["first"] - at) * 1000, f"{self.vip} announced by {self.gateway_of(run['mac'])}")
            for run in runs
            if run["first"] >= at
        ]

    def recorded(self, wall: float, but: list[str]) -> Timeline:
        rows = [row for row in cluster.reachable(self.lab, "/v1/events?limit=200", but) if row["time"] >= wall]
        return [((row["time"] - wall) * 1000, f"{row['node']}: {row['message']}") for row in rows[:TIMELINE_MAX]]

    def gateway_of(self, mac: str) -> str:
        return next((name for name in self.names() if build.mac_address(name, "eth0") == mac), mac)

    # -- the events ---------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        victim = cluster.owner(self.lab, self.vip)
        rest = self.names(victim)
        self.disturb(
            f"kill -9 of the daemon on {victim}, the owner",
            lambda: faults.signal_daemon(self.lab, victim, "kill"),
            lambda: cluster.wait_for_owners(self.lab, rest, but=[victim]),
            rest,
        )
        self.disturb(f"{victim} started again", lambda: self.start(victim), lambda: cluster.settle(self.lab), rest)

    def start(self, node: str) -> None:
        self.lab.start_daemon(node)

    def cut(self) -> None:
        victim = cluster.owner(self.lab, self.vip)
        rest = self.names(victim)
        self.disturb(
            f"every link of {victim}, the owner, cut",
            lambda: faults.set_links(self.lab, victim, up=False),
            lambda: cluster.wait_for_owners(self.lab, rest, but=[victim]),
            rest,
        )
        self.disturb(
            f"the links of {victim} mended",
            lambda: faults.heal(self.lab, [victim]),
            lambda: cluster.settle(self.lab),
            rest,
        )

    def drain(self) -> None:
        victim = cluster.owner(self.lab, self.vip)
        rest = self.names(victim)
        self.disturb(
            f"lbctl node drain {victim}, the owner",
            lambda: self.lab.api(victim, "POST", f"/v1/nodes/{victim}/drain"),
            lambda: cluster.wait_for_owners(self.lab, rest),
            rest,
        )
        self.disturb(
            f"lbctl node undrain {victim}",
            lambda: self.lab.api(victim, "POST", f"/v1/nodes/{victim}/undrain"),
            lambda: cluster.settle(self.lab),
            rest,
        )


def unanswered(probe: Traffic, at: float) -> Timeline:
    """When the longest gap began that the prober saw, if it saw one."""
    if not probe.report["lost"]:
        return []
    return [((probe.report["gap_at_monotonic"] - at) * 1000, f"no probe answered for {probe.report['gap_ms']:.1f} ms")]


def tell(story: Story, name: str) -> None:
    story.chapter("Three gateways")
    story.say("A client segment, a server segment, three gateways between them as one ring. Virtual addresses on both")
    story.say("sides move between gateways; connections are in every gateway's table before they are needed there.")
    with story.step("network built, servers and three daemons started, services applied"):
        lab = Lab.up(name, "three-gateways")
    with lab:
        with story.step("the ring is closed, every virtual address has an owner"):
            cluster.settle(lab)
        digest = services.make_content(lab.directory, "long", DOWNLOAD_BYTES)
        demo = ClusterDemo(story, lab)
        demo.show()
        run_under_load(story, demo, digest)


def run_under_load(story: Story, demo: ClusterDemo, digest: str) -> None:
    vip, lab = demo.vip, demo.lab
    story.say(f"Clients from here to the end: {DOWNLOADS} long downloads checked by hash, {HELD} connections with a")
    story.say(f"request each 0.1 s, {PUSHED} on which only the server sends, and new connections all the time.")
    with ExitStack() as stack:
        start = stack.enter_context
        held: list[Argument] = ["--connections", HELD, "--concurrency", HELD, "--requests", 0, "--interval", 0.1]
        downloads: list[Argument] = ["--path", "/file/long", "--count", DOWNLOADS, "--sha256", digest]
        downloads += ["--rate", DOWNLOAD_RATE]
        traffic = {
            "long downloads": start(lab.traffic("downloads", vip, HTTP_PORT, *downloads)),
            "held connections": start(lab.traffic("http_load", vip, HTTP_PORT, *held)),
            "server-pushed": start(lab.traffic("push_watch", vip, "--count", PUSHED)),
            "new connections": start(
                lab.traffic("http_load", vip, HTTP_PORT, "--connections", 0, "--concurrency", 4, "--pause", 0.02)
            ),
        }
        expected = DOWNLOADS + HELD + PUSHED
        eventually(lambda: lab.established("client") >= expected)
        demo.kill()
        demo.cut()
        demo.drain()
        story.say("Now undisturbed, until the downloads are complete.")
        traffic["long downloads"].wait()
    summarise(story, demo, traffic)


def summarise(story: Story, demo: ClusterDemo, traffic: dict[str, Traffic]) -> None:
    story.chapter("Summary")
    story.table(
        "What a client probing each millisecond saw",
        ("event", "gap ms", "prober's own longest pause ms", "owner before", "owner after"),
        (
            (event.text, f"{event.gap_ms:.1f}", f"{event.resolution_ms:.1f}", event.before, event.after)
            for event in demo.events
        ),
    )
    rows = []
    for what, run in traffic.items():
        report = run.report
        stall = report.get("longest_stall_ms", report.get("longest_silence_ms"))
        done = report.get("requests") or report.get("records") or f"{report.get('bytes', 0) >> 20} MiB"
        rows.append((what, done, report["failed"], report.get("lost_connections", report["failed"]), f"{stall:.0f}"))
    story.table("What the other clients saw", ("clients", "done", "failed", "lost", "longest stall ms"), rows)
    for what, run in traffic.items():
        for error in run.report["first_errors"]:
            story.detail(f"{what}, {error['at']:.1f} s after their start: {error['error']}")
    complete = traffic["long downloads"].report["complete"]
    story.fact(f"long downloads complete with the right hash: {complete} of {DOWNLOADS}", complete == DOWNLOADS)
    failed = sum(row[2] for row in rows)
    lost = sum(row[3] for row in rows)
    story.fact(f"failed requests: {failed}", failed == 0)
    story.fact(f"lost connections: {lost}", lost == 0)
