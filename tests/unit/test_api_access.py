# SPDX-License-Identifier: Apache-2.0
"""Who may do what: roles by the kernel's word on the socket and by token on the TLS listener, and what is recorded."""

import contextlib
import grp
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.api.access import Identity, Peer, identify_token, load_tokens, peer_of, require, role_of
from lb.api.audit import FILE_BYTES_MAX, FILES_KEPT, AuditLog
from lb.api.problems import ApiProblem
from lb.api.settings import Access, SettingsError, load_settings
from tests.unit.api_support import ROOT, TOKEN, RunningApi, running_api, tls_listener
from tools.lbctl.client import ApiError, Client

NOBODY = 65534
DAEMON_GROUP = grp.getgrnam("daemon").gr_gid


@pytest.mark.parametrize(
    ("peer", "rules", "role"),
    [
        (Peer(1, 0, (0,)), [], "configure"),
        (Peer(1, NOBODY, (NOBODY,)), [], "read"),
        (Peer(1, NOBODY, (NOBODY, DAEMON_GROUP)), [], "operate"),
        (Peer(1, NOBODY, (DAEMON_GROUP,)), [Access(group="daemon", role="read")], "read"),
        (Peer(1, NOBODY, (DAEMON_GROUP,)), [Access(user="nobody", role="configure")], "configure"),
        (Peer(1, NOBODY, (DAEMON_GROUP,)), [Access(user="somebody", role="configure")], "operate"),
        (Peer(1, 0, (0,)), [Access(user="root", role="read")], "configure"),
        (Peer(1, 4_000_000, (4_000_000,)), [Access(group="nosuchgroup", role="configure")], "read"),
    ],
)
def test_role_of_a_peer(peer: Peer, rules: list[Access], role: str) -> None:
    assert role_of(peer, rules, socket_group="daemon") == role


@pytest.mark.parametrize(
    ("role", "needed", "allowed"),
    [
        ("read", "read", True),
        ("read", "operate", False),
        ("operate", "read", True),
        ("operate", "configure", False),
        ("configure", "operate", True),
    ],
)
def test_roles_contain_each_other(role: str, needed: str, allowed: bool) -> None:
    identity = Identity("ann", "here", role)  # type: ignore[arg-type]
    if allowed:
        require(identity, needed)  # type: ignore[arg-type]
        return
    with pytest.raises(ApiProblem, match="ann has the role"):
        require(identity, needed)  # type: ignore[arg-type]


def test_kernel_tells_the_peer() -> None:
    with contextlib.closing(socket.socket()) as _:
        one, other = socket.socketpair(socket.AF_UNIX)
        peer = peer_of(one)
        assert (peer.pid, peer.uid, peer.groups[0]) == (os.getpid(), os.getuid(), os.getgid())
        one.close()
        other.close()


def run_as_nobody(api: RunningApi, *arguments: str) -> subprocess.CompletedProcess[str]:
    """lbctl as an ordinary user in the socket's group."""

    def drop() -> None:
        os.setgroups([DAEMON_GROUP])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    environment = {"LBCTL_SOCKET": str(api.socket), "PATH": "/usr/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "tools.lbctl.main", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, preexec_fn=drop, capture_output=True, text=True, timeout=30
    )


@pytest.fixture(scope="module")
def open_directory() -> Iterator[Path]:
    """A directory other users can look into; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def api(open_directory: Path) -> Iterator[RunningApi]:
    """One whose socket belongs to a group that exists here, reachable by other users."""
    directory = open_directory
    port, extra = tls_listener(directory, role="read")
    with running_api(directory / "gw", extra + 'group = "daemon"\n') as running:
        running.tls_port = port
        yield running


def test_socket_group_operates_and_does_not_configure(api: RunningApi) -> None:
    assert os.stat(api.socket).st_gid == DAEMON_GROUP
    drained = run_as_nobody(api, "drain", "web/b1")
    assert drained.returncode == 0, drained.stderr
    method, caller = api.control.callers[-1]
    assert (method, caller["who"], caller["role"]) == ("backend.drain", "nobody", "operate")
    denied = run_as_nobody(api, "detach", "--yes")
    assert denied.returncode == 4
    assert "this needs 'configure'" in denied.stderr
    assert 'user = "nobody"' in denied.stderr
    last = json.loads(api.audit_file.read_text().splitlines()[-1])
    assert (last["who"], last["outcome"]) == ("nobody", "denied")


def test_tls_listener_wants_a_token_and_keeps_to_its_role(api: RunningApi, tmp_path: Path) -> None:
    place = f"https://localhost:{api.tls_port}"
    certificate = next(api.directory.parent.glob("cert.pem"))
    reader = Client(place, TOKEN, certificate)
    assert reader.get("/v1/status")["node"] == "gw1"
    for client, code in (
        (Client(place, None, certificate), "unauthenticated"),
        (Client(place, "x", certificate), "unauthenticated"),
    ):
        with pytest.raises(ApiError) as caught:
            client.get("/v1/status")
        assert caught.value.code == code
    with pytest.raises(ApiError) as caught:
        reader.post("/v1/backends/web/b1/drain")
    assert caught.value.code == "denied"
    with pytest.raises(ApiError, match="CERTIFICATE_VERIFY_FAILED"):
        Client(place, TOKEN).get("/v1/status")


def test_page_itself_is_not_secret_but_its_data_is(api: RunningApi) -> None:
    certificate = next(api.directory.parent.glob("cert.pem"))
    text, headers = Client(f"https://localhost:{api.tls_port}", None, certificate).request("GET", "/")
    assert "<title>rainlb</title>" in text
    assert "script-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("line", "mode", "complaint"),
    [
        ("read:ann:" + "0" * 64, 0o644, "chmod 0600"),
        ("boss:ann:" + "0" * 64, 0o600, "expected role:name:sha256hex"),
        ("read:ann:" + "0" * 63, 0o600, "expected role:name:sha256hex"),
        ("read:ann:" + "g" * 64, 0o600, "not hexadecimal"),
    ],
)
def test_token_file_faults_are_named(tmp_path: Path, line: str, mode: int, complaint: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# comment\n\n{line}\n")
    file.chmod(mode)
    with pytest.raises(SettingsError, match=complaint):
        load_tokens(file)


def test_made_tokens_are_accepted(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    command = [
        sys.executable,
        "-m",
        "tools.lbctl.main",
        "token",
        "new",
        str(file),
        "--name",
        "ann",
        "--role",
        "operate",
    ]
    secret = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert secret not in file.read_text()
    identity = identify_token(f"Bearer {secret}", load_tokens(file), "192.0.2.1")
    assert (identity.who, identity.role) == ("ann", "operate")
    with pytest.raises(ApiProblem):
        identify_token(f"Basic {secret}", load_tokens(file), "192.0.2.1")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('listen = "0.0.0.0:8443"', "listen needs certificate_file"),
        ('access = [{ role = "read" }]', "give either user"),
        ('access = [{ user = "a", role = "boss" }]', "'boss'"),
        ("colour = 1", "colour"),
    ],
)
def test_api_table_faults_are_named(tmp_path: Path, table: str, complaint: str) -> None:
    file = tmp_path / "node.toml"
    file.write_text(f'cluster = "c"\n[node]\nname = "gw1"\nid = 1\n[api]\n{table}\n')
    with pytest.raises(SettingsError, match=complaint) as caught:
        load_settings(file)
    assert str(file) in str(caught.value)


def test_process_refuses_a_bad_file_by_name(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[api]\ncolour = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "lb.api", "--config", str(file)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 78
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


def test_audit_log_turns_over_and_cuts_long_texts(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    ann = Identity("ann", "here", "configure")
    log.write(ann, "config.apply", {"text": "x" * 10_000}, "done", 1.0)
    line = json.loads(log.path.read_text())
    assert len(line["request"]["text"]) < 600
    assert "10000 characters" in line["request"]["text"]
    for _ in range(FILES_KEPT + 3):
        with log.path.open("a") as out:
            out.truncate(FILE_BYTES_MAX)
        log.write(ann, "vip.move", {}, "done", 1.0)
    assert len(list(tmp_path.iterdir())) == FILES_KEPT + 1
    assert log.path.read_text().count("\n") == 1
