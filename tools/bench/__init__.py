# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, each with the peer it is compared with."""

import sys
from pathlib import Path

# The namespace lab, where most of them are run, is a folder beside the packages.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))
