# SPDX-License-Identifier: Apache-2.0
"""The programs of this folder that are written in C: what has to measure or to send faster than Python can."""

from pathlib import Path

from netlab.commands import run


def compiled(name: str, directory: Path, *libraries: str) -> Path:
    """Compile NAME.c of this folder into a directory; the program. Raises RuntimeError with the compiler's words."""
    program = directory / name
    source = Path(__file__).with_name(f"{name}.c")
    run("gcc", "-O2", "-o", str(program), str(source), *(f"-l{library}" for library in libraries))
    return program
