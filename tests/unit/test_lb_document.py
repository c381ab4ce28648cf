# SPDX-License-Identifier: Apache-2.0
"""A configuration written out reads back as the same configuration."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.configuration.change import succeed
from lb.configuration.document import document, toml_text
from lb.configuration.model import EMPTY
from lb.configuration.schema import parse

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.mark.parametrize("form", ["toml", "json"])
def test_example_survives_writing_and_reading(form: Any) -> None:
    config = parse("cluster", (EXAMPLES / "services.toml").read_text(), "services.toml")
    content = document(succeed(EMPTY, config))
    text = toml_text(content) if form == "toml" else json.dumps(content)
    assert parse("cluster", text, "again", form=form) == config


def test_own_bookkeeping_and_defaults_are_not_shown() -> None:
    config = succeed(EMPTY, parse("cluster", (EXAMPLES / "services.toml").read_text(), "services.toml"))
    text = toml_text(document(config))
    for hidden in (config.hash_seed, "hash_seed", "next_backend_id", "tcp_established_s"):
        assert hidden not in text
    assert document(EMPTY) == {}


VALUES = st.text() | st.integers(-(1 << 60), 1 << 60) | st.booleans() | st.lists(st.text(max_size=5))


@given(st.dictionaries(st.text(max_size=8), VALUES | st.dictionaries(st.text(max_size=4), st.text())))
def test_any_text_is_written_so_that_it_reads_back(content: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(content)) == content
