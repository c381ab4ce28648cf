# SPDX-License-Identifier: Apache-2.0
"""The package, built once for all tests."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def package() -> Path:
    subprocess.run(["tools/deb.sh"], cwd=ROOT, check=True)
    (built,) = (ROOT / "dist").glob("rainlb_[0-9]*.deb")
    return built
