"""What every command says on the terminal: a progress bar, the closing table, where files lie, warnings.

What belongs here: how it looks and where it goes (numbers to standard output, the rest to standard error). What does not: what is said.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

Show = Callable[[int, int | None, str], None]


def tell(sentence: str) -> None:
    """One sentence on standard error, behind the command's name."""
    print(f"sightline: {' '.join(sentence.split())}", file=sys.stderr)


def warn(sentences: Iterable[str]) -> None:
    """Each of them as a warning on standard error."""
    for sentence in sentences:
        tell(f"warning: {sentence}")


def check_choices(options: object, choices: Mapping[str, Sequence[object]]) -> None:
    """Compares options that have few values with these.

    Args:
        options: has an attribute of each name.
        choices: name -> allowed values.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    for name, allowed in choices.items():
        value = getattr(options, name)
        if value not in allowed:
            named = ", ".join(str(choice) for choice in allowed if choice is not None)
            raise ValueError(f"--{name.replace('_', '-')}: expected one of {named}; got {value!r}")


def print_table(title: str, rows: Iterable[tuple[str, str]], verdict: str = "") -> None:
    """The closing table on standard output, and a sentence below it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)
    if verdict:
        console.print(verdict, soft_wrap=True, highlight=False)


class Report(Protocol):
    """What a command knows when it has ended."""

    title: str
    warnings: list[str]
    interrupted: bool

    @property
    def verdict(self) -> str:
        """The last line; "" if there is nothing to say."""

    def summary(self) -> list[tuple[str, str]]:
        """Rows of its table."""


def print_report(report: Report, done: str, quiet: bool) -> None:
    """Print warnings and, unless `quiet`, the table; `done`: what was finished, if the user stopped it early."""
    warn(report.warnings)
    if report.interrupted:
        tell(f"stopped after {done}; the files hold what was done so far")
    if not quiet:
        print_table(report.title, report.summary(), report.verdict)


def print_files(files: Iterable[tuple[str, object]]) -> None:
    """Kind and path of what was written, a line each."""
    from rich.console import Console

    console = Console()
    for kind, path in files:
        console.print(f"{kind}: {path}", soft_wrap=True, highlight=False, markup=False)


@contextlib.contextmanager
def progress_bar(quiet: bool, doing: str, before: str) -> Iterator[Show]:
    """A live bar on standard error where that is a terminal.

    Args:
        quiet: none.
        doing: what is done, in a word.
        before: what is done until the first call of `show`.

    Yields:
        ``show(done, total, words)``; total None where it is not known.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, total, words: None
        return
    live = TextColumn("{task.fields[live]}")
    with Progress(TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), live, console=console) as bar:
        task = bar.add_task(doing, total=None, live=before)
        yield lambda done, total, words: bar.update(task, completed=done, total=total, live=words)
