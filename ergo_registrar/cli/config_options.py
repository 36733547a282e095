"""What the commands of `ergo-registrar config` have in common: which level, whose, and how it is shown."""

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

from ergo_registrar import ConfigLevel
from ergo_registrar.core.config_diff import Stored, level_name
from ergo_registrar.core.keys import NODE_LEVELS

OTHERWISE = 3
"""The exit code that says: etcd answered, and holds something else than this takes for granted."""


class LevelName(StrEnum):
    """The levels as options name them, and as files do."""

    CROSS_CLUSTER_NODE = level_name(ConfigLevel.CROSS_CLUSTER_NODE)
    CLUSTER_NODE = level_name(ConfigLevel.CLUSTER_NODE)
    CLUSTER = level_name(ConfigLevel.CLUSTER)
    GLOBAL = level_name(ConfigLevel.GLOBAL)


_LEVELS = f"{', '.join(LevelName)}; the first two are of one node."

Node = Annotated[str | None, typer.Option("--node", "-n", help="Whose: the node that levels 1 and 2 belong to.")]
Level = Annotated[LevelName, typer.Option("--level", "-l", metavar="LEVEL", help=f"Where: {_LEVELS}")]
AnyLevel = Annotated[LevelName | None, typer.Option("--level", "-l", metavar="LEVEL", help=f"Only one: {_LEVELS}")]


def read_level(name: LevelName, node: str | None) -> ConfigLevel:
    """Return the level of this name. Refuse one of a node without the node, as a wrong option."""
    level = ConfigLevel[name.name]
    check_level(level, node)
    return level


def check_level(level: ConfigLevel, node: str | None) -> None:
    """Refuse a level of a node without the node, as a wrong option."""
    if level in NODE_LEVELS and node is None:
        raise typer.BadParameter(f"level {level_name(level)} is of one node; say of which with --node")


def level_cell(level: ConfigLevel) -> str:
    """Return a level as tables show it."""
    return f"{level.value} {level_name(level)}"


def text_cell(text: str | None) -> str:
    """Return a text in etcd as tables show it, None being that there is none."""
    return "-" if text is None else f'"{text}"' if text in ("", "-") else text


def raw_cell(stored: Stored | None) -> str:
    """Return what stands at a key as tables show it."""
    text = text_cell(None if stored is None else stored.raw)
    return f"{text} (cannot be read)" if stored is not None and stored.problem else text


def verdict_cell(stored: Stored) -> str:
    """Return what comes of what stands at a key."""
    return "decides" if stored.winner else stored.problem


def near(item: str, stored: Iterable[Stored]) -> str:
    """Return what to look at where an item is missing, as the end of a sentence."""
    names = {s.item for s in stored if s.item is not None} - {item}
    close = difflib.get_close_matches(item, sorted(names), cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return "`ergo-registrar config list` shows what there is"
