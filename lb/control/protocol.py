# SPDX-License-Identifier: Apache-2.0
"""What goes over the control socket: frames, and refusals.

Frames are a 32-bit big-endian length and a msgpack map. Request `{id, method, params, caller?}`; reply `{id, result}`
or `{id, error: {code, message, field?, remedy?}}`. `subscribe` with `{topics}` is answered, and from then on
`{stream: id, event}` frames follow.
"""

import asyncio
import struct
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgpack

FRAME_BYTES_MAX = 16 << 20

Code = Literal[
    "bad_request",
    "denied",
    "not_found",
    "conflict",
    "version_mismatch",
    "invalid",
    "too_many",
    "unavailable",
    "timeout",
    "internal",
]
_LENGTH = struct.Struct("!I")


class ControlError(Exception):
    """A refusal that the caller is told. `field` is the parameter or path at fault, `remedy` what to do."""

    def __init__(self, code: Code, message: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.code: str = code
        self.message, self.field, self.remedy = message, field, remedy

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "ControlError":
        """What `as_plain` gave. A newer daemon may use codes that this process does not know."""
        code = cast(Code, str(plain.get("code", "internal")))
        message = str(plain.get("message", "lbd gave no reason"))
        return ControlError(code, message, field=plain.get("field"), remedy=plain.get("remedy"))

    def as_plain(self) -> dict[str, Any]:
        optional = {"field": self.field, "remedy": self.remedy}
        given = {key: value for key, value in optional.items() if value is not None}
        return {"code": self.code, "message": self.message, **given}


class FrameError(ControlError):
    """What came is no frame; nothing that follows on this connection can be read."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_request", message)


def encode_frame(message: Mapping[str, Any]) -> bytes:
    """A message as it is sent."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, *, any_key: bool = False) -> dict[str, Any]:
    """The next message; `any_key` if its maps may have other keys than texts.

    Raises FrameError for what is none, IncompleteReadError at the end.
    """
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {length} bytes; the limit is {FRAME_BYTES_MAX}")
    data = await reader.readexactly(length)
    try:
        message = msgpack.unpackb(data, strict_map_key=not any_key)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise FrameError(f"a frame that is no msgpack: {error}") from None
    if not isinstance(message, dict):
        raise FrameError("a frame must hold a map")
    return message
