# SPDX-License-Identifier: Apache-2.0
"""Telling what happens: steps with their time, facts that must hold, tables, and the verdict at the end."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 120


class Story:
    """Prints as it goes; `failed` holds every fact that turned out wrong."""

    def __init__(self, console: Console | None = None) -> None:
        # Lines are written for this width; a terminal that is narrower wraps them.
        self.console = console or Console(highlight=False, emoji=False)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.begun = time.monotonic()
        self.failed: list[str] = []

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.begun:6.1f} s[/dim]  {text}")

    def detail(self, text: str) -> None:
        """A line below the last one, taken literally."""
        self.console.print(Text(f"            {text}", style="dim"))

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Says what is being done and, once the block is through, how long it took."""
        begun = time.monotonic()
        yield
        self.say(f"{text} [dim]({(time.monotonic() - begun) * 1000:.0f} ms)[/dim]")

    def fact(self, text: str, holds: bool) -> None:
        """Something that must hold; the demo goes on either way and fails at its end."""
        self.say(f"[green]✓[/green] {text}" if holds else f"[bold red]✗ {text}[/bold red]")
        if not holds:
            self.failed.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Numbers stand to the right, words to the left."""
        cells = [[_shown(cell) for cell in row] for row in rows]
        table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
        for number, column in enumerate(columns):
            numbers = all(row[number].replace(".", "", 1).isdigit() for row in cells)
            table.add_column(column, justify="right" if numbers else "left")
        for row in cells:
            table.add_row(*row)
        self.console.print()
        self.console.print(table)

    def verdict(self) -> int:
        """Exit code."""
        self.console.print()
        seconds = time.monotonic() - self.begun
        if self.failed:
            self.console.print(f"[bold red]The demo failed after {seconds:.0f} s:[/bold red]")
            for text in self.failed:
                self.console.print(f"  [red]✗ {text}[/red]")
            return 1
        self.console.print(f"[bold green]All of it held, in {seconds:.0f} s.[/bold green]")
        return 0


def _shown(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return str(cell)
