# SPDX-License-Identifier: Apache-2.0
"""Listeners and life of the API process: the Unix socket, the optional TLS listener, an end in order."""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lb.api.access import peer_of
from lb.api.settings import Settings
from lb.process.listening import unix_listener

BACKLOG = 256
CONNECTIONS_MAX = 512
HEADER_BYTES_MAX = 32 << 10
KEEP_ALIVE_S = 30
STOP_TIMEOUT_S = 3
OWN_SOCKET_CHECK_S = 1.0

log = logging.getLogger("lb.api")


async def _with_peer(peer: Any, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    scope["peer"] = peer
    await app(scope, receive, send)


class PeerProtocol(H11Protocol):
    """HTTP on a Unix socket; the kernel's word for who connected goes along with each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        try:
            peer = peer_of(transport.get_extra_info("socket"))
        except OSError:
            transport.abort()
            return
        self.app = functools.partial(_with_peer, peer, self.app)


class QuietServer(uvicorn.Server):
    """Signals are handled once for all listeners, not by each."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
        ws="none",
        **options,
    )


def tcp_listener(listen: str) -> socket.socket:
    """A listening socket for host:port or [v6]:port."""
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)


def _listeners(app: ASGIApp, settings: Settings) -> list[tuple[uvicorn.Server, socket.socket]]:
    """What to serve on, all bound; the Unix socket last, so that whoever sees it finds everything up."""
    pairs: list[tuple[uvicorn.Server, socket.socket]] = []
    if settings.api.listen:
        files = {"ssl_certfile": settings.api.certificate_file, "ssl_keyfile": settings.api.private_key_file}
        config = _config(app, http="h11", **files)
        config.load()
        pairs.append((QuietServer(config), tcp_listener(settings.api.listen)))
    local = unix_listener(settings.api_socket, settings.api.group, BACKLOG)
    return [*pairs, (QuietServer(_config(app, http=PeerProtocol)), local)]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


async def _until_replaced(path: Path) -> None:
    """Returns when path is no longer the socket this process bound: a newer API process has taken over."""
    own = _inode(path)
    while _inode(path) == own:  # noqa: ASYNC110  (nothing tells a process that a name in a directory changed hands)
        await asyncio.sleep(OWN_SOCKET_CHECK_S)


async def serve(app: ASGIApp, settings: Settings, before_end: Callable[[], Awaitable[None]]) -> None:
    """Until SIGTERM, SIGINT, or until another process has replaced the socket; before_end ends endless answers."""
    pairs = _listeners(app, settings)
    running = [asyncio.create_task(server.serve(sockets=[listener])) for server, listener in pairs]
    replaced = asyncio.create_task(_until_replaced(settings.api_socket))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    log.info("serving on %s", settings.api_socket)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([*running, replaced, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not replaced.done():
        settings.api_socket.unlink(missing_ok=True)
    for task in (replaced, stopping):
        task.cancel()
    await before_end()
    for server, _ in pairs:
        server.should_exit = True
    await asyncio.gather(*running)
