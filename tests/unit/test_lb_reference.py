# SPDX-License-Identifier: Apache-2.0
"""The reference that is committed is the one that the definitions give."""

import subprocess
from pathlib import Path

from lb.configuration import reference

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_configuration_reference_is_current() -> None:
    remedy = "run: python -m lb.configuration.reference configuration > docs/configuration.md"
    assert (DOCS / "configuration.md").read_text() == reference.configuration(), remedy


def test_manual_page_is_current_and_well_formed() -> None:
    page = DOCS / "man" / "lbd.8"
    assert page.read_text() == reference.manual(), "run: python -m lb.configuration.reference manual > docs/man/lbd.8"
    assert page.read_text().count(".TP") >= 12


def test_every_key_of_the_examples_is_in_the_reference() -> None:
    text = reference.configuration()
    for path in sorted((DOCS / "examples").glob("*.toml")):
        keys = subprocess.run(
            ["sed", "-nE", r"s/^([a-z_]+) = .*/\1/p", str(path)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert keys
        missing = [key for key in keys if f"| `{key}` |" not in text and not key.startswith("gw")]
        assert not missing, f"{path.name}: {missing}"
