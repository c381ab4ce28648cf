# SPDX-License-Identifier: Apache-2.0
"""Client of the HTTP API, over the Unix socket or over TLS with a token.

http.client of the standard library: it is loaded in 15 ms, and a command should feel instant.
"""

import errno
import http.client
import json
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

DEFAULT_SOCKET = "/run/lb/api.sock"
TIMEOUT_S = 10.0
# A configuration is validated and multicast before it is answered.
CHANGE_TIMEOUT_S = 40.0
# No event for this long while heartbeats come every 10 s: the peer is gone.
STREAM_TIMEOUT_S = 30.0
LINE_BYTES_MAX = 64 << 20


class ApiError(Exception):
    """The API's refusal, or that it cannot be reached."""

    def __init__(self, code: str, message: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.field, self.remedy = code, message, field, remedy


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe=":")


class Client:
    """One gateway's API. place: path of a Unix socket, or an https:// URL (then with a token)."""

    def __init__(self, place: str, token: str | None = None, ca_file: Path | None = None) -> None:
        self.place = place
        self._token = token
        self._ca_file = ca_file

    def get(self, path: str, **query: Any) -> Any:
        return self.request("GET", path, query=query)[0]

    def post(self, path: str, body: Any = None) -> Any:
        return self.request("POST", path, document=body, timeout=CHANGE_TIMEOUT_S)[0]

    def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        document: Any = None,
        text: str | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> tuple[Any, dict[str, str]]:
        """The decoded answer (JSON, or text of another type) and its headers in lower case. Raises ApiError."""
        response = self._send(method, path, query, document, text, headers or {}, timeout)
        try:
            data = response.read()
        except OSError as error:
            raise self._unreachable(error) from error
        found = {name.lower(): value for name, value in response.getheaders()}
        if found.get("content-type", "").startswith("application/json"):
            return json.loads(data), found
        return data.decode(errors="replace"), found

    def download(self, path: str, document: Any, timeout: float) -> Iterator[bytes]:
        """The answer's body piece by piece, as it comes. Raises ApiError."""
        response = self._send("POST", path, None, document, None, {}, timeout)
        try:
            while piece := response.read1(1 << 16):
                yield piece
        except OSError as error:
            raise self._unreachable(error) from error

    def stream(self) -> Iterator[tuple[str, Any]]:
        """(kind, data) of each server-sent event. Raises ApiError when the stream ends."""
        response = self._send("GET", "/v1/stream", None, None, None, {}, STREAM_TIMEOUT_S)
        kind = ""
        try:
            while line := response.readline(LINE_BYTES_MAX):
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    kind = value
                elif name == "data":
                    yield kind, json.loads(value)
        except OSError as error:
            raise self._unreachable(error) from error
        raise ApiError("unavailable", "the API ended the stream", remedy="try again: it may have been restarted")

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        document: Any,
        text: str | None,
        headers: dict[str, str],
        timeout: float,
    ) -> http.client.HTTPResponse:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        body = None if document is None and text is None else (text or json.dumps(document)).encode()
        sent = dict(headers)
        if body is not None:
            sent.setdefault("content-type", "application/json")
        if self._token:
            sent["authorization"] = f"Bearer {self._token}"
        response = self.raw(method, target, body, sent, timeout)
        if response.status >= 400:
            raise _refusal(response)
        return response

    def raw(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> http.client.HTTPResponse:
        """One exchange as it is, whatever its status; the body is still to be read. Raises ApiError(unavailable)."""
        connection = self._connection(timeout)
        try:
            connection.request(method, target, body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if not self.place.startswith(("http://", "https://")):
            return _UnixConnection(self.place, timeout)
        url = urlsplit(self.place)
        if url.scheme == "http":
            return http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
        context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)
        return http.client.HTTPSConnection(url.hostname or "", url.port, timeout=timeout, context=context)

    def _unreachable(self, error: Exception) -> ApiError:
        if isinstance(error, ssl.SSLError):
            remedy = "is it the right gateway? A private certificate authority is named with --ca-file"
            return ApiError("unavailable", f"{self.place} cannot be trusted: {error}", remedy=remedy)
        number = getattr(error, "errno", None)
        if number == errno.EACCES:
            return ApiError(
                "denied",
                f"you may not open {self.place}",
                remedy="run lbctl as root, or join the socket's group: usermod -aG lb YOU, then log in again",
            )
        reason = os.strerror(number) if number else str(error) or type(error).__name__
        return ApiError("unavailable", f"the API does not answer on {self.place}: {reason}", remedy=self._night_help())

    def _night_help(self) -> str:
        """What to do at 3 a.m., in the order to do it."""
        if self.place.startswith("http"):
            return "is the gateway up, and its API listening there ([api] listen in its node file)? On it: lbctl status"
        control = Path(self.place).with_name("control.sock")
        lbd = (
            "lbd's control socket is there, so only the API process is missing"
            if control.exists()
            else "lbd is not running"
        )
        return (
            f"{lbd}. Packets are forwarded by the kernel program without either of them.\n"
            "  1. lbctl doctor                      what this host lacks (needs no daemon)\n"
            "  2. systemctl status lbd lb-api       did they fail? why?\n"
            "  3. journalctl -u lbd -u lb-api -n 50\n"
            "  4. systemctl restart lbd             loses no packet of an established connection\n"
            "  Another socket or gateway: --socket PATH, LBCTL_SOCKET, or --url https://…"
        )


def _refusal(response: http.client.HTTPResponse) -> ApiError:
    text = response.read(1 << 20).decode(errors="replace")
    try:
        document = json.loads(text)
        return ApiError(
            document["code"], document["message"], field=document.get("field"), remedy=document.get("remedy")
        )
    except (ValueError, KeyError, TypeError):
        return ApiError("internal", f"HTTP {response.status}: {text[:500].strip() or response.reason}")
