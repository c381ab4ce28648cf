# SPDX-License-Identifier: Apache-2.0
"""Commands of the machine that are run to their end."""

import subprocess


def load_nft(rules: str) -> None:
    """Give the rules to nft in the calling thread's network namespace; RuntimeError with what it said of them."""
    done = subprocess.run(["nft", "-f", "-"], input=rules, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nft: {done.stderr.strip()}\n{rules}")


def run(*command: str) -> str:
    """Run a command, return its output; raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
