# SPDX-License-Identifier: Apache-2.0
"""Commands of the machine that are run to their end."""

import subprocess


def run(*command: str) -> str:
    """Run a command, return its output; raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
