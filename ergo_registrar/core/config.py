"""Configuration: four levels of etcd keys make one effective value per item. The highest level that has it decides.

The functions are pure; `ConfigMirror` holds the state between them. What counts is the effective value: a change that
a higher level hides says nothing. An entry that cannot be read counts as absent at its level, so the next one decides.

A subscriber's events fold over a dict of effective values: `ConfigUpdate` sets `values[item] = value`, or deletes the
item where `value` is None.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ergo_registrar.core.keys import ConfigLevel, config_key, config_prefixes, parse_config_key
from ergo_registrar.core.records import Record, Skipped, Step
from ergo_registrar.core.values import parse_value
from ergo_registrar.errors import DecodeError, UnknownItemError
from ergo_registrar.events import ConfigUpdate, Event, Value


class ConfigEntry(msgspec.Struct, frozen=True):
    """An item at one level: the text in etcd, what it stands for, and the revision that wrote it."""

    raw: str
    value: Value
    revision: int


class ConfigSource(msgspec.Struct, frozen=True):
    """What one level says about an item.

    `key` is None where the level does not exist: an observer has none of a node. `raw` and `value` are None, and
    `revision` is 0, where the level does not have the item, or has one that cannot be read. `winner`: it decides.
    """

    level: ConfigLevel
    key: str | None
    raw: str | None = None
    value: Value | None = None
    revision: int = 0
    winner: bool = False


Levels = Mapping[ConfigLevel, Mapping[str, ConfigEntry]]
"""The entries of each level by item, the highest level first."""


def deciding_level(levels: Levels, item: str) -> ConfigLevel | None:
    """Return the highest level that has an item."""
    for level, entries in levels.items():
        if item in entries:
            return level
    return None


def merge(levels: Levels) -> dict[str, Value]:
    """Return the effective value of every item."""
    merged: dict[str, Value] = {}
    for entries in reversed(list(levels.values())):
        merged.update((item, entry.value) for item, entry in entries.items())
    return merged


def same_value(one: Value | None, other: Value | None) -> bool:
    """Say whether nobody can tell two values apart: by type as well, by the sign of zero; any NaN is like any other."""
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    return type(one) is type(other) and one == other


def differences(before: Mapping[str, Value], after: Mapping[str, Value], levels: Levels, revision: int) -> list[Event]:
    """Return what to tell of a change of the effective values, by item; `levels` are those that made `after`."""
    return [
        ConfigUpdate(
            revision=revision,
            item=item,
            value=after.get(item),
            previous=before.get(item),
            level=deciding_level(levels, item),
        )
        for item in sorted(before.keys() | after.keys())
        if not same_value(before.get(item), after.get(item))
    ]


def read_entries(prefix: bytes, records: Iterable[Record]) -> tuple[dict[str, ConfigEntry | None], list[Skipped]]:
    """Return what records of one level say by item, None where it is gone or unreadable, and what was skipped."""
    entries: dict[str, ConfigEntry | None] = {}
    skipped: list[Skipped] = []
    for record in records:
        try:
            item = parse_config_key(prefix, record.key)
            entries[item] = None  # which stands when the value cannot be read
            if record.value is not None:
                entries[item] = read_entry(record)
        except DecodeError as error:
            if record.value is not None:  # a key that goes is not left out of anything
                skipped.append(Skipped(record.key, str(error)))
    return entries, skipped


def read_entry(record: Record) -> ConfigEntry:
    """Return what a record that is there says. Raises DecodeError."""
    try:
        text = (record.value or b"").decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"byte {error.start}: a configuration value should be UTF-8") from None
    return ConfigEntry(text, parse_value(text), record.mod_revision)


class ConfigMirror:
    """The configuration of one node of a cluster, or of an observer, as of the last revision that went in."""

    def __init__(self, cluster: str, node: str | None = None) -> None:
        self.revision: int = 0
        self._cluster = cluster
        self._node = node
        self._prefixes = config_prefixes(cluster, node)
        self._levels: dict[ConfigLevel, dict[str, ConfigEntry]] = {level: {} for level in self._prefixes}
        self._effective: dict[str, Value] = {}
        self._changed: dict[ConfigLevel, int] = {}  # the last revision that went in

    def snapshot(
        self,
        listing: Mapping[ConfigLevel, Iterable[Record]],
        revision: int,
        previous: Mapping[str, Value] | None = None,
    ) -> Step:
        """Take all levels as listed at `revision`, a level that is not in the listing being empty.

        The events are the differences to the effective values before; or to `previous`, those that subscribers know
        from another mirror which this one takes over from.
        """
        self.revision = revision
        skipped: list[Skipped] = []
        for level, prefix in self._prefixes.items():
            entries, skipped_here = read_entries(prefix, listing.get(level, ()))
            self._changed[level] = revision
            self._levels[level] = {item: entry for item, entry in entries.items() if entry is not None}
            skipped += skipped_here
        before = self._effective if previous is None else previous
        self._effective = merge(self._levels)
        return Step(differences(before, self._effective, self._levels, revision), skipped)

    def batch(self, level: ConfigLevel, records: Sequence[Record], revision: int) -> Step:
        """Take all changes that one revision made at one level."""
        self.revision = self._changed[level] = revision
        changed, skipped = read_entries(self._prefixes[level], records)
        before: dict[str, Value] = {}
        after: dict[str, Value] = {}
        for item, entry in changed.items():
            if item in self._effective:
                before[item] = self._effective.pop(item)
            self._levels[level].pop(item, None)
            if entry is not None:
                self._levels[level][item] = entry
            decides = deciding_level(self._levels, item)
            if decides is not None:
                after[item] = self._levels[decides][item].value
        self._effective |= after
        return Step(differences(before, after, self._levels, revision), skipped)

    def reflects(self, level: ConfigLevel, item: str, revision: int, *, gone: bool) -> bool:
        """Say whether an item that was put, or deleted, at a level and a revision is so here, or has changed since."""
        return self._changed.get(level, 0) >= revision or (gone and item not in self._levels[level])

    @property
    def values(self) -> Mapping[str, Value]:
        """The effective values, live: the same mapping from one snapshot to the next."""
        return self._effective

    def value(self, item: str) -> Value:
        """Return the effective value of an item. Raises UnknownItemError where no level has it."""
        try:
            return self._effective[item]
        except KeyError:
            keys = ", ".join(source.key for source in self.explain(item) if source.key is not None)
            who = "an observer" if self._node is None else f"node {self._node!r}"
            raise UnknownItemError(
                f"no configuration item {item!r} for {who} in cluster {self._cluster!r}; it would be at one of {keys}"
            ) from None

    def effective(self, items: Iterable[str] = ()) -> dict[str, Value]:
        """Return the effective values of those of `items` that exist, of all without `items`."""
        wanted = list(items)
        if not wanted:
            return dict(self._effective)
        return {item: self._effective[item] for item in wanted if item in self._effective}

    def size(self) -> int:
        """Return how many items have an effective value."""
        return len(self._effective)

    def source(self, item: str) -> ConfigSource | None:
        """Return what the deciding level says about an item, None where no level has it."""
        return (
            next((source for source in self.explain(item) if source.winner), None) if item in self._effective else None
        )

    def explain(self, item: str) -> tuple[ConfigSource, ...]:
        """Return what each of the four levels says about an item, the highest first.

        Raises ValidationError for what cannot be the name of an item.
        """
        decides = deciding_level(self._levels, item)
        sources = []
        for level in ConfigLevel:
            if level not in self._levels:
                sources.append(ConfigSource(level, None))
                continue
            key = config_key(level, self._cluster, self._node, item).decode()
            entry = self._levels[level].get(item)
            if entry is None:
                sources.append(ConfigSource(level, key))
            else:
                sources.append(ConfigSource(level, key, entry.raw, entry.value, entry.revision, level is decides))
        return tuple(sources)

    def state_events(self) -> list[Event]:
        """Return the effective values as the events that would lead to them."""
        return differences({}, self._effective, self._levels, self.revision)
