# SPDX-License-Identifier: Apache-2.0
"""Handlers that look into the live packet path: where, capture, metrics."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response, StreamingResponse

from lb.api import inventory
from lb.api.calls import answer
from lb.api.endpoint import Call
from lb.api.exposition import exposition
from lb.api.problems import ApiProblem

# The mirror is one buffer with one reader, and costs the packet path a copy of every packet.
_mirror = threading.Lock()
_explanation = asyncio.Lock()
CAPTURE_MEDIA = "application/x-pcapng"


async def where(call: Call) -> Response:
    names = await inventory.names(call.gateway)
    body = call.body.model_copy(update={"interface": call.body.interface or call.gateway.settings.first_interface})
    async with _explanation:
        return answer(await asyncio.to_thread(call.gateway.datapath.where, body, names))


async def capture(call: Call) -> Response:
    names = await inventory.names(call.gateway)
    if not _mirror.acquire(blocking=False):
        raise ApiProblem("too_many", "a capture is running already", remedy="wait for it to end, or stop it")
    stop = threading.Event()
    try:
        pieces = call.gateway.datapath.capture(call.body, names, stop.is_set)
        # The first piece is the file header: an unloaded packet path is refused here, with a proper status.
        first = await asyncio.to_thread(next, pieces)
        await call.gateway.record(call.identity, "capture", call.body.model_dump(), "started", 0.0)
    except BaseException:
        _mirror.release()
        raise
    return StreamingResponse(_stream(first, pieces, stop), media_type=CAPTURE_MEDIA)


async def _stream(first: bytes, pieces: Iterator[bytes], stop: threading.Event) -> AsyncIterator[bytes]:
    try:
        yield first
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            if piece:
                yield piece
    finally:
        stop.set()
        _mirror.release()


async def metrics(call: Call) -> Response:
    return Response(await exposition(call.gateway), media_type=CONTENT_TYPE_LATEST)
