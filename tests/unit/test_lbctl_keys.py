# SPDX-License-Identifier: Apache-2.0
"""lbctl key: a whole rotation over two nodes, at no point of which they do not understand each other."""

import subprocess
import sys
from pathlib import Path

from sync.key_file import load_key_file
from tests.unit.api_support import ROOT
from tools.lbctl.exits import Exit


def key(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.lbctl.main", "key", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


def secrets(file: Path) -> list[bytes]:
    return [entry.secret for entry in load_key_file(file).keys]


def understand_each_other(one: Path, other: Path) -> bool:
    """Each seals with its first key, and accepts all it has."""
    return secrets(one)[0] in secrets(other) and secrets(other)[0] in secrets(one)


def test_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "ring.key"
    assert key("new", str(file)).returncode == Exit.OK
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.read_bytes()
    again = key("new", str(file))
    assert again.returncode == Exit.CONFLICT
    assert "rotate" in again.stderr
    assert file.read_bytes() == before


def test_rotation_over_two_nodes_keeps_them_together(tmp_path: Path) -> None:
    first, second = tmp_path / "gw1.key", tmp_path / "gw2.key"
    key("new", str(first))
    second.write_bytes(first.read_bytes())
    second.chmod(0o600)
    old = secrets(first)[0]
    for step in ("1 of 3", "2 of 3", "3 of 3"):
        source = ["--from", str(first)] if step == "1 of 3" else []
        assert step in key("rotate", str(first)).stdout
        assert understand_each_other(first, second), f"in the middle of step {step}"
        assert step in key("rotate", str(second), *source).stdout
        assert understand_each_other(first, second), f"after step {step}"
    assert secrets(first) == secrets(second)
    assert old not in secrets(first)


def test_a_second_rotation_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "ring.key"
    key("new", str(file))
    for expected in ("1 of 3", "2 of 3", "3 of 3", "1 of 3", "2 of 3"):
        assert expected in key("rotate", str(file)).stdout


def test_a_loose_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "ring.key"
    key("new", str(file))
    file.chmod(0o644)
    refused = key("rotate", str(file))
    assert refused.returncode == Exit.INVALID
    assert "chmod 600" in refused.stderr
