# SPDX-License-Identifier: Apache-2.0
"""Wrong requests to a running daemon and API: `python -m tests.fuzz.requests --count N --seed S` (needs root).

Control socket: broken frames, odd values and wrong types in every method's parameters. API: odd paths, queries,
headers and bodies of every call, and requests that are no HTTP. Whatever comes, the process answers with a documented
refusal or closes that connection; it never calls a request its own fault (`internal`, 500), never hangs, and serves the
next.
"""

import argparse
import json
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgpack

from lb.api.problems import STATUS_OF_CODE
from lb.api.routes import ENDPOINTS
from lb.control.protocol import FRAME_BYTES_MAX

ANSWER_S = 20.0
# Ends the daemon, or goes on for as long as it is told to.
LEFT_OUT = ("detach", "/v1/detach", "/v1/stream", "/v1/capture")
CODES = {"bad_request", "denied", "not_found", "conflict", "version_mismatch", "invalid", "too_many", "unavailable"}
NAMES = (
    *("id", "method", "params", "caller", "text", "format", "source", "if_version", "service", "backend", "weight"),
    *("address", "node", "nodes", "after", "limit", "findings", "topics", "seconds", "kind", "protocol", "flags"),
)
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1 << 62, (1 << 64) - 1, 1.5, float("nan"), float("inf"), "", "\0", "é" * 200, "x" * 5000),
    *([], {}, [[]], {"": {}}, "web", "b1", "gw1", "10.9.0.100", "::", "10.9.0.1/33", "toml", "json", DEEP),
    *("[[vip]]\n", "{", "[[service]]\nname = 3\n", ["gw1", None], [{"backend_id": "x"}], [{}], ["*", 7]),
)


def odd(rng: random.Random) -> Any:
    return rng.choice(ODD)


def odd_map(rng: random.Random) -> dict[Any, Any]:
    return {rng.choice(NAMES): odd(rng) for _ in range(rng.randrange(5))}


# --- the control socket ----------------------------------------------------------------------------------------------


def frame(rng: random.Random, methods: Sequence[str]) -> bytes:
    """A request that is wrong somewhere, or not; now and then no request at all."""
    request: Any = {"id": rng.choice((1, 2, odd(rng))), "method": rng.choice(methods), "params": odd_map(rng)}
    if rng.random() < 0.2:
        request[rng.choice(("id", "method", "params", "caller"))] = odd(rng)
    if rng.random() < 0.05:
        request = odd(rng)
    data = bytearray(msgpack.packb(request))
    if rng.random() < 0.2:
        data[rng.randrange(len(data))] = rng.randrange(256)
    length = len(data) if rng.random() < 0.95 else rng.choice((0, 1, len(data) - 1, FRAME_BYTES_MAX + 1, 0xFFFF_FFFF))
    return struct.pack(">I", length) + bytes(data)


def is_whole(sent: bytes) -> bool:
    """Whether the frame is as long as it says: for any other the reader has to be told that nothing follows."""
    return len(sent) - 4 >= int.from_bytes(sent[:4], "big")


def reply_to(path: Path, sent: bytes) -> dict[str, Any] | None:
    """The answer on a connection of its own; None if it was closed instead. TimeoutError if neither comes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
        connection.sendall(sent)
        if not is_whole(sent):
            connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            head = stream.read(4)
            if len(head) < 4:
                return None
            answer = msgpack.unpackb(stream.read(*struct.unpack(">I", head)))
            assert isinstance(answer, dict)
            return answer


def control(path: Path, count: int, seed: int) -> Counter[str]:
    """Outcomes of `count` frames. Raises AssertionError with the frame that broke the rule."""
    listed = reply_to(path, _frame_of({"id": 1, "method": "methods", "params": {}}))
    assert listed is not None
    methods = [name for name in listed["result"] if name not in LEFT_OUT]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        sent = frame(rng, methods)
        try:
            outcomes[_outcome(reply_to(path, sent))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, frame {number}: {error!r}\n{sent[:400]!r}") from error
    assert (reply_to(path, _frame_of({"id": 1, "method": "status", "params": {}})) or {}).get("result")
    return outcomes


def _frame_of(request: dict[str, Any]) -> bytes:
    data: bytes = msgpack.packb(request)
    return struct.pack(">I", len(data)) + data


def _outcome(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "closed"
    if "error" not in answer:
        return "answered"
    assert answer["error"]["code"] in CODES, answer
    assert answer["error"]["message"], answer
    return "refused"


# --- the API ---------------------------------------------------------------------------------------------------------


def call(rng: random.Random) -> bytes:
    """An HTTP request for one of the calls, wrong somewhere or not; now and then no HTTP."""
    endpoint = rng.choice([each for each in ENDPOINTS if each.path not in LEFT_OUT])
    path = "".join(_filled(rng, part) for part in _parts(endpoint.path))
    if rng.random() < 0.4:
        path += "?" + "&".join(f"{rng.choice(NAMES)}={quote(str(odd(rng)))[:300]}" for _ in range(rng.randint(1, 3)))
    body = _body(rng) if endpoint.method != "GET" or rng.random() < 0.1 else b""
    media = rng.choice(("application/json", "application/toml", "text/plain", "application/json; charset=utf-16"))
    method = endpoint.method if rng.random() < 0.9 else rng.choice(("PUT", "DELETE", "PATCH", "BREW"))
    lines = [f"{method} {path} HTTP/1.1", "Host: lb", f"Content-Type: {media}", "Connection: close"]
    if rng.random() < 0.3:
        lines.append(f"If-Match: {rng.choice(('1', 'W/x', '*', chr(34) + '1' + chr(34), '-', '9' * 40))}")
    lines.append(f"Content-Length: {len(body)}")
    sent = "\r\n".join([*lines, "", ""]).encode() + body
    return _garbled(rng, sent) if rng.random() < 0.1 else sent


def _garbled(rng: random.Random, sent: bytes) -> bytes:
    at = rng.randrange(len(sent))
    return sent[:at] + bytes([rng.randrange(256)]) + sent[at + 1 :]


def is_complete(sent: bytes) -> bool:
    """Whether a server that understands it will neither wait for more nor keep the connection open afterwards."""
    head, _, body = sent.partition(b"\r\n\r\n")
    return b"\r\nConnection: close\r\n" in head and head.endswith(b"\r\nContent-Length: %d" % len(body))


def _parts(path: str) -> Iterator[str]:
    for part in path.split("/")[1:]:
        yield f"/{part}"


def _filled(rng: random.Random, part: str) -> str:
    if not part.startswith("/{"):
        return part
    known = {"/{service}": "web", "/{backend}": "b1", "/{node}": "gw1", "/{address}": "10.9.0.100"}[part]
    return f"/{known if rng.random() < 0.5 else quote(str(odd(rng)), safe='')[:300]}"


def _body(rng: random.Random) -> bytes:
    content = json.dumps(odd_map(rng) if rng.random() < 0.8 else odd(rng)).encode()
    if rng.random() < 0.2 and content:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    return content if rng.random() < 0.95 else content * 20_000


def api(path: Path, count: int, seed: int) -> Counter[str]:
    """Outcomes of `count` requests. Raises AssertionError with the request that broke the rule."""
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        sent = call(rng)
        try:
            outcomes[_status(_http(path, sent))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, request {number}: {error!r}\n{sent[:600]!r}") from error
    fine = _http(path, b"GET /v1/status HTTP/1.1\r\nHost: lb\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert _status(fine) == "200"
    return outcomes


def _http(path: Path, sent: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(str(path))
        try:
            connection.sendall(sent)
            if not is_complete(sent):
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before its end, as a body that is too long
        parts = []
        try:
            while part := connection.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def _status(answer: bytes) -> str:
    """Its status, `closed` without one. AssertionError for a failure, or a refusal that does not say why."""
    if not answer:
        return "closed"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status < 500 or status in (503, 504), answer[:500]
    if status >= 400 and b"application/json" in head:
        problem = json.loads(body)
        assert problem["code"] in STATUS_OF_CODE, problem
        assert problem["message"], problem
    return str(status)


def main() -> int:
    from tests.unit.api_support import running_api
    from tests.unit.cluster_namespaces import pair
    from tests.unit.lb_process import lbd_in

    parser = argparse.ArgumentParser(prog="tests.fuzz.requests")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rainlb-fuzz-") as directory:
        began = time.monotonic()
        with pair() as wire, lbd_in(Path(directory), wire.left) as lbd:
            lbd.start()
            outcomes = control(lbd.directory / "run" / "control.sock", options.count, options.seed)
        print(f"control socket: {options.count} frames in {time.monotonic() - began:.1f} s: {dict(outcomes)}")
        began = time.monotonic()
        with running_api(Path(directory) / "api") as running:
            outcomes = api(running.socket, options.count, options.seed)
        print(f"API: {options.count} requests in {time.monotonic() - began:.1f} s: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
