# SPDX-License-Identifier: Apache-2.0
"""The kernel's connection tracking, read and written in a namespace of its own."""

import json

from tests.unit.cluster_namespaces import pair

PRELUDE = """
import json, socket, subprocess
import numpy as np
from lb.conntrack import kernel
from lb.conntrack.entries import ENTRY, Kind, Status, TcpState
from tests.unit.test_conntrack_entries import some_entries, udp_entries, v6_entries
from ipaddress import ip_address
from lb.conntrack.entries import pack_addresses

def table():
    return np.concatenate([np.zeros(0, ENTRY), *kernel.dump_table()])

def apply(writer, entries):
    before = dict(kernel.WriteCounts.__dataclass_fields__)
    before = {name: getattr(writer.counts, name) for name in before}
    writer.apply(entries)
    return {name: getattr(writer.counts, name) - count for name, count in before.items()
            if getattr(writer.counts, name) != count}

writer = kernel.TableWriter()
vip = pack_addresses([ip_address("10.0.2.100")])[0]
translated = some_entries(3, status=Status.SEEN_REPLY | Status.ASSURED | Status.SOURCE_TRANSLATED,
                          reply_destination=vip, source_port=[11, 12, 13], reply_destination_port=[5011, 5012, 5013])
all_kinds = np.concatenate([some_entries(3), v6_entries(3), udp_entries(3), translated])
seen = {}
"""

WRITING = (
    PRELUDE
    + """
seen["what"] = kernel.check_conntrack()
seen["created"] = apply(writer, all_kinds)
got = table()
seen["told"] = sorted(zip(got["source_port"].tolist(), got["protocol"].tolist(), got["family"].tolist()))
back = got[got["reply_destination_port"] > 5000]
seen["translated"] = sorted(back["reply_destination_port"].tolist())
seen["address"] = (back["reply_destination"] == vip).all().item()
seen["status"] = (back["status"] & Status.SOURCE_TRANSLATED != 0).all().item()
seen["state"] = sorted(set(got["tcp_state"].tolist()))
seen["liberal"] = sorted(set(got["tcp_flags"].tolist()))
seen["mark"] = sorted(set(got["mark"].tolist()))
seen["timeouts"] = sorted({int(t) // 10 * 10 for t in got["timeout_s"] + 9})
seen["again"] = apply(writer, all_kinds)
writer.fill(all_kinds)
seen["present"] = writer.counts.present
seen["translated still"] = sorted(p for p in table()["reply_destination_port"].tolist() if p > 5000)
closing = some_entries(3, tcp_state=TcpState.TIME_WAIT, timeout_s=100)
seen["closing"] = apply(writer, closing)
seen["closed"] = (table()["tcp_state"] == TcpState.TIME_WAIT).sum().item()
unknown = some_entries(2, tcp_state=TcpState.TIME_WAIT, source_port=[1, 2])
seen["closing unknown"] = apply(writer, unknown)
refreshed = udp_entries(2, kind=Kind.REFRESHED, source_port=[1, 2])
seen["refreshed unknown"] = apply(writer, refreshed)
gone = all_kinds.copy()
gone["kind"] = Kind.DELETED
seen["deleted"] = apply(writer, np.concatenate([gone, some_entries(1, kind=Kind.DELETED, source_port=9)]))
seen["left"] = len(table())
bad = some_entries(1, reply_destination=0, status=Status.ASSURED | Status.SOURCE_TRANSLATED, zone=1)
writer.apply(np.concatenate([bad, udp_entries(1)]))
many = some_entries(3000)
seen["many"] = apply(writer, many)
seen["many again"] = apply(writer, many)
print(json.dumps(seen))
"""
)


def test_what_is_written_is_what_the_kernel_has() -> None:
    with pair() as hosts:
        seen = json.loads(hosts.python(hosts.left, WRITING))
    ports = [1024, 1025, 1026]
    expected = [[port, 6, 2] for port in (11, 12, 13)]
    expected += [[port, protocol, family] for port in ports for protocol, family in ((6, 2), (6, 10), (17, 2))]
    assert seen["what"] == "ctnetlink with events"
    assert seen["created"] == {"created": 12}
    assert seen["told"] == sorted(expected)
    assert (seen["translated"], seen["address"], seen["status"]) == ([5011, 5012, 5013], True, True)
    assert (seen["state"], seen["mark"], seen["timeouts"]) == ([0, 3], [7], [120, 1000])
    assert seen["liberal"] == [0, 3 | 8]
    # What translates is made anew: no request changes how.
    assert seen["again"] == {"created": 3, "changed": 9, "deleted": 3}
    assert (seen["present"], seen["translated still"]) == (12, [5011, 5012, 5013])
    assert (seen["closing"], seen["closed"]) == ({"changed": 3}, 3)
    assert seen["closing unknown"] == {}
    assert seen["refreshed unknown"] == {"created": 2}
    assert (seen["deleted"], seen["left"]) == ({"deleted": 12}, 2)
    assert seen["many"] == {"created": 3000}
    assert seen["many again"] == {"changed": 3000}


EVENTS = (
    PRELUDE
    + """
other = kernel.TableWriter()
reader = kernel.EventReader(writer.port)

def events():
    batches = []
    while True:
        entries, count = reader.read()
        if not count:
            return np.concatenate([np.zeros(0, ENTRY), *batches])
        batches.append(entries)

def plain(entries):
    return sorted(zip(entries["kind"].tolist(), entries["source_port"].tolist(), entries["tcp_state"].tolist()))

# The kernel's own events need a connection of its own.
subprocess.run(["nft", "add table inet f; add chain inet f i { type filter hook input priority 0; };"
                "add rule inet f i ct state invalid drop"], check=True)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
with socket.create_server(("127.0.0.1", 0)) as server:
    client = socket.create_connection(server.getsockname())
    accepted = server.accept()[0]
    opened = events()
    seen["opened"] = sorted(set(opened["tcp_state"].tolist()))
    seen["assured"] = (opened["status"] & Status.ASSURED != 0).all().item()
    client.close()
    accepted.close()
seen["ended"] = sorted(set(events()["tcp_state"].tolist()))

writer.apply(all_kinds)
writer.apply(some_entries(3, tcp_state=TcpState.TIME_WAIT))
gone = some_entries(1, kind=Kind.DELETED)
writer.apply(gone)
seen["own"] = plain(events())
other.apply(some_entries(3, tcp_state=TcpState.TIME_WAIT, kind=Kind.REFRESHED)[1:])
other.apply(some_entries(2, kind=Kind.DELETED)[1:])
seen["others"] = plain(events())
seen["unread"] = reader.parser.unread

# More than the socket's buffer holds: once refused, then whole again.
many = some_entries(30000)
writer.apply(many)
lost = 0
for state in (TcpState.TIME_WAIT, TcpState.ESTABLISHED) * 4:
    many["tcp_state"], many["kind"] = state, Kind.REFRESHED
    other.apply(many)
while True:
    try:
        if not len(events()):
            break
    except kernel.EventsLost:
        lost += 1
seen["lost"] = lost
other.apply(many[:5])
seen["after"] = len(events())
print(json.dumps(seen))
"""
)


def test_events_are_of_others_and_of_what_matters() -> None:
    with pair() as hosts:
        seen = json.loads(hosts.python(hosts.left, EVENTS))
    assert (seen["opened"], seen["assured"]) == ([3], True)
    assert 7 in seen["ended"]
    assert seen["own"] == []
    assert seen["others"] == [[1, 1025, 7], [1, 1026, 7], [3, 1025, 7]]
    assert seen["unread"] == 0
    assert seen["lost"] >= 1
    assert seen["after"] == 5


SWITCHED_OFF = """
from lb.conntrack.kernel import EVENTS_SWITCH, ConntrackUnavailable, check_conntrack
EVENTS_SWITCH.write_text("0")
try:
    check_conntrack()
except ConntrackUnavailable as error:
    print(error)
"""


def test_events_switched_off_are_refused_with_the_remedy() -> None:
    with pair() as hosts:
        said = hosts.python(hosts.left, SWITCHED_OFF)
    assert said.strip() == "conntrack events are switched off: `sysctl -w net.netfilter.nf_conntrack_events=1`"
