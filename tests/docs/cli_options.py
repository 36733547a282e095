"""The page of every command's options, as `--help` has them: `python -m tests.docs.cli_options` writes it anew."""

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo, ParameterInfo

from ergo_registrar.cli.app import app

PAGE = Path(__file__).parents[2] / "docs/reference/cli-options.md"
HEAD = """\
# Options of each command

What `ergo-registrar COMMAND --help` shows, for all commands at once. [The command line](cli.md) tells what they print.
This page is written by `python -m tests.docs.cli_options`, and a test compares it.
"""
COMMON = """\
## Where etcd is

Every command that says so above has these. Each can be set by a variable instead, `ERGO_REGISTRAR_` and its name in
upper case, as can the other [options](options.md); a flag wins over its variable.
"""
PANEL = "Where etcd is"


def commands(group: typer.Typer = app, *path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every command by its full name, sorted, with its function."""
    for command in sorted(group.registered_commands, key=command_name):
        assert command.callback
        yield " ".join((*path, command_name(command))), command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance
        yield from commands(inner.typer_instance, *path, str(inner.name or inner.typer_instance.info.name))


def command_name(command: Any) -> str:
    """Return how a command is called."""
    return str(command.name or command.callback.__name__.replace("_", "-"))


def parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    """Yield each parameter of a command with its type and what typer was told of it."""
    for parameter in inspect.signature(function).parameters.values():
        kind, *notes = get_args(parameter.annotation)
        (info,) = [note for note in notes if isinstance(note, ParameterInfo)]
        yield parameter, kind, info


def page() -> str:
    """Return the page as it should be."""
    parts, common = [HEAD], ""
    for name, function in commands():
        every = list(parameters(function))
        shared = [each for each in every if str(each[2].rich_help_panel).startswith(PANEL)]
        own = [each for each in every if each not in shared]
        common = common or (table(shared) if shared else "")
        summary = (function.__doc__ or "").partition("\n\n")[0]
        parts.append(f"## `{name}`\n\n{' '.join(summary.split())}\n")
        if own:
            parts.append(table(own))
        if shared:
            parts.append("And [where etcd is](#where-etcd-is).\n")
    return "\n".join([*parts, COMMON, common])


def table(several: list[tuple[inspect.Parameter, Any, Any]]) -> str:
    """Return a table of arguments and options."""
    rows = [
        f"| {words(parameter, kind, info)} | {info.help or ''} | {default(parameter, info)} |"
        for parameter, kind, info in several
    ]
    return "\n".join(["| | meaning | default |", "| --- | --- | --- |", *rows]) + "\n"


def words(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    """Return how a parameter is written."""
    if isinstance(info, ArgumentInfo):
        return f"`{info.metavar or parameter.name.upper()}`"
    # In an Annotated, typer takes the first flag for the default until it makes the command.
    declared = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
    flags = ", ".join(f"`{flag}`" for flag in declared or [f"--{parameter.name.replace('_', '-')}"])
    types = [kind, *get_args(kind), *(a for b in get_args(kind) for a in get_args(b))]
    if bool in types:
        return flags
    enums = [inner for inner in types if isinstance(inner, type) and issubclass(inner, Enum)]
    value = info.metavar or " or ".join(str(each.value) for enum in enums for each in enum)
    return f"{flags} {value}".rstrip()


def default(parameter: inspect.Parameter, info: Any) -> str:
    """Return the default, nothing for a flag that is off and for what has none."""
    if isinstance(info.show_default, str):
        return info.show_default
    if parameter.default in (inspect.Parameter.empty, ...):
        return "required"
    return "" if parameter.default is None or isinstance(parameter.default, bool) else str(parameter.default)


if __name__ == "__main__":
    PAGE.write_text(page())
