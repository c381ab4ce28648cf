# SPDX-License-Identifier: Apache-2.0
"""The key file: what is accepted, and what an operator is told otherwise."""

import os
from pathlib import Path

import pytest

from sync.key_file import KeyFileError, load_key_file, write_key_file

FIRST, SECOND = bytes([1]) * 32, bytes([2]) * 32


def test_written_file_is_read_back_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "ring.key"
    write_key_file(path, [FIRST, SECOND])
    assert path.stat().st_mode & 0o777 == 0o600
    keys = load_key_file(path)
    assert [key.secret for key in keys.keys] == [FIRST, SECOND]
    assert keys.sealing.secret == FIRST


def test_rewriting_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "ring.key"
    write_key_file(path, [FIRST, SECOND])
    write_key_file(path, [SECOND])
    assert [key.secret for key in load_key_file(path).keys] == [SECOND]
    assert os.listdir(tmp_path) == ["ring.key"]


def test_comments_and_empty_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "ring.key"
    path.write_text(f"# keys\n\n  {FIRST.hex()}  # made on Monday\n")
    path.chmod(0o400)
    assert load_key_file(path).sealing.secret == FIRST


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "holds 0 keys"),
        ("abc", "line 1: a key is 64 hexadecimal digits"),
        (f"{FIRST.hex()}\nzz{FIRST.hex()[2:]}\n", "line 2: a key is 64"),
        (f"{FIRST.hex()}00", "line 1: a key is 64"),
        (f"{FIRST.hex()}\n{FIRST.hex()}", "the same key twice"),
        (f"{FIRST.hex()}\n{SECOND.hex()}\n{'03' * 32}", "holds 3 keys"),
        ("é" * 64, "line 1: a key is 64"),
        ("# " + "x" * 5000, "not a key file"),
    ],
)
def test_text_that_is_no_key_file(tmp_path: Path, text: str, wrong: str) -> None:
    path = tmp_path / "ring.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=wrong):
        load_key_file(path)


def test_file_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ring.key"
    path.write_text(FIRST.hex())
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        load_key_file(path)


def test_file_of_another_user_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "ring.key"
    write_key_file(path, [FIRST])
    os.chown(path, 12345, 12345)
    with pytest.raises(KeyFileError, match="chown root"):
        load_key_file(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="lbctl key new"):
        load_key_file(tmp_path / "none")
    with pytest.raises(KeyFileError, match="not a regular file"):
        load_key_file(tmp_path)
