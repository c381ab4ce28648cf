# SPDX-License-Identifier: Apache-2.0
"""The generated documents are those of the commands as they are."""

import os
import re
import subprocess

from tests.unit.api_support import ROOT
from tools.lbctl.reference import DOCUMENTS


def test_documents_are_up_to_date() -> None:
    for name, make in DOCUMENTS.items():
        assert (ROOT / name).read_text() == make(), f"{name} is out of date: python -m tools.lbctl.reference"


def test_links_inside_the_api_reference_lead_somewhere() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    headings = {line.lstrip("# ").strip().lower() for line in text.splitlines() if line.startswith("#")}
    links = set(re.findall(r"\(#([a-z]+)\)", text))
    assert len(links) > 15
    assert links <= headings


def test_man_page_is_clean_roff() -> None:
    page = str(ROOT / "docs" / "man" / "lbctl.8")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "120"}
    command = ["man", "--warnings", "-l", "-Tutf8", page]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "vip move [OPTIONS] ADDRESS NODE" in re.sub(".\b", "", done.stdout)
