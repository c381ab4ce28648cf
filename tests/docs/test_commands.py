# SPDX-License-Identifier: Apache-2.0
"""The commands of the documentation are what they say: lab blocks are run, the others exist with their options; the
example of a scenario is one.
"""

import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# A block of shell commands; the word "lab" behind "sh" marks one that is run as it stands.
BLOCK = re.compile(r"^( *)```sh( lab)?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
LAB_SECONDS_MAX = 180
BIN = ROOT / ".venv" / "bin"


def blocks(page: Path, *, lab: bool) -> list[str]:
    return [text for _, marked, text in BLOCK.findall(page.read_text()) if bool(marked) == lab]


def commands() -> set[tuple[str, ...]]:
    """Every simple command in the blocks that are not run, by page."""
    found = set()
    for page in PAGES:
        for block in blocks(page, lab=False) + blocks(page, lab=True):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\||;|\s&\s|&$", line.split("#")[0]):
                    words = tuple(shlex.split(part)) if part.count("'") % 2 == 0 else ()
                    if words:
                        found.add(words)
    return found


def after_wrapper(words: tuple[str, ...]) -> tuple[str, ...]:
    """`lab exec NAME NODE -- COMMAND` is its command."""
    return words[words.index("--") + 1 :] if "--" in words and words[0].endswith("lab") else words


LBCTL = sorted({w for w in map(after_wrapper, commands()) if w and w[0] == "lbctl" and len(w) > 1})
MAKE = sorted({target for w in commands() if w[0] == "make" for target in w[1:] if re.fullmatch(r"[a-z-]+", target)})
# Programs of the source tree stand in the text: `python -m tools.bench packet --json`.
MODULES = sorted(
    {tuple(text.split()[2:]) for page in PAGES for text in re.findall(r"`(python -m [^`]+)`", page.read_text())}
)


def test_the_documentation_has_commands() -> None:
    assert len(LBCTL) > 10
    assert {"demo", "test"} <= set(MAKE)
    assert len(MODULES) > 10


@pytest.mark.parametrize("words", LBCTL, ids=" ".join)
def test_lbctl_command_exists_with_its_options(words: tuple[str, ...]) -> None:
    path = [word for word in words[1:3] if re.fullmatch(r"[a-z-]+", word)]
    for depth in range(len(path), 0, -1):
        done = subprocess.run([BIN / "lbctl", *path[:depth], "--help"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    text = done.stdout + subprocess.run([BIN / "lbctl", "--help"], capture_output=True, text=True, check=True).stdout
    for option in (word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)):
        assert option in text, f"{' '.join(words)}: no option {option}"


@pytest.mark.parametrize("target", MAKE)
def test_make_target_exists(target: str) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("words", MODULES, ids=" ".join)
def test_module_exists_with_its_options(words: tuple[str, ...]) -> None:
    call = [str(BIN / "python"), "-m", words[0]]
    if len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
        call.append(words[1])
    options = [word for word in words if word.startswith("--")]
    if not options:
        assert importlib.util.find_spec(words[0])
        return
    done = subprocess.run([*call, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for option in options:
        assert option in done.stdout, f"{' '.join(words)}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def lab_pages() -> list[Path]:
    return [page for page in PAGES if blocks(page, lab=True)]


@pytest.mark.timeout(LAB_SECONDS_MAX + 30)
@pytest.mark.parametrize("page", lab_pages(), ids=lambda page: page.name)
def test_lab_blocks_run(page: Path) -> None:
    script = "set -eux\n" + "\n".join(blocks(page, lab=True))
    names = set(re.findall(r"lab up (\S+)", script))
    try:
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=LAB_SECONDS_MAX, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    finally:
        for name in names:
            subprocess.run([ROOT / "netns-lab" / "lab", "down", name], capture_output=True, check=False)


@pytest.mark.timeout(LAB_SECONDS_MAX)
def test_the_example_of_a_scenario_passes(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "test_mine.py").write_text(example)
    options = ["-q", "-c", "pyproject.toml", "-p", "scenarios.conftest"]
    done = subprocess.run(
        [BIN / "python", "-m", "pytest", *options, tmp_path / "test_mine.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "netns-lab")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "1 passed" in done.stdout
