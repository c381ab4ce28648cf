# SPDX-License-Identifier: Apache-2.0
"""Mutated configuration files: `python -m tests.fuzz.configuration --count N --seed S`.

Whatever the text, the validator returns a configuration or says what is wrong with it; it never fails in another way,
and what it accepts survives the way through the store unchanged.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lb.configuration import schema
from lb.configuration.model import ClusterConfig
from lb.configuration.plain import from_plain, pack, to_plain, unpack

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
ODD_VALUES = (
    *("0", "-1", "65536", "99999999999999999999", "1.5", "nan", "true", '""', "[]", "{}", "[[1]]", "1979-05-27"),
    *(
        '"any"',
        '"10.0.0.1"',
        '"10.0.0.300"',
        '"::"',
        '"0.0.0.0/0"',
        '"fe80::1/64"',
        '"\\u0000"',
        '"é"',
        '"' + "x" * 70 + '"',
    ),
)
ODD_CHARACTERS = "\0\t\"'=[]{}\x80\u2028\U0001f600"

Mutation = Callable[[random.Random, list[str]], list[str]]


def drop_line(rng: random.Random, lines: list[str]) -> list[str]:
    at = rng.randrange(len(lines))
    return lines[:at] + lines[at + 1 :]


def repeat_line(rng: random.Random, lines: list[str]) -> list[str]:
    at = rng.randrange(len(lines))
    return lines[: at + 1] + lines[at:]


def swap_lines(rng: random.Random, lines: list[str]) -> list[str]:
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return lines


def odd_value(rng: random.Random, lines: list[str]) -> list[str]:
    places = [at for at, line in enumerate(lines) if " = " in line]
    if places:
        at = rng.choice(places)
        lines[at] = lines[at].split(" = ")[0] + " = " + rng.choice(ODD_VALUES)
    return lines


def rename_key(rng: random.Random, lines: list[str]) -> list[str]:
    places = [at for at, line in enumerate(lines) if " = " in line]
    if places:
        at = rng.choice(places)
        lines[at] = lines[at][1:] if rng.random() < 0.5 else "x" + lines[at]
    return lines


def flip_character(rng: random.Random, lines: list[str]) -> list[str]:
    at = rng.randrange(len(lines))
    line = lines[at]
    place = rng.randrange(len(line) + 1)
    lines[at] = (
        line[:place] + chr(rng.choice((0, 9, 34, 39, 61, 91, 93, 123, 128, 0x2028, 0x1F600))) + line[place + 1 :]
    )
    return lines


MUTATIONS: Sequence[Mutation] = (drop_line, repeat_line, swap_lines, odd_value, odd_value, rename_key, flip_character)


def mutated(rng: random.Random, text: str) -> str:
    """`text` after one to four mutations."""
    lines = text.splitlines() or [""]
    for _ in range(rng.randint(1, 4)):
        lines = rng.choice(MUTATIONS)(rng, lines) or [""]
    return "\n".join(lines)


def check_words(problems: Sequence[schema.Problem]) -> None:
    """A refusal names at least one fault, each with words of bounded length."""
    assert problems, "refused without a reason"
    for problem in problems:
        assert problem.problem, f"a fault without words: {problem}"
        assert problem.source == "fuzz.toml"
        assert len(problem.text) < 2000


def check(kind: schema.Kind, text: str) -> str:
    """`accepted` or `refused`; any other outcome raises."""
    try:
        value = schema.parse(kind, text, "fuzz.toml")
    except schema.Invalid as refusal:
        check_words(refusal.problems)
        return "refused"
    if kind == "cluster":
        assert unpack(pack(value)) == value
        assert from_plain(ClusterConfig, to_plain(value)) == value
    return "accepted"


def kind_of(path: Path) -> schema.Kind:
    return "cluster" if path.name == "services.toml" else "node"


def run(count: int, seed: int) -> Counter[str]:
    """Outcomes of `count` mutated files. Raises AssertionError with the text that broke the rule."""
    seeds = [(kind_of(path), path.read_text()) for path in sorted(EXAMPLES.glob("*.toml"))]
    outcomes: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        kind, text = rng.choice(seeds)
        wrong = mutated(rng, text)
        try:
            outcomes[check(kind, wrong)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, file {number} ({kind}): {error!r}\n{wrong}") from error
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.configuration")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    outcomes = run(options.count, options.seed)
    print(f"configuration: {options.count} files in {time.monotonic() - began:.1f} s: {dict(outcomes)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
