# SPDX-License-Identifier: Apache-2.0
"""What is on this machine of each lab: a directory with its files and a record of what has to be cleaned up.

The record is written before anything is made, so that `lab down` also finds what a crashed `lab up` left behind.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from netlab import namespaces
from netlab.namespaces import Process

LABS_DIR = Path(os.environ.get("RAINLB_LABS_DIR", "/run/rainlb-lab"))
# The name is part of namespace names and of socket paths, which the kernel limits to 108 bytes.
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


class LabError(Exception):
    """Something the user can put right; the text says what and how."""


@dataclass
class Record:
    """Contents of state.json. `processes` maps "node/service" to what was started there last."""

    topology: str
    processes: dict[str, Process] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def directory_of(lab: str) -> Path:
    if not NAME_PATTERN.fullmatch(lab):
        raise LabError(f"lab name {lab!r}: allowed are up to 31 lower-case letters, digits and '-'")
    return LABS_DIR / lab


def known_labs() -> list[str]:
    """Labs with a directory, and labs of which only namespaces are left."""
    names = {entry.name for entry in LABS_DIR.iterdir() if entry.is_dir()} if LABS_DIR.is_dir() else set()
    names |= {name.removeprefix(namespaces.PREFIX).partition(".")[0] for name in namespaces.existing()}
    return sorted(names)


def load(lab: str) -> Record:
    path = directory_of(lab) / "state.json"
    try:
        plain = json.loads(path.read_text())
    except FileNotFoundError:
        raise LabError(f"no lab {lab}; labs on this machine: {', '.join(known_labs()) or 'none'}") from None
    processes = {key: Process(**value) for key, value in plain["processes"].items()}
    return Record(plain["topology"], processes, plain["faults"])


def save(lab: str, record: Record) -> None:
    path = directory_of(lab) / "state.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(record), indent=1))
    fresh.replace(path)


@contextmanager
def changing(lab: str) -> Iterator[Record]:
    """The record, locked against other commands and saved at the end, after an error too."""
    directory = directory_of(lab)
    if not directory.is_dir():
        load(lab)  # raises with the list of labs
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = load(lab)
        try:
            yield record
        finally:
            save(lab, record)


def begin(lab: str, topology: str) -> Path:
    """Claim the name. LabError if a lab of that name is there already, whole or in parts."""
    directory = directory_of(lab)
    LABS_DIR.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir()
    except FileExistsError:
        raise LabError(f"lab {lab} is there already; take another name or remove it: lab down {lab}") from None
    save(lab, Record(topology))
    (directory / "log").mkdir()
    return directory


def clean_up(lab: str) -> None:
    """Remove all that a lab left on the machine, however far its creation came. Does nothing for an unknown lab."""
    directory = directory_of(lab)
    names = namespaces.existing(lab)
    namespaces.end(namespaces.processes_inside(names))
    try:
        recorded = load(lab).processes.values()
    except (LabError, ValueError):
        recorded = {}.values()
    namespaces.end(process for process in recorded if process.alive())
    for name in names:
        namespaces.remove(name)
    for mount in _mounts_below(directory):
        subprocess.run(["umount", "--lazy", mount], check=True)
    shutil.rmtree(directory, ignore_errors=True)


def _mounts_below(directory: Path) -> list[str]:
    """Mount points inside the directory, deepest first: the gateways' bpf file systems."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted((p for p in points if Path(p).is_relative_to(directory)), key=len, reverse=True)
