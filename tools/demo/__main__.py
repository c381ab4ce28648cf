# SPDX-License-Identifier: Apache-2.0
"""python -m tools.demo [--only one-gateway|three-gateways]

Runs the product in the namespace lab and says in plain words what is done and what is seen. Exit code 0 if all of it
held. Leaves nothing behind, also when interrupted.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

from netlab.state import LabError

from tools.demo import cluster, one_gateway
from tools.demo.story import Story

PARTS: dict[str, Callable[[Story, str], None]] = {"one-gateway": one_gateway.tell, "three-gateways": cluster.tell}


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS))
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: needs root: it makes network namespaces and loads programs into the kernel", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, interrupted)
    story = Story()
    for name, tell in PARTS.items():
        if options.only in (None, name):
            try:
                tell(story, f"demo{os.getpid()}-{len(name)}")
            except KeyboardInterrupt:
                story.console.print("interrupted; everything is removed")
                return 130
            except (LabError, AssertionError, RuntimeError, OSError) as error:
                story.fact(f"{name}: {error}", False)
    return story.verdict()


if __name__ == "__main__":
    sys.exit(main())
