# SPDX-License-Identifier: Apache-2.0
"""One loaded path for all packet tests; each test starts from an empty configuration."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packet.gateway import Gateway, loaded_gateway


@pytest.fixture(scope="session")
def loaded() -> Iterator[Gateway]:
    """Compiled and verified once."""
    with loaded_gateway() as gateway:
        yield gateway


@pytest.fixture
def gateway(loaded: Gateway) -> Gateway:
    """Empty."""
    loaded.reset()
    return loaded
