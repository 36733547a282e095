"""`ergo-registrar config export` and `import`: levels as a file, and back, with nothing left half-done in silence."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
import typer

from ergo_registrar import ConfigLevel, ConflictError, ConnectionFailedError, Options, RegistrarError, Value
from ergo_registrar.admin.config import Config, configured
from ergo_registrar.cli.config_files import format_of, read, write
from ergo_registrar.cli.config_options import (
    OTHERWISE,
    AnyLevel,
    Node,
    check_level,
    level_cell,
    raw_cell,
    read_level,
    text_cell,
)
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.output import complain, print_table
from ergo_registrar.cli.running import run_to_end
from ergo_registrar.core.config_diff import Difference, differences, level_name, read_wanted
from ergo_registrar.core.keys import config_prefixes
from ergo_registrar.core.values import format_value


class Format(StrEnum):
    """The formats of files."""

    YAML = "yaml"
    JSON = "json"


class ChangeDocument(msgspec.Struct, frozen=True):
    """One change of an import: the texts in etcd before and after, None for nothing."""

    level: ConfigLevel
    item: str
    before: str | None
    after: str | None


class ImportDocument(msgspec.Struct, frozen=True):
    """What `config import --json` prints. `revision` is that of the last change, or of the look."""

    cluster: str
    node: str | None
    revision: int
    dry_run: bool
    changes: list[ChangeDocument]


_KIND = typer.Option(
    "--format", "-f", help="Where FILE does not end in .yaml, .yml or .json.", show_default="yaml for -"
)


@connecting
def export_file(
    options: Options,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write, - for standard output.")],
    node: Node = None,
    level: AnyLevel = None,
    kind: Annotated[Format | None, _KIND] = None,
) -> None:
    """Write what stands in etcd to a file, YAML or JSON, that `import` reads.

    The file has a section for each level; without `--node` these are cluster and global. It names neither cluster nor
    node, so that it can be imported for another.

    Examples:
    - `ergo-registrar config export web1.yaml --node web1`
    """
    only = None if level is None else read_level(level, node)
    known = _format(file, kind)
    run_to_end(lambda: _export(options, file, known, node, only))


async def _export(options: Options, file: str, kind: str, node: str | None, level: ConfigLevel | None) -> None:
    levels = config_prefixes(options.cluster, node) if level is None else (level,)
    async with configured(options, node) as config:
        standing = await config.read(levels)
    sections: dict[str, dict[str, Value]] = {level_name(each): {} for each in levels}
    for stored in standing.stored:
        if stored.item is not None and stored.value is not None:
            sections[level_name(stored.level)][stored.item] = stored.value
        else:
            complain(f"left out {stored.key!r}: {stored.problem}")
    text = write(sections, kind)
    if file == "-":
        sys.stdout.buffer.write(text.encode())
        return
    try:
        await anyio.Path(file).write_bytes(text.encode())
    except OSError as error:
        raise RegistrarError(f"cannot write {file!r}: {error.strerror}") from None


@connecting
def import_file(
    options: Options,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What to read, - for standard input.")],
    node: Node = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change; exit code 3 if anything would.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also take away, at the levels of the file, what it does not have.")
    ] = False,
    kind: Annotated[Format | None, _KIND] = None,
    json: Json = False,
) -> None:
    """Set what a file says, at the levels it speaks of, and show what that changes.

    At the top of the file stand levels, and under each its items. Nested items are joined with dots:

        cluster:
          log.level: debug
          database:
            port: 5432        # database.port, an int
            password: "5432"  # text

    What readers of YAML take for different things (`on`, `010`, `1e3`, a date) is refused, and so are lists, null, and
    an item that stands twice; every such place is told, and nothing is written then.

    It is written in transactions of at most a hundred items. Each happens as a whole, and only if nobody else changed
    these items since they were read; otherwise exit code 3.

    Examples:
    - `ergo-registrar config import web1.yaml --node web1 --dry-run`
    """
    wanted = _wanted(file, _format(file, kind))
    for level in wanted:
        check_level(level, node)
    run_to_end(lambda: _import(options, wanted, node, dry_run, prune, json))


def _format(file: str, kind: Format | None) -> str:
    found = kind.value if kind is not None else format_of(file)
    if found is None:
        raise typer.BadParameter(f"{file!r} does not end in .yaml, .yml or .json; say which it is with --format")
    return found


def _wanted(file: str, kind: str) -> dict[ConfigLevel, dict[str, Value]]:
    """Return what a file says. Exit with 2 where anything is wrong with it, and say what."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        fields, problems = read(data.decode("utf-8-sig"), kind)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file!r} is not UTF-8: byte {error.start}") from None
    wanted, more = read_wanted(fields)
    problems += more
    for problem in problems:
        complain(f"{'standard input' if file == '-' else file}: {problem}")
    if problems:
        complain("nothing was written")
        raise typer.Exit(2)
    return wanted


async def _import(
    options: Options,
    wanted: dict[ConfigLevel, dict[str, Value]],
    node: str | None,
    dry_run: bool,
    prune: bool,
    json: bool,
) -> None:
    async with configured(options, node) as config:
        standing = await config.read(wanted)
        found = differences(standing.stored, wanted, prune=prune)
        if not json:
            _show(found)
        revision = standing.revision
        if not dry_run:
            revision = await _apply(config, found) or revision
    if json:
        print_json(ImportDocument(options.cluster, node, revision, dry_run, [_document(each) for each in found]))
    elif not dry_run and found:
        print(f"{len(found)} changed, at revision {revision}")
    if dry_run and found:
        raise typer.Exit(OTHERWISE)


async def _apply(config: Config, found: list[Difference]) -> int:
    """Do it, and return the last revision, 0 if there was nothing to do. Say how far it came where it fails."""
    done = revision = 0
    try:
        async for step in config.make(found):
            done, revision = step
    except (ConflictError, ConnectionFailedError) as error:
        left = f"{done} of {len(found)} were done before" if done else "none was done"
        complain(f"{error}; {left}")
        raise typer.Exit(OTHERWISE if isinstance(error, ConflictError) else 1) from None
    return revision


def _show(found: list[Difference]) -> None:
    if not found:
        print("nothing to change")
        return
    rows = [(_sign(each), each.item, _cell(each), level_cell(each.level)) for each in found]
    print_table(("", "item", "change", "level"), rows)


def _sign(difference: Difference) -> str:
    return "+" if difference.before is None else "-" if difference.after is None else "~"


def _cell(difference: Difference) -> str:
    before, after = raw_cell(difference.before), text_cell(_text(difference.after))
    return {"+": after, "-": before}.get(_sign(difference), f"{before} -> {after}")


def _text(value: Value | None) -> str | None:
    return None if value is None else format_value(value)


def _document(difference: Difference) -> ChangeDocument:
    before = None if difference.before is None else difference.before.raw
    return ChangeDocument(difference.level, difference.item, before, _text(difference.after))
