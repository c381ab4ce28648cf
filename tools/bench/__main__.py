# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench NAME [options]`: run the benchmark of that name; each is a module here with a `main(argv)`."""

import importlib
import sys
from pathlib import Path


def benchmarks() -> list[str]:
    """The names that may be given: modules here that define `main`."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return [path.stem for path in modules if path.stem != "__main__" and "\ndef main(" in path.read_text()]


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in benchmarks():
        print(
            f"usage: python -m tools.bench NAME [options]; NAME is one of: {', '.join(benchmarks())}", file=sys.stderr
        )
        return 2
    module = importlib.import_module(f"tools.bench.{sys.argv[1]}")
    return int(module.main(sys.argv[2:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
