# SPDX-License-Identifier: Apache-2.0
"""Network namespaces and the processes in them: make, enter, list, end, remove.

A namespace is entered by one thread of this process (setns works per thread), so that sockets, /proc/sys/net and child
processes of that thread belong to it while mounts, pins and files stay the ones of the host.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import netns

Result = TypeVar("Result")

NAMESPACE_DIR = Path("/run/netns")
PREFIX = "lab."
CLONE_NEWNET = 0x40000000
END_GRACE_S = 2.0

_libc = ctypes.CDLL(None, use_errno=True)


def full_name(lab: str, node: str) -> str:
    return f"{PREFIX}{lab}.{node}"


def path_of(namespace: str) -> Path:
    return NAMESPACE_DIR / namespace


def existing(lab: str | None = None) -> list[str]:
    """Namespaces of one lab, or of all labs, found in the kernel rather than in any state file."""
    prefix = PREFIX if lab is None else f"{PREFIX}{lab}."
    if not NAMESPACE_DIR.is_dir():
        return []
    return sorted(entry.name for entry in NAMESPACE_DIR.iterdir() if entry.name.startswith(prefix))


def create(namespace: str) -> None:
    netns.create(namespace)


def remove(namespace: str) -> None:
    """Forget a namespace; it vanishes with its devices when its last process has ended."""
    try:
        netns.remove(namespace)
    except FileNotFoundError:
        return
    except OSError:
        # A creation that was interrupted between making the file and mounting on it.
        path_of(namespace).unlink(missing_ok=True)


def run_inside(namespace: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call `function` in a thread that has entered the namespace; its result or exception is handed back."""
    outcome: list[Result] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _enter(namespace)
            outcome.append(function(*args, **kwargs))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name=namespace)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _enter(namespace: str) -> None:
    try:
        descriptor = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LookupError(f"no namespace {namespace}: is the lab up? (`lab list`)") from None
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter {namespace}: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def set_sysctls(settings: dict[str, str | int]) -> None:
    """Write /proc/sys/net values of the calling thread's namespace; keys are paths below /proc/sys/net."""
    for key, value in settings.items():
        Path("/proc/sys/net", key).write_text(f"{value}\n")


def spawn(
    namespace: str, command: Sequence[str], *, log: Path, environment: dict[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a long-running process in the namespace, in a session of its own, its output appended to `log`."""

    def start() -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    return run_inside(namespace, start)


# ---------------------------------------------------------------------------------------------------------------------
# processes, known by pid and start time so that a recycled pid is never taken for ours


@dataclass(frozen=True)
class Process:
    """A process that can be told from a later one with the same pid. `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        fields = _stat_fields(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        fields = _stat_fields(self.pid)
        return fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.start_ticks

    def parent(self) -> int | None:
        fields = _stat_fields(self.pid)
        return None if fields is None else int(fields[1])

    def signal(self, number: int) -> bool:
        """False if the process is gone."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on; the second, the command, may itself hold blanks and brackets."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def processes_inside(namespaces: Iterable[str]) -> list[Process]:
    """Every process whose network namespace is one of these: what the lab started, and what that started in turn."""
    inodes = set()
    for namespace in namespaces:
        try:
            inodes.add(path_of(namespace).stat().st_ino)
        except FileNotFoundError:
            continue
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            inside = entry.joinpath("ns/net").stat().st_ino in inodes
        except OSError:
            continue
        process = Process.of(int(entry.name)) if inside else None
        if process is not None and process.alive():
            found.append(process)
    return found


def end(processes: Iterable[Process], grace_s: float = END_GRACE_S) -> None:
    """SIGTERM (and SIGCONT: a stopped process would sleep through it); SIGKILL for what is left after `grace_s`."""
    left = [process for process in processes if process.signal(signal.SIGTERM)]
    for process in left:
        process.signal(signal.SIGCONT)
    left = _wait_until_gone(left, grace_s)
    for process in left:
        process.signal(signal.SIGKILL)
    left = _wait_until_gone(left, grace_s)
    if left:
        raise RuntimeError(f"processes that survive SIGKILL: {', '.join(str(p.pid) for p in left)}")


def _wait_until_gone(processes: list[Process], seconds: float) -> list[Process]:
    deadline = time.monotonic() + seconds
    left = processes
    while left and time.monotonic() < deadline:
        left = [process for process in left if process.alive()]
        if left:
            time.sleep(0.01)
    return left
