# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.bench NAME [options]`: run the benchmark of that name; each is a module here with a `main(argv)`."""

import ast
import importlib
import re
import sys
from pathlib import Path


def benchmarks() -> dict[str, str]:
    """The names that may be given, and what each measures: modules here whose `main` takes arguments."""
    modules = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))}
    return {name: headline(text) for name, text in modules.items() if re.search(r"^def main\(\w", text, re.MULTILINE)}


def headline(text: str) -> str:
    """The first sentence of a module's docstring."""
    words = " ".join((ast.get_docstring(ast.parse(text)) or "").split())
    return re.split(r": `python -m|\. |\.$", words)[0]


def main() -> int:
    known = benchmarks()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print("usage: python -m tools.bench NAME [options]\n", file=sys.stderr)
        for name, text in known.items():
            print(f"  {name:12} {text}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"tools.bench.{sys.argv[1]}")
    return int(module.main(sys.argv[2:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
