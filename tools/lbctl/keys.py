# SPDX-License-Identifier: Apache-2.0
"""The cluster's shared key: made, and changed without a pause. Works on the key file; needs no daemon.

Rotation takes three rounds over all nodes, and `rotate` does this node's part of the next round: a new key is first
only accepted ([old] becomes [old, new]), then used ([new, old]), then the old one is dropped ([new]).
"""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from tools.lbctl.client import ApiError
from tools.lbctl.output import console, escaped

DEFAULT_FILE = Path("/etc/rainlb/ring.key")
KEY_BYTES = 32

key = typer.Typer(help="The cluster's shared key.", no_args_is_help=True)
KeyFile = Annotated[Path, typer.Argument(help="[ring] key_file of the node file.")]


def _load(file: Path) -> list[bytes]:
    from sync.key_file import KeyFileError, load_key_file

    try:
        return [entry.secret for entry in load_key_file(file).keys]
    except KeyFileError as error:
        raise ApiError("invalid", str(error)) from error


def _write(file: Path, keys: list[bytes]) -> None:
    from sync.key_file import write_key_file

    try:
        write_key_file(file, keys)
    except OSError as error:
        raise ApiError("denied", f"cannot write {file}: {error.strerror}") from error


@key.command("new")
def new(file: KeyFile = DEFAULT_FILE) -> None:
    """Make a key file for a new cluster (mode 0600); copy it to every node, over a channel you trust."""
    if file.exists():
        raise ApiError("conflict", f"{file} exists already", remedy="to change a cluster's key: lbctl key rotate")
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, [secrets.token_bytes(KEY_BYTES)])
    console().print(f"{escaped(file)} written; copy it to every node: scp -p {escaped(file)} NODE:{escaped(file)}")


@key.command("rotate")
def rotate(
    file: KeyFile = DEFAULT_FILE,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Step 1 on the other nodes: a copy of the first node's file."),
    ] = None,
) -> None:
    """Take this node one step further towards a new key; every node takes each step before any takes the next.

    Step 1 accepts a new key (made on the first node; give the others its file with --from), step 2 uses it, step 3
    drops the old one.
    """
    keys = _load(file)
    if len(keys) == 1:
        fresh = _fresh_key(keys[0], source)
        _write(file, [keys[0], fresh])
        fingerprint, step = _fingerprint(fresh), "1 of 3: the new key is accepted, the old one is used"
    elif not _is_used(file):
        _write(file, [keys[1], keys[0]])
        _mark_used(file)
        fingerprint, step = _fingerprint(keys[1]), "2 of 3: the new key is used, the old one is still accepted"
    else:
        _write(file, [keys[0]])
        fingerprint, step = _fingerprint(keys[0]), "3 of 3: the old key is no longer accepted"
    console().print(f"{escaped(file)}: step {step} (new key {fingerprint})")
    console().print("now: systemctl reload lbd, then the same step on every other node before the next one anywhere")


def _fresh_key(old: bytes, source: Path | None) -> bytes:
    if source is None:
        return secrets.token_bytes(KEY_BYTES)
    others = [secret for secret in _load(source) if secret != old]
    if len(others) != 1:
        raise ApiError("invalid", f"{source} holds no single new key", remedy="take the file of a node that did step 1")
    return others[0]


USED_MARK = "# rotation: the new key is in use\n"


def _is_used(file: Path) -> bool:
    return USED_MARK in file.read_text()


def _mark_used(file: Path) -> None:
    with file.open("a") as out:
        out.write(USED_MARK)


def _fingerprint(secret: bytes) -> str:
    """Enough to compare two nodes by eye; tells nothing of the key."""
    import hashlib

    return hashlib.sha256(b"rainlb key fingerprint" + secret).hexdigest()[:12]
