# SPDX-License-Identifier: Apache-2.0
"""Two gateways' kernels kept equal over a real ring, each in a namespace of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from lb.conntrack.kernel import EVENT_BUFFER_BYTES
from tests.unit.cluster_namespaces import Child, Pair, pair

# Commands come as lines of Python with `await`; what they evaluate to goes back as JSON.
GATEWAY = """
import asyncio, json, sys
from pathlib import Path
import numpy as np
from lb.cluster.ring_settings import ring_config
from lb.configuration.node import Conntrack, Interface, Node, NodeConfig, Peer, Ring as RingTable
from lb.conntrack import kernel
from lb.conntrack.entries import ENTRY, Kind, Status, TcpState
from lb.conntrack.replication import ConntrackReplication
from sync.driver import Ring
from tests.unit.test_conntrack_entries import some_entries, udp_entries, v6_entries

NUMBER, KEY = {number}, {key!r}
kernel.EVENT_BUFFER_BYTES = {buffer_bytes}

def node_config():
    other = 3 - NUMBER
    ring = RingTable(listen=(f"10.9.0.{{NUMBER}}",), key_file=KEY, failure_detection_ms=500, scheduling="other",
                     peers={{"other": Peer(id=other, addresses=(f"10.9.0.{{other}}",))}})
    return NodeConfig(cluster="test", node=Node(name=f"gw{{NUMBER}}", id=NUMBER), ring=ring,
                      interfaces=(Interface(name="wire", segment="wire"),), conntrack=Conntrack(replicate=True))

def ports():
    entries = np.concatenate([np.zeros(0, ENTRY), *kernel.dump_table()])
    return sorted(entries["source_port"].tolist())

def states():
    entries = np.concatenate([np.zeros(0, ENTRY), *kernel.dump_table()])
    return sorted(zip(entries["source_port"].tolist(), entries["tcp_state"].tolist()))

async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
    return True

async def main():
    node = node_config()
    somebody = kernel.TableWriter()
    ring = Ring(ring_config(node), list(node.ring.listen), scheduling="other", workers=0)
    replication = ConntrackReplication(node, ring, lambda: {{}}, lambda complete: None)
    ring.on_view(replication.take_view)
    names = dict(globals(), somebody=somebody, ring=ring, replication=replication)
    loop = asyncio.get_running_loop()
    for line in iter(lambda: None, 1):
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line.strip():
            break
        value = eval(line, names)
        if asyncio.iscoroutine(value):
            value = await value
        print(json.dumps(value), flush=True)
    await replication.close()
    await ring.leave()
    ring.close()

asyncio.run(main())
"""


class Gateway:
    """A process with a ring and the replication, and a hand of somebody else in its kernel's table."""

    def __init__(self, hosts: Pair, number: int, key: Path, buffer_bytes: int = EVENT_BUFFER_BYTES) -> None:
        namespace = (hosts.left, hosts.right)[number - 1]
        code = GATEWAY.format(number=number, key=str(key), buffer_bytes=buffer_bytes)
        self._child: Child = hosts.start(namespace, code)

    def ask(self, text: str) -> Any:
        self._child.write_line(text)
        line = self._child.read_line()
        if not line:
            self._child.process.kill()
            raise AssertionError(f"{text}: {self._child.process.communicate()[1][-2000:]}")
        return json.loads(line)

    def join(self) -> None:
        self.ask("[ring.start(), replication.start()] and None")
        self.ask("until(lambda: replication.complete)")

    def write(self, entries: str) -> None:
        self.ask(f"somebody.apply({entries})")

    def until(self, condition: str) -> None:
        self.ask(f"until(lambda: {condition})")

    def count(self, name: str) -> int:
        return int(self.ask(f"replication.counts()[{name!r}]"))

    def end(self) -> None:
        self._child.write_line()
        self._child.communicate_checked()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "ring.key"
    file.touch(0o600)
    file.write_text("5" * 64 + "\n")
    return file


def test_what_the_kernel_could_not_report_is_told_by_a_survey(key: Path) -> None:
    with pair() as hosts:
        # Room for some dozens of events.
        left, right = Gateway(hosts, 1, key, buffer_bytes=1 << 15), Gateway(hosts, 2, key)
        left.join()
        right.join()
        left.until("not replication.listener.alone and replication.complete")
        left.write("some_entries(4000)")
        left.write("some_entries(4000, tcp_state=4, kind=Kind.REFRESHED)")
        right.until("[state for _, state in states()] == [4] * 4000")
        assert left.count("events_lost") > 0
        assert left.count("told_by_survey") > 0
        for side in (left, right):
            side.end()


def test_two_kernels_are_kept_equal(key: Path) -> None:
    with pair() as hosts:
        left, right = Gateway(hosts, 1, key), Gateway(hosts, 2, key)
        left.write("some_entries(5)")
        right.write("some_entries(1, source_port=7)")
        # What both have from before, each in its own way: the group's is the newer one.
        left.write("some_entries(1, source_port=8)")
        right.write("some_entries(1, source_port=8, tcp_state=4)")
        left.join()
        right.join()
        # The joiner has fetched the table, and has told what only it had.
        right.until("ports() == [7, 8, 1024, 1025, 1026, 1027, 1028]")
        left.until("ports() == [7, 8, 1024, 1025, 1026, 1027, 1028]")
        # One of the two has joined the other.
        given = (left.count("transferred_out"), right.count("transferred_out"))
        assert given in ((6, 0), (0, 2))
        for side in (left, right):
            side.until(f"(8, {3 if given[0] else 4}) in states()")
        # A change is an event.
        left.write("some_entries(2, tcp_state=TcpState.TIME_WAIT)")
        right.until("(1024, 7) in states()")
        # What is made over netlink is told by the next survey.
        left.write("np.concatenate([udp_entries(1, source_port=9), v6_entries(1, source_port=10)])")
        left.ask("replication.survey.soon()")
        right.until("ports() == [7, 8, 9, 10, 1024, 1025, 1026, 1027, 1028]")
        # Deleted by hand, anywhere.
        right.write("some_entries(1, kind=Kind.DELETED)")
        left.until("ports() == [7, 8, 9, 10, 1025, 1026, 1027, 1028]")
        # Malformed bytes of a peer are counted, and do no more.
        right.ask("ring.offer(22, b'KT' + bytes(200))")
        left.until("replication.counts()['received_malformed'] == 1")
        assert left.ask("ports()") == right.ask("ports()")
        # Nothing that was told came back: each side has sent its own changes only.
        assert (left.count("events"), right.count("events")) == (2, 1)
        for side in (left, right):
            assert side.count("kernel_refused") == side.count("events_lost") == side.count("unread") == 0
        left.end()
        # Who is left alone tells nobody, and serves on.
        right.write("some_entries(1, tcp_state=TcpState.TIME_WAIT, source_port=1026)")
        right.until("replication.counts()['events'] == 2")
        right.end()
