"""`ergo-registrar config set` and `unset`: one item at one level."""

import contextlib
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from ergo_registrar import ConfigLevel, ConflictError, Options, RegistrarError, Value
from ergo_registrar.admin.config import Config, configured
from ergo_registrar.cli.config_options import OTHERWISE, Level, Node, level_cell, near, raw_cell, read_level, text_cell
from ergo_registrar.cli.config_read import Item
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.output import complain, printable
from ergo_registrar.cli.running import run_to_end
from ergo_registrar.core.change import ConfigChange, Expectation, Write
from ergo_registrar.core.config import same_value
from ergo_registrar.core.config_diff import Difference, Stored, level_name
from ergo_registrar.core.keys import NODE_LEVELS, ConfigKey
from ergo_registrar.core.values import parse_value

_TRIES = 10  # how often someone else may be faster


class Kind(StrEnum):
    """The types of values."""

    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    STR = "str"


_LIKE = {
    Kind.INT: "a whole number of 64 bits, in decimal digits, such as 5432",
    Kind.FLOAT: "a number such as 0.75, 1e3 or inf",
    Kind.BOOL: "true or false",
}


class WrittenDocument(msgspec.Struct, frozen=True):
    """What `config set --json` and `unset --json` print: the texts in etcd before and after, None for nothing.

    `changed` is False where it was so already; `revision` is that of the change, or of the look.
    """

    cluster: str
    node: str | None
    level: ConfigLevel
    item: str
    key: str
    before: str | None
    after: str | None
    changed: bool
    revision: int


If = Annotated[
    str | None,
    typer.Option(
        "--if", metavar="CURRENT", help="Only if this stands there now, as `get --raw` shows it; else exit code 3."
    ),
]


@connecting
def set_item(
    options: Options,
    item: Item,
    value: Annotated[
        str,
        typer.Argument(metavar="VALUE", help="As it stands in etcd: int:5432, float:0.75, bool:true, else text."),
    ],
    level: Level,
    node: Node = None,
    kind: Annotated[
        Kind | None, typer.Option("--type", "-t", help="What VALUE is, instead of a prefix: --type int 5432.")
    ] = None,
    expect: If = None,
    absent: Annotated[
        bool, typer.Option("--if-absent", help="Only if nothing stands there; else exit code 3.")
    ] = False,
    json: Json = False,
) -> None:
    """Set one item at one level, and say what was there before.

    What could be a number or text is refused, not guessed: write `int:5432` for the number, `--type str 5432` for the
    text. So is what would be read back as something else.

    With `--if` or `--if-absent` it is a compare-and-swap: nobody else's change is overwritten unseen.

    Examples:
    - `ergo-registrar config set database.port int:5432 --level cluster-node --node web1`

    - `ergo-registrar config set database.port int:6432 --level cluster --if int:5432`
    """
    if expect is not None and absent:
        raise typer.BadParameter("--if and --if-absent exclude each other")
    change = ConfigChange(
        _at(read_level(level, node), node, item), _read_value(value, kind), None if absent else _expectation(expect)
    )
    run_to_end(lambda: _write(options, node, change, json))


@connecting
def unset_item(
    options: Options, item: Item, level: Level, node: Node = None, expect: If = None, json: Json = False
) -> None:
    """Take one item away at one level, so that the next level that has it decides.

    Where it does not stand there, there is nothing to do: that is said, and is no failure.

    Examples:
    - `ergo-registrar config unset database.port --level cluster-node --node web1`
    """
    change = ConfigChange(_at(read_level(level, node), node, item), None, _expectation(expect))
    run_to_end(lambda: _write(options, node, change, json))


def _at(level: ConfigLevel, node: str | None, item: str) -> ConfigKey:
    if node is not None and level not in NODE_LEVELS:  # who names a node does not mean to change it for all
        raise typer.BadParameter(
            f"level {level_name(level)} is of no one node; leave --node out, or take another level"
        )
    return ConfigKey(level, item, node)


def _expectation(text: str | None) -> Expectation:
    return msgspec.UNSET if text is None else parse_value(text)


def _read_value(text: str, kind: Kind | None) -> Value:
    """Return what is meant. Raise `BadParameter` where that is not clear."""
    prefix, colon, rest = text.partition(":")
    if kind is Kind.STR:
        return text
    if kind is not None:
        value = parse_value(f"{kind.value}:{text}")
        if isinstance(value, str):
            raise typer.BadParameter(f"a value of type {kind.value} must be {_LIKE[kind]}, not {text!r}")
        return value
    value = parse_value(text)
    if not isinstance(value, str):
        return value
    if colon and prefix in set(_LIKE):
        rule = f"behind {prefix}: must stand {_LIKE[Kind(prefix)]}, not {rest!r}"
        raise typer.BadParameter(f"{rule}; if it is text, say --type str")
    for like in _LIKE:
        if _looks_like(text, like):
            rule = f"{text!r} could be a value of type {like.value} or text"
            raise typer.BadParameter(f"{rule}: write {like.value}:{text}, or --type str {text}")
    return text


def _looks_like(text: str, kind: Kind) -> bool:
    if kind is Kind.BOOL:
        return text.lower() in ("true", "false")
    return any(c.isdigit() for c in text) and not isinstance(parse_value(f"{kind.value}:{text}"), str)


async def _write(options: Options, node: str | None, change: ConfigChange, json: bool) -> None:
    """Make a change, and tell what it replaced."""
    write = Write.of(options.cluster, change)
    async with configured(options, node) as config:
        before, revision, changed = await _replace(config, change, write)
    after = None if write.value is None else write.value.decode()
    item, level = change.at.item, change.at.level
    if json:
        raw = None if before is None else before.raw
        key = write.key.decode()
        print_json(WrittenDocument(options.cluster, node, level, item, key, raw, after, changed, revision))
    elif changed:
        print(printable(f"{item} at level {level_cell(level)}: {raw_cell(before)} -> {text_cell(after)}"))
    elif after is not None:
        print(printable(f"{item} at level {level_cell(level)}: {raw_cell(before)} already"))


async def _replace(config: Config, change: ConfigChange, write: Write) -> tuple[Stored | None, int, bool]:
    """Return what stood there, the revision at which it is as wanted, and whether that took a change."""
    at = change.at
    for _ in range(_TRIES):
        standing = await config.read([at.level])
        before = next((s for s in standing.stored if s.item == at.item), None)
        try:
            write.refuse(None if before is None or before.raw is None else before.raw.encode())
        except ConflictError as error:
            complain(str(error))
            raise typer.Exit(OTHERWISE) from None
        if before is None and change.value is None:
            complain(f"no item {at.item!r} at level {level_cell(at.level)}; {near(at.item, standing.stored)}")
            return before, standing.revision, False
        if before is not None and change.value is not None and same_value(before.value, change.value):
            return before, standing.revision, False
        difference = Difference(at.level, at.item, before, change.value)
        with contextlib.suppress(ConflictError):  # someone else was faster: look again
            done = [revision async for _, revision in config.make([difference])]
            return before, done[-1], True
    raise RegistrarError(f"others changed {at.item!r} {_TRIES} times while it was to be written; nothing was written")
