"""The command line, `ergo-registrar`: thin commands over the public names. `main` is its entry point.

It needs the extra `cli`. The package without it must still be importable, so nothing here imports typer at the top.
"""

import os
import sys

_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def main() -> int:
    """Run `ergo-registrar` with the arguments of this process; return its exit code, or raise SystemExit with it."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it writes on standard error, the errors say in one line
    try:
        from ergo_registrar.cli.app import app

        app(prog_name="ergo-registrar")
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "yaml"):
            raise
        print(
            f"ergo-registrar: the command line needs {error.name}, which is not installed: "
            "pip install 'ergo-registrar[cli]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:  # while still importing; a command sees to its own signals
        return _INTERRUPTED
    return 0
