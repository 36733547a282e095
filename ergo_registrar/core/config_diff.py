"""A configuration that someone wrote down, against the one that stands in etcd: what is wrong with it, what to change.

A file has one section for each level it speaks of, named as `LEVEL_NAMES` says. Below it stand items; nested mappings
are items with dots: `database: {port: 5432}` is `database.port: 5432`. Nothing is guessed and nothing left out in
silence: what cannot be an item's value is a `Problem`, and all are found at once.

What is equal is decided by value, not by text: where etcd says `int:007` and the file 7, nothing is to be done.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Union

import msgspec

from ergo_registrar.core.change import ConfigChange
from ergo_registrar.core.config import ConfigEntry, deciding_level, read_entries, same_value
from ergo_registrar.core.keys import NODE_LEVELS, ConfigKey, ConfigLevel, check_name, config_key, config_prefixes
from ergo_registrar.core.records import Record
from ergo_registrar.core.values import format_value
from ergo_registrar.errors import ValidationError
from ergo_registrar.events import Value


def level_name(level: ConfigLevel) -> str:
    """Return what people call a level: `cluster-node`."""
    return level.name.lower().replace("_", "-")


LEVEL_NAMES: dict[str, ConfigLevel] = {level_name(level): level for level in ConfigLevel}
"""What people call the levels, the highest first."""

Wanted = Mapping[ConfigLevel, Mapping[str, Value]]
"""The values of the items, by level. A level that is not there is not spoken of."""


class Stored(msgspec.Struct, frozen=True):
    """What stands at one key of a level.

    `item` is None where the key names none. `value` is None where it cannot be read, and `problem` says why; in `raw`
    and `key`, bytes that are not UTF-8 are escaped. `winner`: it decides the effective value. Where nothing stands,
    `raw` and `value` are None and `revision` is 0; where nothing could, at a level of a node without a node, so is
    `key`.
    """

    level: ConfigLevel
    key: str | None
    item: str | None
    raw: str | None = None
    value: Value | None = None
    revision: int = 0
    winner: bool = False
    problem: str = ""


class Unusable(msgspec.Struct, frozen=True):
    """What stands in a file and can be no value: why, and what would be right."""

    reason: str


class Field(msgspec.Struct, frozen=True):
    """A name in a file, what stands behind it, and on which line, None where that is not known."""

    name: str
    content: Union[Value, Unusable, tuple["Field", ...]]  # noqa: UP007  # a name in quotes has no `|`
    line: int | None = None


class Problem(msgspec.Struct, frozen=True):
    """Something that is wrong with a file: on which line (None: not known), at which name, and what would be right."""

    line: int | None
    place: str
    reason: str

    def __str__(self) -> str:
        line = None if self.line is None else f"line {self.line}"
        return ": ".join(part for part in (line, self.place, self.reason) if part)


class Difference(msgspec.Struct, frozen=True):
    """An item that is not as wanted at one level. `before` is None where it comes, `after` where it goes."""

    level: ConfigLevel
    item: str
    before: Stored | None
    after: Value | None

    def change(self, node: str | None) -> ConfigChange:
        """Return the change that makes it so, of this node at a level of nodes, if `before` still stands."""
        readable = self.before is None or self.before.value is not None  # else there is no text to expect
        expect = None if self.before is None else self.before.raw
        at = ConfigKey(self.level, self.item, node if self.level in NODE_LEVELS else None)
        return ConfigChange(at, self.after, expect if readable else msgspec.UNSET)


def explain(stored: Iterable[Stored], cluster: str, node: str | None, item: str) -> list[Stored]:
    """Return what each of the four levels says about an item, the highest first."""
    found = {s.level: s for s in stored if s.item == item}
    keys = {level: config_key(level, cluster, node, item).decode() for level in config_prefixes(cluster, node)}
    return [found.get(level, Stored(level, keys.get(level), item)) for level in ConfigLevel]


def read_stored(prefixes: Mapping[ConfigLevel, bytes], listing: Mapping[bytes, Iterable[Record]]) -> list[Stored]:
    """Return what stands under the prefix of each level, by level and key."""
    levels: dict[ConfigLevel, dict[str, ConfigEntry]] = {}
    found: list[Stored] = []
    for level, prefix in prefixes.items():
        readable = levels[level] = {}
        for record in listing[prefix]:
            entries, skipped = read_entries(prefix, [record])
            item, entry = next(iter(entries.items()), (None, None))
            if item is not None and entry is not None:
                readable[item] = entry
            found.append(
                Stored(
                    level,
                    record.key.decode(errors="backslashreplace"),
                    item,
                    (record.value or b"").decode(errors="backslashreplace"),
                    entry.value if entry is not None else None,
                    record.mod_revision,
                    problem=skipped[0].reason if skipped else "",
                )
            )
    return [msgspec.structs.replace(s, winner=_decides(levels, s)) for s in found]


def _decides(levels: Mapping[ConfigLevel, Mapping[str, ConfigEntry]], stored: Stored) -> bool:
    return stored.value is not None and deciding_level(levels, stored.item or "") == stored.level


def read_wanted(fields: Iterable[Field]) -> tuple[dict[ConfigLevel, dict[str, Value]], list[Problem]]:
    """Return what a file wants, and everything that is wrong with it."""
    levels: dict[ConfigLevel, dict[str, Value]] = {}
    problems: list[Problem] = []
    for section in fields:
        level = LEVEL_NAMES.get(section.name)
        if level is None:
            rule = f"must be one of {', '.join(LEVEL_NAMES)}, with items under it"
            problems.append(Problem(section.line, "", str(ValidationError("level", section.name, rule))))
        elif level in levels:
            problems.append(Problem(section.line, section.name, "stands twice; put all its items into one"))
        else:
            levels[level], found = _read_section(section)
            problems += found
    return levels, problems


def _read_section(section: Field) -> tuple[dict[str, Value], list[Problem]]:
    if not isinstance(section.content, tuple):
        return {}, [Problem(section.line, section.name, "must hold items and their values, or be {} for none")]
    items: dict[str, Value] = {}
    problems: list[Problem] = []
    lines: dict[str, int | None] = {}
    for item, content, line in _flat(section.content):
        reason = _twice(lines[item]) if item in lines else _wrong(item, content)
        lines.setdefault(item, line)
        if reason or isinstance(content, Unusable):
            problems.append(Problem(line, f"{section.name}: {item}", reason))
        else:
            items[item] = content
    return items, problems


def _flat(fields: tuple[Field, ...]) -> Iterator[tuple[str, Value | Unusable, int | None]]:
    for field in fields:
        if isinstance(field.content, tuple):
            yield from ((f"{field.name}.{item}", content, line) for item, content, line in _flat(field.content))
        else:
            yield field.name, field.content, field.line


def _twice(first: int | None) -> str:
    return "stands twice" if first is None else f"stands twice, first on line {first}"


def _wrong(item: str, content: Value | Unusable) -> str:
    """Return why this item, or this value, cannot be; empty where it can."""
    if isinstance(content, Unusable):
        return content.reason
    try:
        check_name("item", item)
        format_value(content)
    except ValidationError as error:
        return str(error)
    return ""


def differences(stored: Iterable[Stored], wanted: Wanted, *, prune: bool = False) -> list[Difference]:
    """Return what is not as wanted, by level and item.

    With `prune` also the items that stand at a level which is spoken of, and are not wanted there. One that cannot be
    read does not go: a file made from etcd would not have it either.
    """
    standing = {(s.level, s.item): s for s in stored if s.item is not None}
    found = [
        Difference(level, item, before, value)
        for level, items in wanted.items()
        for item, value in items.items()
        if (before := standing.get((level, item))) is None or not same_value(before.value, value)
    ]
    if prune:
        found += [
            Difference(level, item, before, None)
            for (level, item), before in standing.items()
            if before.value is not None and item not in wanted.get(level, {item})
        ]
    return sorted(found, key=lambda difference: (difference.level, difference.item))
