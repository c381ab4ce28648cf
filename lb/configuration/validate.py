# SPDX-License-Identifier: Apache-2.0
"""Has configuration files validated by a child process, so that the validator's memory never burdens the daemon."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgpack

from lb.configuration.model import ClusterConfig
from lb.configuration.node import ConfigError, NodeConfig
from lb.configuration.plain import from_plain

CHILD_SECONDS_MAX = 30


def read_file(path: Path) -> str:
    """The text of a configuration file. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise refusal(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise refusal(str(path), f"is not UTF-8 text (byte {error.start})") from None


def refusal(source: str, problem: str) -> ConfigError:
    """The error about a file as a whole."""
    text = f"{source}: {problem}"
    return ConfigError(
        [{"source": source, "line": 0, "path": "", "value": "", "problem": problem, "allowed": "", "text": text}]
    )


def node_config(text: str, source: str) -> NodeConfig:
    """Blocks for about 0.3 s. Raises ConfigError with every fault found."""
    return from_plain(NodeConfig, _ask([{"kind": "node", "text": text, "source": source}])[0])


def cluster_config(
    text: str, source: str, form: str = "toml", *, gateway_addresses: Mapping[str, str] = MappingProxyType({})
) -> ClusterConfig:
    """Blocks for about 0.3 s. `gateway_addresses` (→ whose, in words) are not to be VIPs. Raises ConfigError with every
    fault found."""
    request = {"kind": "cluster", "text": text, "source": source, "form": form}
    return from_plain(ClusterConfig, _ask([request | {"gateway_addresses": dict(gateway_addresses)}])[0])


def _ask(requests: list[dict[str, Any]]) -> list[Any]:
    command = [sys.executable, "-m", "lb.configuration.schema"]
    child = subprocess.run(
        command, input=msgpack.packb(requests), capture_output=True, timeout=CHILD_SECONDS_MAX, check=False
    )
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"the validator ({' '.join(command)}) failed: {' '.join(last) or child.returncode}")
    answers = msgpack.unpackb(child.stdout)
    problems = [problem for answer in answers for problem in answer.get("problems", ())]
    if problems:
        raise ConfigError(problems)
    return [answer["value"] for answer in answers]
