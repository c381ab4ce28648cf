# SPDX-License-Identifier: Apache-2.0
"""The cluster's configuration as shared data: one item, changed by compare-and-set, kept on every gateway's disk.

Whoever is second with a change based on the same version is told so and nothing is overwritten. A gateway that joins a
running cluster adopts the cluster's configuration, newer on its disk or not: the running cluster is what its users
see. Only where no cluster runs does the newest version found on disk win: the first gateway up publishes what it has,
marked as restored, and until somebody changes it, a gateway that brings a newer one replaces it.
"""

import asyncio
import logging
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack

from lb.configuration.change import succeed
from lb.configuration.model import ClusterConfig
from lb.configuration.plain import pack, unpack
from lb.configuration.store import FILE_NAME, OnChange, VersionConflict, load, save
from lb.control import Caller, ControlError
from sync.data import OutcomeUnknown, RequestRefused
from sync.data import VersionConflict as ItemConflict

if TYPE_CHECKING:
    from sync.driver import Ring

KEY = "config"
APPLY_TIMEOUT_S = 10.0
ATTEMPTS_MAX = 8
RETRY_S = 0.2
PACKED_BYTES_MAX = 64 << 20
ABSENT = 0
log = logging.getLogger("lb.store")


def encode(config: ClusterConfig, *, restored: bool) -> bytes:
    """The item's value."""
    return zlib.compress(msgpack.packb([restored, pack(config)]), 1)


def decode(value: bytes) -> tuple[ClusterConfig, bool]:
    """Configuration and whether it was restored from disk. Raises ValueError for anything else."""
    try:
        stream = zlib.decompressobj()
        plain = stream.decompress(value, PACKED_BYTES_MAX)
        if stream.unconsumed_tail:
            raise ValueError(f"over {PACKED_BYTES_MAX} bytes")
        restored, packed = msgpack.unpackb(plain)
        return unpack(packed), bool(restored)
    except (zlib.error, msgpack.UnpackException, TypeError, ValueError) as error:
        raise ValueError(f"not a configuration: {error}") from None


class SharedStore:
    """`lb.store.ConfigStore` over the ring. Before the ring is there, the configuration is the one on disk."""

    def __init__(self, directory: Path, *, tell: Callable[[str, str], None] = lambda kind, text: None) -> None:
        self._path = directory / FILE_NAME
        self._followers: list[OnChange] = []
        self._current = load(self._path)
        self._ring: Ring | None = None
        self._tell = tell
        self._unsaved: ClusterConfig | None = None
        self._saving: asyncio.Task[None] | None = None
        self._settling = 0
        self.conflicts = 0

    @property
    def current(self) -> ClusterConfig:
        """What this gateway serves."""
        return self._current

    @property
    def is_settling(self) -> bool:
        """Whether it is still being decided if the cluster's configuration replaces this gateway's."""
        return self._settling > 0

    def on_change(self, follower: OnChange) -> None:
        """`follower(old, new)` is called in the event loop after every change."""
        self._followers.append(follower)

    def attach(self, ring: "Ring") -> None:
        """From now on the ring's shared data is the configuration."""
        self._ring = ring
        ring.data.watch(KEY, lambda _changes: self.refresh())

    async def close(self) -> None:
        """Wait until what is current is on disk."""
        if self._saving is not None:
            await self._saving

    async def apply(self, wanted: ClusterConfig, expected_version: int | None, caller: Caller) -> ClusterConfig:
        """Makes `wanted` the successor of the current version on all gateways.

        Returns once it is current here and on disk. Raises VersionConflict when it is not based on what is current,
        ControlError when the cluster does not answer in time.
        """
        for _ in range(ATTEMPTS_MAX):
            old, item_version = self._present()
            if expected_version is not None and expected_version != old.version:
                self.conflicts += 1
                raise VersionConflict(expected_version, old.version)
            new = succeed(old, wanted)
            try:
                await self._write(new, item_version, restored=False)
            except ItemConflict:
                continue  # somebody else was first: look at what they made of it
            self.refresh()
            await self.close()
            return new
        raise ControlError("conflict", "others keep changing the configuration", remedy="try again")

    def _present(self) -> tuple[ClusterConfig, int]:
        if self._ring is None:
            raise ControlError("unavailable", "the ring has not started", remedy="try again in a moment")
        item = self._ring.data.item(KEY)
        return self._current, item.version if item is not None else ABSENT

    async def _write(self, config: ClusterConfig, item_version: int, *, restored: bool) -> None:
        assert self._ring is not None
        value = encode(config, restored=restored)
        try:
            async with asyncio.timeout(APPLY_TIMEOUT_S):
                await self._ring.data.put(KEY, value, version=item_version)
        except (TimeoutError, OutcomeUnknown, RequestRefused) as error:
            remedy = "look at `lbctl nodes`; if this part of the cluster serves, look at `lbctl config` and try again"
            reason = str(error) or f"no answer within {APPLY_TIMEOUT_S:.0f} s"
            raise ControlError("unavailable", f"the cluster did not take the change: {reason}", remedy=remedy) from None

    def refresh(self) -> None:
        """Follow the shared item."""
        item = self._ring.data.item(KEY) if self._ring is not None else None
        if item is None or self._settling:
            return
        try:
            config, _ = decode(item.value)
        except ValueError as error:
            log.error("shared configuration: %s; the running one stays", error)
            self._tell("config.refused", f"shared configuration is not understood: {error}")
            return
        if config == self._current:
            return
        old, self._current = self._current, config
        self._unsaved = config
        if self._saving is None or self._saving.done():
            self._saving = asyncio.get_running_loop().create_task(self._save(), name="save configuration")
        for follower in self._followers:
            follower(old, config)

    def settle(self) -> Coroutine[Any, Any, None]:
        """To be called the moment this gateway's copy of the shared data is complete, and awaited: restore or adopt.

        What this gateway has of its own is looked at now: from here on changes of the copy are held back until it is
        decided which of the two is newer.
        """
        self._settling += 1
        return self._settle(self._current)

    async def _settle(self, mine: ClusterConfig) -> None:
        try:
            for _ in range(ATTEMPTS_MAX):
                try:
                    await self._restore_or_adopt(mine)
                    break
                except ItemConflict:
                    continue  # another gateway was quicker: look again whose is newer
                except ControlError as error:
                    log.info("configuration on disk not offered yet: %s", error)
                    await asyncio.sleep(RETRY_S)
        except ValueError as error:
            log.error("shared configuration: %s", error)
        finally:
            self._settling -= 1
            self.refresh()

    async def _restore_or_adopt(self, mine: ClusterConfig) -> None:
        assert self._ring is not None
        item = self._ring.data.item(KEY)
        if item is None:
            if mine.version:
                await self._write(mine, ABSENT, restored=True)
            return
        theirs, restored = decode(item.value)
        if restored and mine.version > theirs.version:
            self._tell("config.restored", f"version {mine.version} on disk is newer than {theirs.version}")
            await self._write(mine, item.version, restored=True)
        elif theirs != mine and mine.version:
            self._tell("config.adopted", f"version {theirs.version} of the cluster replaces {mine.version}")

    async def _save(self) -> None:
        while self._unsaved is not None:
            config, self._unsaved = self._unsaved, None
            try:
                await asyncio.to_thread(save, self._path, config)
            except OSError as error:
                log.error("configuration version %d cannot be kept in %s: %s", config.version, self._path, error)
                self._tell("config.unsaved", f"version {config.version} cannot be kept in {self._path}: {error}")
