# SPDX-License-Identifier: Apache-2.0
"""The file that holds a cluster's shared keys.

One key a line, 64 hexadecimal digits (32 random bytes); empty lines and what follows a `#` do not count. The first
key seals, a second one is accepted as well. To change keys without a pause, on every node and one step after the
other: add the new key as second line; move it to the first; delete the old one. The file belongs to root or to the
user of the daemon, and nobody else may read it.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sync.transport.keys import KEY_COUNT_MAX, KEY_LENGTH_MIN, KeyRing

FILE_LENGTH_MAX: Final = 4096


class KeyFileError(Exception):
    """The key file cannot be used; the text says where it is wrong and how to mend it."""


def load_key_file(path: Path) -> KeyRing:
    """The keys of a file, after checking who else could have read or written it. Raises KeyFileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileError(
            f"key file {path}: {error.strerror}; make a key with `lbctl key new` and copy it to every node"
        ) from None
    try:
        _check_access(path, os.fstat(descriptor))
        text = os.read(descriptor, FILE_LENGTH_MAX + 1)
    finally:
        os.close(descriptor)
    if len(text) > FILE_LENGTH_MAX:
        raise KeyFileError(f"key file {path}: longer than {FILE_LENGTH_MAX} bytes; this is not a key file")
    return KeyRing(parse_keys(text, str(path)))


def parse_keys(text: bytes, name: str) -> list[bytes]:
    """The secrets in a key file's text; `name` is what errors call it. Raises KeyFileError."""
    secrets: list[bytes] = []
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), 1):
        digits = line.split("#", 1)[0].strip()
        if not digits:
            continue
        try:
            secret = bytes.fromhex(digits)
        except ValueError:
            secret = b""
        if len(secret) != KEY_LENGTH_MIN:
            raise KeyFileError(
                f"key file {name}, line {number}: a key is {2 * KEY_LENGTH_MIN} hexadecimal digits; "
                "make one with `lbctl key new`"
            )
        secrets.append(secret)
    if not 1 <= len(secrets) <= KEY_COUNT_MAX:
        raise KeyFileError(f"key file {name}: it holds {len(secrets)} keys; 1 to {KEY_COUNT_MAX} may be valid at once")
    if len(set(secrets)) != len(secrets):
        raise KeyFileError(f"key file {name}: the same key twice; delete one of the lines")
    return secrets


def write_key_file(path: Path, secrets: Sequence[bytes]) -> None:
    """Write a key file that only its owner can read, replacing an older one in one step."""
    KeyRing(secrets)  # refuses what load_key_file would refuse
    lines = ["# Shared keys of the cluster: the first seals, a second is accepted as well.\n"]
    lines += [secret.hex() + "\n" for secret in secrets]
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _check_access(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"key file {path}: not a regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise KeyFileError(
            f"key file {path}: belongs to user {status.st_uid}, who could change it; `chown root {path}`"
        )
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"key file {path}: mode {stat.S_IMODE(status.st_mode):04o} lets others at it; `chmod 600 {path}`"
        )
