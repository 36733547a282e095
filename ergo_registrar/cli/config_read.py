"""`ergo-registrar config get`, `list` and `explain`: what the configuration says, and why."""

import fnmatch
from typing import Annotated

import msgspec
import typer

from ergo_registrar import Options
from ergo_registrar.admin.config import Standing, configured
from ergo_registrar.cli.config_options import AnyLevel, Node, level_cell, near, raw_cell, read_level, verdict_cell
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.output import complain, print_table
from ergo_registrar.cli.running import run_to_end
from ergo_registrar.core.config_diff import Stored, explain
from ergo_registrar.core.keys import ConfigLevel, check_name

Item = Annotated[str, typer.Argument(metavar="ITEM", help="Its whole name, such as database.port.", show_default=False)]


class ListDocument(msgspec.Struct, frozen=True):
    """What `config list --json` prints. `node` is None for what an observer sees."""

    cluster: str
    node: str | None
    revision: int
    items: list[Stored]


class ExplainDocument(msgspec.Struct, frozen=True):
    """What `config explain --json` prints: all four levels, the highest first."""

    cluster: str
    node: str | None
    revision: int
    item: str
    levels: list[Stored]


@connecting
def get(
    options: Options,
    item: Item,
    node: Node = None,
    raw: Annotated[bool, typer.Option("--raw", help="The text in etcd, such as int:5432, not the value.")] = False,
    json: Json = False,
) -> None:
    """Print the value of one item: that of the highest level that has it.

    An int and a float are printed as numbers, a bool as true or false, a text as it is. With `--json` there is also
    the level that decides; in JSON, which has no nan and no inf, the value of these is null.

    Without `--node` it is what every node sees that has nothing of its own. A missing item is exit code 1.

    Examples:
    - `ergo-registrar config get database.port --node web1`
    """
    run_to_end(lambda: _get(options, item, node, raw, json))


async def _get(options: Options, item: str, node: str | None, raw: bool, json: bool) -> None:
    standing = await _read(options, node, item)
    found = next((s for s in standing.stored if s.item == item and s.winner), None)
    if found is None:
        _complain_of_missing(options, node, item, standing)
        raise typer.Exit(1)
    if json:
        print_json(found)
    elif raw or isinstance(found.value, str):
        print(found.raw)
    else:
        print(str(found.value).lower())  # True and NaN are nobody else's spelling


@connecting
def list_items(
    options: Options,
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Only items like it, `*` standing for anything: 'database.*'.")
    ] = "*",
    node: Node = None,
    level: AnyLevel = None,
    all_levels: Annotated[
        bool, typer.Option("--all-levels", help="Whatever stands at any level, also what does not count.")
    ] = False,
    json: Json = False,
) -> None:
    """List items, with their values as they stand in etcd and the level that decides.

    With `--level` or `--all-levels` it lists whatever stands there: also what a higher level overrides, and what
    cannot be read, which then says why. Quote a PATTERN, or the shell may take it for file names.

    Without `--node` it is what every node sees that has nothing of its own.

    Examples:
    - `ergo-registrar config list 'database.*' --node web1`
    """
    only = None if level is None else read_level(level, node)
    if level is not None and all_levels:
        raise typer.BadParameter("--level and --all-levels exclude each other")
    run_to_end(lambda: _list(options, pattern, node, only, all_levels, json))


async def _list(
    options: Options, pattern: str, node: str | None, level: ConfigLevel | None, all_levels: bool, json: bool
) -> None:
    standing = await _read(options, node)
    named = [s for s in standing.stored if pattern == "*" or fnmatch.fnmatchcase(s.item or "", pattern)]
    shown = [s for s in named if (s.winner if level is None and not all_levels else level in (None, s.level))]
    if level is None and not all_levels:
        shown.sort(key=lambda s: s.item or "")
        if any(s.problem for s in named):
            complain("some of what stands there cannot be read; --all-levels shows it")
    if json:
        print_json(ListDocument(options.cluster, node, standing.revision, shown))
    elif not shown:
        complain(f"nothing is set {_of(options, node)}" + ("" if pattern == "*" else f" that is like {pattern!r}"))
    elif level is None and not all_levels:
        print_table(("item", "in etcd", "level"), [(s.item or "", raw_cell(s), level_cell(s.level)) for s in shown])
    else:
        rows = [(s.item or s.key or "", raw_cell(s), level_cell(s.level), verdict_cell(s)) for s in shown]
        print_table(("item", "in etcd", "level", ""), rows)


@connecting
def explain_item(options: Options, item: Item, node: Node = None, json: Json = False) -> None:
    """Show what each of the four levels says about one item, and which of them decides.

    The highest that has it, 1, wins. Without `--node`, levels 1 and 2 are not looked at.

    Examples:
    - `ergo-registrar config explain log.level --node web1`
    """
    run_to_end(lambda: _explain(options, item, node, json))


async def _explain(options: Options, item: str, node: str | None, json: bool) -> None:
    standing = await _read(options, node, item)
    levels = explain(standing.stored, options.cluster, node, item)
    if json:
        print_json(ExplainDocument(options.cluster, node, standing.revision, item, levels))
    else:
        rows = [
            (
                level_cell(s.level),
                raw_cell(s),
                "-" if s.value is None else repr(s.value),
                str(s.revision or "-"),
                s.key or "(needs --node)",
                verdict_cell(s),
            )
            for s in levels
        ]
        print_table(("level", "in etcd", "value", "revision", "key", ""), rows)
    if not any(s.winner for s in levels):
        _complain_of_missing(options, node, item, standing)
        raise typer.Exit(1)


async def _read(options: Options, node: str | None, item: str | None = None) -> Standing:
    if item is not None:
        check_name("item", item)
    async with configured(options, node) as config:
        return await config.read()


def _complain_of_missing(options: Options, node: str | None, item: str, standing: Standing) -> None:
    broken = [level_cell(s.level) for s in standing.stored if s.item == item]
    unread = f"what stands at level {', '.join(broken)} cannot be read; " if broken else ""
    complain(f"no item {item!r} {_of(options, node)}; {unread}{near(item, standing.stored)}")


def _of(options: Options, node: str | None) -> str:
    who = "for every node" if node is None else f"for node {node!r}"
    return f"{who} of cluster {options.cluster!r}"
