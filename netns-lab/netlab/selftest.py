# SPDX-License-Identifier: Apache-2.0
"""`lab selftest`: runs the lab's own tests. They need no gateway daemon, only the kernel."""

import os
import subprocess
import sys

from netlab.services import LAB_ROOT, PROJECT_ROOT


def run() -> None:
    """Ends this process with the result of the tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", str(LAB_ROOT / "scenarios" / "test_lab_itself.py")]
    raise SystemExit(subprocess.run(command, cwd=PROJECT_ROOT, env=dict(os.environ), check=False).returncode)
