# SPDX-License-Identifier: Apache-2.0
"""The daemon's end of the control socket. Whatever a peer sends, the daemon answers or closes that connection; it never
dies of it.
"""

import asyncio
import contextlib
import logging
import socket
import struct
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.control.protocol import FRAME_BYTES_MAX, ControlError, encode_frame, read_frame
from lb.process.listening import unix_listener

CONNECTIONS_MAX = 64
REQUESTS_IN_FLIGHT_MAX = 32
TOPICS_MAX = 32

log = logging.getLogger("lb.control")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: `uid` of the process on the socket, and for whom it speaks (`who`, from `origin`)."""

    uid: int
    pid: int
    who: str
    origin: str


Handler = Callable[[dict[str, Any], Caller], Awaitable[Any]]


@dataclass(eq=False, slots=True)
class _Client:
    writer: asyncio.StreamWriter
    uid: int
    pid: int
    # topic → id of the subscription it was asked for under
    topics: dict[str, int] = field(default_factory=dict)
    in_flight: set[asyncio.Task[None]] = field(default_factory=set)

    def send(self, frame: Mapping[str, Any]) -> None:
        self.writer.write(encode_frame(frame))


class ControlServer:
    """Methods are registered by the parts of the daemon; `publish` reaches all subscribers of a topic."""

    def __init__(self, path: Path, group: str = "lb") -> None:
        self.path = path
        self.requests = 0
        self.refused = 0
        self.events_shed = 0
        self._group = group
        self._methods: dict[str, Handler] = {"methods": self._list_methods}
        self._clients: set[_Client] = set()
        self._server: asyncio.Server | None = None

    def register(self, method: str, handler: Handler, *, replace: bool = False) -> None:
        """Offers a method. A name is taken once unless `replace` says that the caller knows."""
        assert replace or method not in self._methods, f"control method {method} is registered twice"
        self._methods[method] = handler

    async def start(self) -> None:
        """Opens the socket, readable and writable for root and the group (if the system has it)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        listener = unix_listener(self.path, self._group, CONNECTIONS_MAX)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for client in list(self._clients):
            client.writer.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def publish(self, topic: str, event: Mapping[str, Any]) -> None:
        """Sends an event to those who subscribed to its topic; a subscriber who does not read loses events."""
        for client in list(self._clients):
            stream = client.topics.get(topic, client.topics.get("*"))
            if stream is None:
                continue
            if client.writer.transport.get_write_buffer_size() > FRAME_BYTES_MAX // 4:
                self.events_shed += 1
                continue
            client.send({"stream": stream, "event": event})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer, *_peer(writer))
        if len(self._clients) >= CONNECTIONS_MAX:
            self.refused += 1
            remedy = "close connections that are no longer used"
            client.send(
                {"id": None, "error": ControlError("too_many", "too many connections", remedy=remedy).as_plain()}
            )
            writer.close()
            return
        self._clients.add(client)
        try:
            await self._read_requests(client, reader)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except ControlError as error:
            self.refused += 1
            client.send({"id": None, "error": error.as_plain()})
        finally:
            self._clients.discard(client)
            for task in client.in_flight:
                task.cancel()
            writer.close()

    async def _read_requests(self, client: _Client, reader: asyncio.StreamReader) -> None:
        while True:
            request = await read_frame(reader)
            if len(client.in_flight) >= REQUESTS_IN_FLIGHT_MAX:
                await asyncio.wait(client.in_flight, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._answer(client, request))
            client.in_flight.add(task)
            task.add_done_callback(client.in_flight.discard)

    async def _answer(self, client: _Client, request: dict[str, Any]) -> None:
        self.requests += 1
        identity = request.get("id")
        try:
            reply = {"id": identity, "result": await self._call(client, request)}
            client.send(reply)
        except ControlError as error:
            self.refused += 1
            client.send({"id": identity, "error": error.as_plain()})
        except Exception as error:
            # Our own fault, whatever it is: the caller learns that, the journal gets the place, the daemon goes on.
            self.refused += 1
            log.error("control method %r failed: %s", request.get("method"), traceback.format_exc())
            remedy = "see the daemon's journal for the details"
            failure = ControlError("internal", f"{type(error).__name__}: {error}", remedy=remedy)
            client.send({"id": identity, "error": failure.as_plain()})
        with contextlib.suppress(ConnectionError):
            await client.writer.drain()

    async def _call(self, client: _Client, request: dict[str, Any]) -> Any:
        method, params = request.get("method"), request.get("params") or {}
        if not isinstance(method, str) or not isinstance(params, dict):
            raise ControlError("bad_request", "a request has a method (text) and params (a map)")
        if method == "subscribe":
            return self._subscribe(client, request.get("id"), params)
        handler = self._methods.get(method)
        if handler is None:
            raise ControlError("not_found", f"there is no method {method[:80]!r}", remedy="ask `methods` for the list")
        return await handler(params, _caller(client, request.get("caller")))

    def _subscribe(self, client: _Client, identity: Any, params: dict[str, Any]) -> dict[str, Any]:
        topics = params.get("topics", ["*"])
        if not isinstance(identity, int) or not isinstance(topics, list) or len(topics) > TOPICS_MAX:
            raise ControlError(
                "bad_request", f"subscribe takes a numeric id and at most {TOPICS_MAX} topics", field="topics"
            )
        client.topics.update({str(topic): identity for topic in topics})
        return {}

    async def _list_methods(self, _params: dict[str, Any], _caller: Caller) -> list[str]:
        return sorted([*self._methods, "subscribe"])


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    connection = writer.get_extra_info("socket")
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", packed)
    return uid, pid


def _caller(client: _Client, told: Any) -> Caller:
    told = told if isinstance(told, dict) else {}
    who = str(told.get("who") or f"uid {client.uid}")
    return Caller(client.uid, client.pid, who[:128], str(told.get("origin") or "control socket")[:128])
