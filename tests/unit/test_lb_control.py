# SPDX-License-Identifier: Apache-2.0
"""The control socket: frames, errors, limits, streams; no request ends the server."""

import asyncio
import os
import stat
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netlab.waiting import PATIENCE_S

from lb.control import Caller, ControlError, ControlServer
from lb.control import server as control_server
from lb.control.protocol import FRAME_BYTES_MAX
from lb.process.listening import unix_listener


class Client:
    """A peer that speaks the protocol by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> "Client":
        return cls(*await asyncio.open_unix_connection(str(path)))

    def send(self, frame: Any) -> None:
        self.send_bytes(msgpack.packb(frame))

    def send_bytes(self, data: bytes, length: int | None = None) -> None:
        self.writer.write(struct.pack(">I", len(data) if length is None else length) + data)

    async def receive(self) -> Any:
        (length,) = struct.unpack(">I", await asyncio.wait_for(self.reader.readexactly(4), PATIENCE_S))
        return msgpack.unpackb(await self.reader.readexactly(length))

    async def call(self, method: str, **params: Any) -> Any:
        self.send({"id": 7, "method": method, "params": params, "caller": {"who": "alice", "origin": "test"}})
        return await self.receive()


async def _echo(params: dict[str, Any], caller: Caller) -> Any:
    return {"params": params, "who": caller.who, "uid": caller.uid, "pid": caller.pid}


async def _refuse(_params: dict[str, Any], _caller: Caller) -> Any:
    raise ControlError("not_found", "no such thing", field="name", remedy="name another one")


async def _crash(_params: dict[str, Any], _caller: Caller) -> Any:
    raise ZeroDivisionError("a defect")


async def _unpackable(_params: dict[str, Any], _caller: Caller) -> Any:
    return object()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    server = ControlServer(tmp_path / "control.sock")
    for name, handler in {"echo": _echo, "refuse": _refuse, "crash": _crash, "odd": _unpackable}.items():
        server.register(name, handler)
    await server.start()
    yield server
    await server.stop()


async def test_call_and_answer(server: ControlServer) -> None:
    client = await Client.connect(server.path)
    answer = await client.call("echo", a=1)
    assert answer["id"] == 7
    assert answer["result"] == {"params": {"a": 1}, "who": "alice", "uid": os.getuid(), "pid": os.getpid()}


async def test_socket_is_for_root_and_the_group_only(server: ControlServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o660


async def test_refusal_names_field_and_remedy(server: ControlServer) -> None:
    client = await Client.connect(server.path)
    answer = await client.call("refuse")
    assert answer["error"] == {
        "code": "not_found",
        "message": "no such thing",
        "field": "name",
        "remedy": "name another one",
    }


@pytest.mark.parametrize(
    ("method", "code"), [("crash", "internal"), ("odd", "internal"), ("nonsense", "not_found"), (5, "bad_request")]
)
async def test_error_leaves_the_connection_usable(server: ControlServer, method: Any, code: str) -> None:
    client = await Client.connect(server.path)
    assert (await client.call(method))["error"]["code"] == code
    assert (await client.call("echo"))["result"]["who"] == "alice"


async def test_methods_are_listed(server: ControlServer) -> None:
    client = await Client.connect(server.path)
    assert {"echo", "methods", "subscribe"} <= set((await client.call("methods"))["result"])


@pytest.mark.parametrize("data", [b"\xc1", b"", msgpack.packb([1]), msgpack.packb("x"), b"\x91" * 2000])
async def test_what_is_no_request_closes_that_connection_alone(server: ControlServer, data: bytes) -> None:
    bad, good = await Client.connect(server.path), await Client.connect(server.path)
    bad.send_bytes(data)
    assert (await bad.receive())["error"]["code"] == "bad_request"
    assert await bad.reader.read() == b""
    assert (await good.call("echo"))["result"]


async def test_length_is_limited(server: ControlServer) -> None:
    client = await Client.connect(server.path)
    client.send_bytes(b"", length=FRAME_BYTES_MAX + 1)
    assert "limit" in (await client.receive())["error"]["message"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300))
def test_no_bytes_end_the_server(data: bytes, tmp_path: Path) -> None:
    async def try_it() -> Any:
        server = ControlServer(tmp_path / "fuzz.sock")
        server.register("echo", _echo)
        await server.start()
        bad = await Client.connect(server.path)
        bad.writer.write(data)
        bad.writer.write_eof()
        await asyncio.wait_for(bad.reader.read(), PATIENCE_S)
        answer = await (await Client.connect(server.path)).call("echo")
        await server.stop()
        return answer["result"]

    assert asyncio.run(try_it())


async def test_requests_of_one_connection_do_not_wait_for_each_other(server: ControlServer) -> None:
    release = asyncio.Event()

    async def slow(_params: dict[str, Any], _caller: Caller) -> str:
        await release.wait()
        return "slow"

    server.register("slow", slow)
    client = await Client.connect(server.path)
    client.send({"id": 1, "method": "slow"})
    client.send({"id": 2, "method": "echo"})
    assert (await client.receive())["id"] == 2
    release.set()
    assert (await client.receive()) == {"id": 1, "result": "slow"}


async def test_connections_are_limited(server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_server, "CONNECTIONS_MAX", 2)
    clients = [await Client.connect(server.path) for _ in range(2)]
    for client in clients:
        assert (await client.call("echo"))["result"]
    refused = await Client.connect(server.path)
    assert (await refused.receive())["error"]["code"] == "too_many"
    clients[0].writer.close()
    await clients[0].writer.wait_closed()

    async def is_served() -> bool:
        return "result" in await (await Client.connect(server.path)).call("echo")

    async with asyncio.timeout(PATIENCE_S):
        while not await is_served():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_subscribers_get_their_topics_in_order(server: ControlServer) -> None:
    client, everything = await Client.connect(server.path), await Client.connect(server.path)
    assert (await client.call("subscribe", topics=["events"]))["result"] == {}
    assert (await everything.call("subscribe"))["result"] == {}
    server.publish("config", {"n": 0})
    server.publish("events", {"n": 1})
    server.publish("events", {"n": 2})
    assert [await client.receive() for _ in range(2)] == [{"stream": 7, "event": {"n": n}} for n in (1, 2)]
    assert [(await everything.receive())["event"]["n"] for _ in range(3)] == [0, 1, 2]


async def test_subscriber_that_does_not_read_loses_events_and_stops_nobody(server: ControlServer) -> None:
    sleeper, reader = await Client.connect(server.path), await Client.connect(server.path)
    for client in (sleeper, reader):
        await client.call("subscribe", topics=["events"])
    sleeper.reader._transport.pause_reading()  # type: ignore[attr-defined]
    blob = "x" * 100_000
    received = 0
    for number in range(300):
        server.publish("events", {"n": number, "blob": blob})
        received += (await reader.receive())["event"]["n"] == number
    assert received == 300
    assert server.events_shed > 0


async def test_left_over_socket_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    left_over = unix_listener(path, "no-such-group", 1)
    left_over.close()
    server = ControlServer(path)
    await server.start()
    assert (await (await Client.connect(path)).call("methods"))["result"]
    await server.stop()
    assert not path.exists()
