# SPDX-License-Identifier: Apache-2.0
"""A machine to install packages on that is gone afterwards: this one's files below, what is written kept in memory."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from netlab import gateway_files
from netlab.lab import Lab

SYSTEMCTL = Path(__file__).with_name("systemctl")
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SHARED = ("dev", "proc", "sys")
# What the package manager keeps about every package that ever was, and system users stay by policy.
KEPT = ("var/lib/dpkg/", "var/log/", "var/cache/man/", "var/cache/debconf/", "etc/group", "etc/gshadow", "etc/passwd")
KEPT_TOO = ("etc/shadow", "etc/subuid", "etc/subgid", "etc/.pwd.lock", "var/cache/ldconfig/", "root/", "tmp/")


@dataclass(frozen=True)
class Host:
    """The files as processes in it see them (`root`), and those alone that differ from this machine's (`written`)."""

    root: Path
    written: Path
    lab: Lab
    node: str

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """A command on this host, in the lab node's network."""
        clean = ["env", "-i", f"PATH={PATH}"]  # the lab's own environment would lead to the lab's own code
        return self.lab.run(self.node, [*clean, "chroot", str(self.root), *command], check=check, timeout=timeout)

    def end_all(self) -> None:
        """Ends what the service manager has started."""
        for pid in self.root.glob("run/*.pid"):
            self.run("kill", "-KILL", pid.read_text().strip(), check=False)

    def left(self) -> list[str]:
        """Files written here that are still there, as far as a package is to answer for them."""
        found = (path for path in self.written.rglob("*") if path.is_file() and not path.is_symlink())
        names = (str(path.relative_to(self.written)) for path in found)
        return sorted(name for name in names if not name.startswith((*KEPT, *KEPT_TOO)))


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True)


@contextmanager
def host(lab: Lab, node: str, directory: Path) -> Iterator[Host]:
    """A host in a node's network, with the stand-in for the service manager."""
    layers, root = directory / "layers", directory / "root"
    made = Host(root, layers / "written", lab, node)
    for path in (layers, root):
        path.mkdir()
    _mount("-t", "tmpfs", "layers", str(layers))
    try:
        for name in ("written", "work"):
            (layers / name).mkdir()
        _mount("-t", "overlay", "-o", f"lowerdir=/,upperdir={layers}/written,workdir={layers}/work", "host", str(root))
        for name in SHARED:
            _mount("--rbind", f"/{name}", str(root / name))
            _mount("--make-rslave", str(root / name))
        _mount("-t", "tmpfs", "run", str(root / "run"))
        (root / "run/systemd/system").mkdir(parents=True)
        # A file over a file: the machine's own command stays what it is in the layer that is looked at.
        _mount("--bind", str(SYSTEMCTL), str(root / "usr/bin/systemctl"))
        yield made
    finally:
        made.end_all()
        subprocess.run(["umount", "-R", "-l", str(root)], check=False)
        subprocess.run(["umount", "-l", str(layers)], check=False)


def install(machine: Host, package: Path) -> str:
    """Give the package to the host's package manager; what it said."""
    shutil.copy(package, machine.root / "tmp/package.deb")
    try:
        return machine.run("dpkg", "-i", "/tmp/package.deb").stdout
    finally:
        (machine.root / "tmp/package.deb").unlink()


def node_file(machine: Host) -> str:
    """The lab's for this gateway, but with the directories of an ordinary host."""
    lab = machine.lab
    text = gateway_files.node_file("packaged", lab.topology, lab.topology.node(machine.node), lab.directory, {})
    return re.sub(r"^(run_dir|state_dir) = .*\n", "", text, flags=re.MULTILINE)
