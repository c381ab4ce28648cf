# SPDX-License-Identifier: Apache-2.0
"""Programs that benchmarks run: the machine's, and those of this folder, in C, that are faster than Python can be."""

import subprocess
from pathlib import Path


def run(*command: str) -> str:
    """Run a command, return its output; raises RuntimeError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def compiled(name: str, directory: Path, *libraries: str) -> Path:
    """Compile NAME.c of this folder into a directory; the program. Raises RuntimeError with the compiler's words."""
    program = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    run("gcc", "-O2", "-o", str(program), str(source), *(f"-l{library}" for library in libraries))
    return program
