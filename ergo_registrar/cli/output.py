"""Where commands print: results on `console`, what went wrong on `errors`.

Both are as wide as the terminal (or COLUMNS, or 80), and without colours where they are not one.
"""

import logging
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

console: Console = Console(highlight=False)
errors: Console = Console(highlight=False, stderr=True)


def complain(message: str) -> None:
    """Say on standard error what went wrong and what would be right."""
    errors.print("[bold red]ergo-registrar:[/]", end=" ")
    errors.print(message, markup=False, soft_wrap=True)


def say_nothing_of_the_session() -> None:
    """Let the log be silent on the session's state, where the command itself tells of it."""
    logging.getLogger("ergo_registrar.runner").setLevel(logging.ERROR)


def printable(text: str) -> str:
    """Return a text from etcd as a terminal may have it: what would steer the terminal is written as its code."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print columns, each as wide as its widest cell, no blanks at the end of a line; lines are never cut or folded."""
    shown = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    for number, row in enumerate(shown):
        cells = "   ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        console.print(Text(f"{indent}{cells}".rstrip(), style="" if number else "dim"), soft_wrap=True)
