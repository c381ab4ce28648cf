# SPDX-License-Identifier: Apache-2.0
"""The reference pages are those of the code as it is."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tools.reference.__main__ import DOCS, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text() == PAGES[name](), f"docs/{name} is out of date, run: python -m tools.reference"


def test_links_inside_the_api_reference_lead_somewhere() -> None:
    text = (DOCS / "api.md").read_text()
    headings = {line.lstrip("# ").strip().lower() for line in text.splitlines() if line.startswith("#")}
    links = set(re.findall(r"\(#([a-z]+)\)", text))
    assert len(links) > 15
    assert links <= headings


@pytest.mark.parametrize(
    ("name", "words"), [("lbctl.8", "vip move [OPTIONS] ADDRESS NODE"), ("lbd.8", "lbd --config FILE")]
)
def test_manual_page_is_clean_roff(name: str, words: str) -> None:
    page = str(DOCS / "man" / name)
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "120"}
    command = ["man", "--warnings", "-l", "-Tutf8", page]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert words in re.sub(".\b", "", done.stdout)


def keys(table: Mapping[str, Any]) -> Iterator[str]:
    """Every key with a plain value, of all tables."""
    for name, value in table.items():
        inner = value if isinstance(value, list) else [value]
        if all(isinstance(each, dict) for each in inner):
            for each in inner:
                yield from keys(each)
        else:
            yield name


@pytest.mark.parametrize("path", sorted((DOCS / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_every_key_of_the_examples_is_in_the_reference(path: Any) -> None:
    text = (DOCS / "configuration.md").read_text()
    used = set(keys(tomllib.loads(path.read_text())))
    assert used
    assert not [key for key in used if f"| `{key}` |" not in text]
