# SPDX-License-Identifier: Apache-2.0
"""Where the cluster's configuration lives. A gateway that stands alone keeps it in a file; a ring keeps it in shared
data."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from lb.configuration.change import succeed
from lb.configuration.model import EMPTY, ClusterConfig
from lb.configuration.plain import pack, unpack
from lb.control import Caller

FILE_NAME = "cluster.msgpack"
OnChange = Callable[[ClusterConfig, ClusterConfig], None]
log = logging.getLogger("lb.store")


class VersionConflict(Exception):
    """The configuration has changed since the caller looked at it."""

    def __init__(self, expected: int, current: int) -> None:
        super().__init__(f"the configuration has version {current} now, not {expected}: somebody changed it meanwhile")
        self.expected, self.current = expected, current


class ConfigStore(Protocol):
    """The cluster's configuration, its history and its followers."""

    @property
    def current(self) -> ClusterConfig: ...

    def on_change(self, follower: OnChange) -> None:
        """`follower(old, new)` is called in the event loop after every change, in the order of versions."""
        ...

    async def apply(self, wanted: ClusterConfig, expected_version: int | None, caller: Caller) -> ClusterConfig:
        """Makes `wanted` (validated, without identities) the successor of the current version, durably.

        Returns what is current then. Raises VersionConflict, IdentitiesExhausted, or OSError if it cannot be kept.
        """
        ...


class FileStore:
    """The configuration of a gateway that stands alone, in one file of its state directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._followers: list[OnChange] = []
        self._lock = asyncio.Lock()
        self._current = load(self._path)

    @property
    def current(self) -> ClusterConfig:
        return self._current

    def on_change(self, follower: OnChange) -> None:
        self._followers.append(follower)

    async def apply(self, wanted: ClusterConfig, expected_version: int | None, caller: Caller) -> ClusterConfig:
        async with self._lock:
            old = self._current
            if expected_version is not None and expected_version != old.version:
                raise VersionConflict(expected_version, old.version)
            new = succeed(old, wanted)
            await asyncio.to_thread(save, self._path, new)
            self._current = new
        for follower in self._followers:
            follower(old, new)
        return new


def load(path: Path) -> ClusterConfig:
    """The configuration in a file; EMPTY if there is none. A damaged one is set aside, never guessed at."""
    try:
        return unpack(path.read_bytes())
    except FileNotFoundError:
        return EMPTY
    except ValueError as error:
        aside = path.with_suffix(".damaged")
        log.error("%s is damaged (%s): set aside as %s; apply the cluster file again", path, error, aside)
        os.replace(path, aside)
        return EMPTY


def save(path: Path, config: ClusterConfig) -> None:
    """Writes a configuration so that a crash at any moment leaves the old or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    # It holds the hash seed: for root alone.
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(pack(config))
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
