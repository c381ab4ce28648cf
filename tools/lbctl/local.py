# SPDX-License-Identifier: Apache-2.0
"""Commands that work on this machine: the page in a local browser, tokens for the TLS listener."""

import hashlib
import http.server
import json
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from tools.lbctl.client import ApiError, Client
from tools.lbctl.output import console
from tools.lbctl.session import client

ROLES = ("read", "operate", "configure")
TOKEN_BYTES = 32
FORWARDED_HEADERS = ("content-type", "if-match", "x-source", "accept", "if-none-match")
ANSWER_HEADERS = ("content-type", "etag", "cache-control", "content-security-policy", "x-content-type-options")
BODY_BYTES_MAX = 4 << 20
STREAM_TIMEOUT_S = 60.0

token = typer.Typer(help="Tokens for the TLS listener of the API.", no_args_is_help=True)


@token.command("new")
def token_new(
    file: Annotated[Path, typer.Argument(help="[api] tokens_file of the node file; made if missing.")],
    name: Annotated[str, typer.Option(help="Whose it is; shown in events and the audit log.")],
    role: Annotated[str, typer.Option(help="read, operate or configure.")] = "read",
) -> None:
    """Make a token, note its hash in the file, and print it: it cannot be shown again."""
    if role not in ROLES:
        raise typer.BadParameter(f"role is one of {', '.join(ROLES)}")
    if not name or ":" in name or "#" in name or not name.isprintable():
        raise typer.BadParameter("name is printable and holds no ':' or '#'")
    secret = secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    try:
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(fd, "w") as out:
            out.write(f"{role}:{name}:{digest}\n")
    except OSError as error:
        raise ApiError("denied", f"cannot write {file}: {error.strerror}") from error
    typer.echo(secret)
    console(to_stderr=True).print("restart lb-api to make it valid: systemctl restart lb-api")


def page(
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Local port; 0: any free one.")] = 8088,
) -> None:
    """Serve the page on this machine's loopback with your own rights, until Ctrl-C; prints its address.

    The address carries a key made for this run: other users of this machine cannot use the page without it.
    """
    key = secrets.token_urlsafe(TOKEN_BYTES)
    api = client()
    api.get("/v1/status")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), forwarder(api, key))
    server.daemon_threads = True
    typer.echo(f"http://127.0.0.1:{server.server_port}/#key={key}")
    console(to_stderr=True).print("[dim]open it in a browser; Ctrl-C ends it[/]")
    try:
        server.serve_forever()
    finally:
        server.server_close()


def forwarder(api: Client, key: str) -> type[http.server.BaseHTTPRequestHandler]:
    """A request handler that passes everything on to api for whoever knows key."""

    class Forwarder(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _allowed(self) -> bool:
            # A foreign page that has its own name resolve to 127.0.0.1 comes with that name as Host.
            host = (self.headers.get("host") or "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                return False
            if not self.path.startswith(("/v1/", "/metrics", "/openapi.json")):
                return True
            given = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            return secrets.compare_digest(given.encode(), key.encode())

        def _forward(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            if not self._allowed() or length > BODY_BYTES_MAX:
                self._refuse(401 if length <= BODY_BYTES_MAX else 413)
                return
            body = self.rfile.read(length) if length else None
            headers = {name: self.headers[name] for name in FORWARDED_HEADERS if name in self.headers}
            try:
                response = api.raw(self.command, self.path, body, headers, STREAM_TIMEOUT_S)
            except ApiError as error:
                self._refuse(502, error.message)
                return
            self.send_response(response.status)
            for name in ANSWER_HEADERS:
                if value := response.getheader(name):
                    self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                while piece := response.read1(1 << 16):
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                pass
            finally:
                response.close()

        def _refuse(self, status: int, text: str = "open the address that lbctl page printed") -> None:
            body = json.dumps({"code": "unauthenticated", "message": text}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = do_DELETE = do_PATCH = _forward

    return Forwarder
