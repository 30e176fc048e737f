"""What commands draw: tables, a line of progress, and text with a hanging indent.

On a terminal everything fits its width and has colours (unless NO_COLOR is set). Elsewhere there are plain lines, as
long as they are: somebody will search or cut them. rich is imported when something is drawn, for `--help` is not to
wait for it. See also: progress_line, check, bench (what is drawn).
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S: Final = 5.0
# What no line is longer than.
_UNBOUNDED: Final = 100_000
_LEAST_COLUMNS: Final = 40
# A first column that is longer is folded where there is no room.
_LEAST_FIRST: Final = 20
_GAP: Final = 2
# A rule below the head and above a total; lines in the order that rich wants them.
_RULES: Final = "    \n    \n -- \n    \n -- \n -- \n    \n    \n"


def is_terminal(file: IO[Any]) -> bool:
    """Tell whether a person looks at what is written to `file`."""
    try:
        return file.isatty()
    except ValueError:
        return False


def count_columns(file: IO[Any]) -> int:
    """Return how wide a line of `file` may be."""
    return max(_LEAST_COLUMNS, shutil.get_terminal_size().columns) if is_terminal(file) else _UNBOUNDED


def make_console(file: IO[Any]) -> Console:
    """Return rich's console for a file, which takes text as it is, without markup or guesses of colours."""
    from rich.console import Console

    return Console(file=file, width=count_columns(file), markup=False, highlight=False, emoji=False, soft_wrap=False)


def print_indented(text: str, indent: int = 0, start: str = "") -> None:
    """Print `start` and a text after it; where a terminal's width breaks it, it goes on `indent` columns in."""
    columns = count_columns(sys.stdout)
    width = max(_LEAST_COLUMNS // 2, columns - indent - 1)
    lines = (
        textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        if columns < len(text) + indent + 1
        else [text]
    )
    click.echo(start + f"\n{' ' * indent}".join(lines or [""]))


def print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, is_last_total: bool = False, spare: Sequence[str] = ()
) -> None:
    """Print a table: its first column to the left, all others to the right; the last row may be a total.

    Where a terminal is too narrow, columns named in `spare` are left out, the first of them first, and a note says so.
    """
    from rich.box import Box
    from rich.table import Table

    shown = _fit(head, rows, spare)
    table = Table(box=Box(_RULES, ascii=True), show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.header_style = "bold"
    for column in shown:
        table.add_column(head[column], justify="right" if column else "left", no_wrap=bool(column), overflow="fold")
    for number, row in enumerate(rows):
        if is_last_total and number == len(rows) - 1:
            table.add_section()
        table.add_row(*(row[column] for column in shown))
    make_console(sys.stdout).print(table)
    left_out = [name for column, name in enumerate(head) if column not in shown]
    if left_out:
        print_indented(f"Left out for want of room: {', '.join(left_out)}.")


def _fit(head: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[str]) -> list[int]:
    """Return the columns that there is room for; the first one may be folded."""
    widths = [max(len(row[column]) for row in [head, *rows]) + _GAP for column in range(len(head))]
    widths[0] = min(widths[0], _LEAST_FIRST + _GAP)
    shown = list(range(len(head)))
    for name in spare:
        if sum(widths[column] for column in shown) - _GAP <= count_columns(sys.stdout):
            break
        shown.remove(head.index(name))
    return shown


@contextmanager
def show_progress(total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Give a function to tell how many are over: a bar on stderr if it is a terminal, else a line now and then."""
    if not is_terminal(sys.stderr):
        yield _tell_now_and_then(total, unit)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=make_console(sys.stderr)) as progress:
        task = progress.add_task(unit, total=total)
        yield lambda done: progress.update(task, completed=done)


def _tell_now_and_then(total: int, unit: str) -> Callable[[int], None]:
    last = time.monotonic()

    def tell(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            click.echo(f"{done}/{total} {unit}", err=True)

    return tell


def may_colour() -> bool:
    """Tell whether stdout takes colours and the reader wants them (no-color.org)."""
    return is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
