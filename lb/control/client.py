# SPDX-License-Identifier: Apache-2.0
"""A client of the control socket: many requests under way on one connection, events on another."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from lb.control.protocol import ControlError, FrameError, encode_frame, read_frame

UNDER_WAY_MAX = 256
CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 5.0
# A change is validated in a child process and multicast to all gateways before it is answered.
CHANGE_TIMEOUT_S = 30.0


class ControlClient:
    """Connects when first needed and again after a failure; safe to use from many tasks of one loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        caller: dict[str, str] | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> Any:
        """The result of one request. Raises ControlError: lbd's own refusal, `unavailable` or `timeout`."""
        if len(self._waiting) >= UNDER_WAY_MAX:
            raise ControlError(
                "too_many", f"{UNDER_WAY_MAX} requests to lbd are under way", remedy="try again in a second"
            )
        writer = await self._connected()
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            writer.write(encode_frame({"id": number, "method": method, "params": params or {}, "caller": caller or {}}))
            async with asyncio.timeout(timeout_s):
                await writer.drain()
                return await future
        except TimeoutError:
            raise ControlError(
                "timeout", f"lbd did not answer '{method}' within {timeout_s:g} s", remedy=self._remedy
            ) from None
        except OSError as error:
            raise self._unavailable(error) from error
        finally:
            self._waiting.pop(number, None)

    async def events(self, topics: Sequence[str] = ("*",)) -> AsyncIterator[dict[str, Any]]:
        """Events as they happen, on a connection of their own, until it ends. Raises ControlError(unavailable)."""
        reader, writer = await self._open()
        try:
            writer.write(
                encode_frame({"id": 0, "method": "subscribe", "params": {"topics": list(topics)}, "caller": {}})
            )
            while True:
                message = await read_frame(reader, any_key=True)
                if "error" in message:
                    raise ControlError.of(message["error"])
                if "event" in message:
                    yield message["event"]
        except (OSError, asyncio.IncompleteReadError, FrameError) as error:
            raise self._unavailable(error) from error
        finally:
            writer.close()

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._writer:
            self._writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return await asyncio.open_unix_connection(str(self.path))
        except (OSError, TimeoutError) as error:
            raise self._unavailable(error) from error

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None or self._writer.is_closing():
                reader, self._writer = await self._open()
                self._reading = asyncio.create_task(self._read(reader, self._writer))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        failure: Exception = ConnectionError("lbd closed the connection")
        try:
            while True:
                self._answered(await read_frame(reader, any_key=True))
        except (OSError, asyncio.IncompleteReadError, FrameError) as error:
            failure = error
        finally:
            writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(self._unavailable(failure))
            self._waiting.clear()

    def _answered(self, message: dict[str, Any]) -> None:
        future = self._waiting.pop(message.get("id", -1), None)
        if future is None or future.done():
            return
        if message.get("error"):
            future.set_exception(ControlError.of(message["error"]))
        else:
            future.set_result(message.get("result"))

    def _unavailable(self, error: Exception) -> ControlError:
        return ControlError("unavailable", f"lbd does not answer on {self.path}: {error}", remedy=self._remedy)

    @property
    def _remedy(self) -> str:
        return (
            "packets of existing services are still forwarded without lbd; look at 'systemctl status lbd' and "
            "'journalctl -u lbd -n 50', then 'systemctl start lbd'"
        )
