# SPDX-License-Identifier: Apache-2.0
"""The configuration of a gateway that stands alone survives restarts, crashes and damage."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from lb.configuration.model import EMPTY, ClusterConfig, Vip
from lb.configuration.store import FILE_NAME, FileStore, VersionConflict, load
from lb.control import Caller

CALLER = Caller(0, 1, "test", "test")
ONE = ClusterConfig(vips=(Vip("10.0.1.100/24", "outside"),))


async def test_configuration_survives_a_restart(tmp_path: Path) -> None:
    first = FileStore(tmp_path)
    assert first.current == EMPTY
    new = await first.apply(ONE, None, CALLER)
    assert new.version == 1
    assert FileStore(tmp_path).current == new


async def test_file_is_for_root_alone(tmp_path: Path) -> None:
    await FileStore(tmp_path).apply(ONE, None, CALLER)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


async def test_change_made_from_an_old_version_is_refused(tmp_path: Path) -> None:
    kept = FileStore(tmp_path)
    await kept.apply(ONE, 0, CALLER)
    with pytest.raises(VersionConflict, match="version 1 now, not 0"):
        await kept.apply(EMPTY, 0, CALLER)
    assert len(kept.current.vips) == 1


async def test_of_two_at_once_one_is_told(tmp_path: Path) -> None:
    kept = FileStore(tmp_path)
    results = await asyncio.gather(kept.apply(ONE, 0, CALLER), kept.apply(EMPTY, 0, CALLER), return_exceptions=True)
    assert [type(result) for result in results] == [ClusterConfig, VersionConflict]


async def test_followers_see_old_and_new(tmp_path: Path) -> None:
    kept, seen = FileStore(tmp_path), list[tuple[int, int]]()
    kept.on_change(lambda old, new: seen.append((old.version, new.version)))
    await kept.apply(ONE, None, CALLER)
    await kept.apply(EMPTY, None, CALLER)
    assert seen == [(0, 1), (1, 2)]


@pytest.mark.parametrize("damage", [b"", b"\xc1\xc1", b"\x00" * 40])
def test_damaged_file_is_set_aside(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    assert load(tmp_path / FILE_NAME) == EMPTY
    assert (tmp_path / "cluster.damaged").read_bytes() == damage


async def test_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = FileStore(tmp_path)
    await kept.apply(ONE, None, CALLER)

    def crash(*_: object) -> None:
        raise OSError("power failed")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power"):
        await kept.apply(EMPTY, None, CALLER)
    monkeypatch.undo()
    assert FileStore(tmp_path).current == kept.current
    assert kept.current.version == 1


async def test_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    with pytest.raises(OSError):
        await FileStore(tmp_path / "state" / "below").apply(ONE, None, CALLER)
    assert os.listdir(tmp_path) == ["state"]
