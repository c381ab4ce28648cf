# SPDX-License-Identifier: Apache-2.0
"""The import rule that keeps the layers apart."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# package -> what it must not import
FORBIDDEN = {
    "sync": {"lb", "ebpf", "tools", "netlab", "bcc", "numpy"},  # numpy: a quarter of a bare node's memory
    "ebpf": {"lb", "sync", "tools", "netlab"},
    "lb": {"tools", "netlab", "bcc"},
    "tools": {"bcc"},
}
BCC_ALLOWED = {"ebpf/compile.py"}
# Inside sync only the driver, its parts and what starts it touch sockets and clocks.
SYNC_IO_ALLOWED = {
    f"sync/{name}.py"
    for name in ("driver", "engine", "event_stream", "sockets", "rtnetlink", "neighbours", "carrier", "__main__")
}
SYNC_IO_MODULES = {"socket", "asyncio", "time", "select", "uvloop", "random", "secrets"}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_package_keeps_to_its_layer(package: str) -> None:
    assert sources(package), f"no sources found in {package}"
    for path in sources(package):
        relative = str(path.relative_to(ROOT))
        wrong = set(imported_modules(path)) & FORBIDDEN[package]
        if relative in BCC_ALLOWED:
            wrong -= {"bcc"}
        assert not wrong, f"{relative} imports {sorted(wrong)}"


def test_bcc_is_imported_by_the_compile_step_alone() -> None:
    users = {str(p.relative_to(ROOT)) for p in sources("ebpf") if "bcc" in imported_modules(p)}
    assert users <= BCC_ALLOWED


def test_ring_core_has_no_sockets_clocks_or_randomness_of_its_own() -> None:
    for path in sources("sync"):
        relative = str(path.relative_to(ROOT))
        if relative not in SYNC_IO_ALLOWED:
            wrong = set(imported_modules(path)) & SYNC_IO_MODULES
            assert not wrong, f"{relative} imports {sorted(wrong)}"
