# SPDX-License-Identifier: Apache-2.0
"""One gateway: traffic is spread, a backend drained, the daemon killed and restarted, and no request fails."""

import time

from netlab import faults
from netlab.lab import Argument, Lab
from netlab.topology import HTTP_PORT
from netlab.waiting import eventually

from tools.demo.story import Story

CONNECTIONS = 2000
HELD = 100
# Maglev's spread over a few thousand connections stays well within this share of the mean.
SPREAD_MAX = 0.15
# The API reads the counters no more often than that; all of the traffic is to be in them.
SAMPLED_EVERY_S = 1.0


def spread(lab: Lab, connections: int) -> dict[str, int]:
    """Connections per backend; an empty answer if any request failed."""
    report = lab.measure("http_load", lab.topology.vip(4), HTTP_PORT, "--connections", connections, "--timeout", 10)
    return dict(sorted(report["backends"].items())) if report["failed"] == 0 else {}


def words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "some requests failed"


def tell(story: Story, name: str) -> None:
    story.chapter("One gateway")
    story.say("A client, a gateway and three web servers, each in a network namespace of its own. The servers answer")
    story.say("the client directly (direct return); the gateway owns the virtual address and chooses the server.")
    with story.step("network built, servers and daemon started, services applied"):
        lab = Lab.up(name, "one-gateway")
    with lab:
        balance(story, lab)
        disturb(story, lab)
        count(story, lab)


def balance(story: Story, lab: Lab) -> None:
    counts = eventually(lambda: spread(lab, 50), 10) and spread(lab, CONNECTIONS)
    story.fact(f"{CONNECTIONS} HTTP connections, every one answered: {words(counts)}", bool(counts))
    mean = CONNECTIONS / 3
    even = len(counts) == 3 and max(abs(count - mean) for count in counts.values()) < SPREAD_MAX * mean
    story.fact(f"spread over all three servers within {SPREAD_MAX:.0%} of even", even)


def disturb(story: Story, lab: Lab) -> None:
    vip = lab.topology.vip(4)
    story.say(f"Now with load: {HELD} connections stay open with a request each 0.2 s, new ones come all the time.")
    options: list[Argument] = ["--connections", HELD, "--concurrency", HELD, "--requests", 0, "--interval", 0.2]
    with (
        lab.traffic("http_load", vip, HTTP_PORT, *options) as held,
        lab.traffic("http_load", vip, HTTP_PORT, "--connections", 0, "--concurrency", 4, "--pause", 0.01) as fresh,
    ):
        eventually(lambda: lab.established("client") >= HELD)
        lab.lbctl("gw1", "drain", "http4/b1")
        counts = eventually(lambda: without_b1(lab), 10)
        story.fact(f"lbctl drain http4/b1: new connections go elsewhere ({words(counts)})", "b1" not in counts)
        lab.lbctl("gw1", "undrain", "http4/b1")
        faults.signal_daemon(lab, "gw1", "kill")
        counts = spread(lab, 300)
        story.fact(f"kill -9 of the daemon: 300 more connections answered ({words(counts)})", bool(counts))
        with story.step("daemon restarted; it adopted the running program and its tables"):
            lab.start_daemon("gw1")
        counts = spread(lab, 300)
        story.fact(f"300 more connections after the restart ({words(counts)})", bool(counts))
    for what, report in (("held", held.report), ("new", fresh.report)):
        text = f"{what} connections: {report['connections']}, requests: {report['requests']}"
        story.fact(f"{text}, failed: {report['failed']}", report["failed"] == 0 and report["requests"] > 0)
    story.fact(f"connections lost: {held.report['lost_connections']}", held.report["lost_connections"] == 0)


def without_b1(lab: Lab) -> dict[str, int]:
    counts = spread(lab, 60)
    return {} if "b1" in counts else counts


def count(story: Story, lab: Lab) -> None:
    time.sleep(SAMPLED_EVERY_S)
    rows = [row for row in lab.api("gw1", "GET", "/v1/counters") if row["packets"]]
    rows.sort(key=lambda row: -row["packets"])
    story.table(
        "The gateway's own counters: every packet it saw, by what became of it",
        ("reason", "meaning", "packets"),
        ((row["reason"], row["meaning"], row["packets"]) for row in rows[:12]),
    )
    story.table(
        "Packets per server",
        ("server", "packets", "new connections"),
        (
            (f"{row['service']}/{row['name']}", row["traffic"]["packets"], row["traffic"]["connections_new"])
            for row in lab.api("gw1", "GET", "/v1/backends")
            if row["traffic"]["packets"]
        ),
    )
    alarms = sum(row["packets"] for row in rows if row["alarming"])
    story.fact(f"packets that met an alarming reason: {alarms}", alarms == 0)
