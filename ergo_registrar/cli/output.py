"""Where commands print: results on `console`, what went wrong on `errors`.

Both are as wide as the terminal (or COLUMNS, or 80), and without colours where they are not one.
"""

from rich.console import Console

console: Console = Console(highlight=False)
errors: Console = Console(highlight=False, stderr=True)


def complain(message: str) -> None:
    """Say on standard error what went wrong and what would be right."""
    errors.print("[bold red]ergo-registrar:[/]", end=" ")
    errors.print(message, markup=False, soft_wrap=True)
