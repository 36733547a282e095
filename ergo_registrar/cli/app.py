"""The commands of `ergo-registrar`, each in a module of its own, and what they have in common."""

import logging
from typing import Annotated

import typer

from ergo_registrar import Registrar
from ergo_registrar.cli.apps import apps
from ergo_registrar.cli.config import config
from ergo_registrar.cli.demo import demo
from ergo_registrar.cli.doctor import doctor
from ergo_registrar.cli.etcd import etcd
from ergo_registrar.cli.nodes import nodes
from ergo_registrar.cli.output import complain
from ergo_registrar.cli.resolve import resolve
from ergo_registrar.cli.run import run
from ergo_registrar.cli.top import top
from ergo_registrar.cli.watch import watch

_EPILOG = (
    "Exit codes: 0 done; 1 it failed, and standard error says why; 2 a wrong command, option or value; "
    "3, of config alone, etcd holds something else; "
    "130 ended by Ctrl-C; 143 ended by SIGTERM. A command that runs until it is stopped ends with 0 then."
)

app: typer.Typer = typer.Typer(
    help="A service registrar on etcd, for clusters of Ergo nodes and Python services.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode="markdown",  # paragraphs flow
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print("ergo-registrar", Registrar().version().release)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What may stand in front of a command."""
    logging.getLogger("ergo_registrar").addHandler(_Complaints(logging.WARNING))


class _Complaints(logging.Handler):
    """Tells what the package logs as the command line tells what goes wrong."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


app.command()(demo)
app.command()(doctor)
app.command()(etcd)
app.command()(nodes)
app.command()(apps)
app.command()(resolve)
app.command()(watch)
app.command()(top)
app.command(context_settings={"allow_interspersed_args": False})(run)
app.add_typer(config)
