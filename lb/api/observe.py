# SPDX-License-Identifier: Apache-2.0
"""Handlers that look into the live packet path: where, capture, metrics."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response, StreamingResponse

from lb.api import inventory
from lb.api.calls import answer
from lb.api.endpoint import Call
from lb.api.exposition import exposition
from lb.api.problems import ApiProblem

# A capture is over this long after its own limit at the latest, whatever became of its client.
MIRROR_GRACE_S = 5.0


class Mirror:
    """The mirrored packets are one buffer for one reader. Who holds it loses it at a deadline: a client may vanish
    before its answer has begun, and nobody would give it back then."""

    def __init__(self) -> None:
        self._until = 0.0

    def take(self, seconds: float) -> None:
        """Raises ApiProblem(too_many) while another capture runs."""
        if time.monotonic() < self._until:
            raise ApiProblem("too_many", "a capture is running already", remedy="wait for it to end, or stop it")
        self._until = time.monotonic() + seconds + MIRROR_GRACE_S

    def give_back(self) -> None:
        self._until = 0.0


_mirror = Mirror()
_explanation = asyncio.Lock()
CAPTURE_MEDIA = "application/x-pcapng"


async def where(call: Call) -> Response:
    names = await inventory.names(call.gateway)
    body = call.body.model_copy(update={"interface": call.body.interface or call.gateway.settings.first_interface})
    async with _explanation:
        return answer(await asyncio.to_thread(call.gateway.datapath.where, body, names))


async def capture(call: Call) -> Response:
    names = await inventory.names(call.gateway)
    _mirror.take(call.body.seconds)
    stop = threading.Event()
    try:
        pieces = call.gateway.datapath.capture(call.body, names, stop.is_set)
        # The first piece is the file header: an unloaded packet path is refused here, with a proper status.
        first = await asyncio.to_thread(next, pieces)
        await call.gateway.record(call.identity, "capture", call.body.model_dump(), "started", 0.0)
    except BaseException:
        _mirror.give_back()
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
        _mirror.give_back()


async def metrics(call: Call) -> Response:
    return Response(await exposition(call.gateway), media_type=CONTENT_TYPE_LATEST)
