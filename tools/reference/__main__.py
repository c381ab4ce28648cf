# SPDX-License-Identifier: Apache-2.0
"""Write the reference pages anew: python -m tools.reference [--check]. A test keeps them from falling behind."""

import argparse
import sys
from pathlib import Path

from tools.reference.commands import lbctl_markdown, lbctl_page
from tools.reference.configuration import configuration_markdown
from tools.reference.daemon import lbd_page
from tools.reference.http_api import api_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {
    "configuration.md": configuration_markdown,
    "lbctl.md": lbctl_markdown,
    "api.md": api_markdown,
    "man/lbd.8": lbd_page,
    "man/lbctl.8": lbctl_page,
}


def main() -> int:
    """Exit code 1 if --check finds a page out of date."""
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the pages are up to date")
    check = parser.parse_args().check
    stale = [name for name, make in PAGES.items() if not is_current(name, make())]
    for name in stale:
        if not check:
            (DOCS / name).write_text(PAGES[name]())
        print(f"docs/{name} {'is out of date' if check else 'written'}")
    return 1 if check and stale else 0


def is_current(name: str, text: str) -> bool:
    """Whether a page says just this."""
    path = DOCS / name
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
