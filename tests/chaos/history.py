"""All that ever happened in etcd, one revision after the other, and the rules that no revision may break. Pure.

Each process signs what it publishes with its number, its *life*. So every key tells who put it there, and every lease
whose it is: the life's that first put something under it. What stands under a lease of the checker's, or under none, is
foreign.
"""

import dataclasses
from collections.abc import Iterable

from tests.chaos.etcd import Change
from tests.chaos.wire import node_key, route_names, signature


@dataclasses.dataclass(frozen=True)
class Violation:
    """A broken promise: its number in section 7 of the design, and what was seen."""

    invariant: int
    evidence: str

    def __str__(self) -> str:
        return f"invariant {self.invariant}: {self.evidence}"


class History:
    """What etcd holds by the changes that were heard, whose it is, and what was wrong on the way."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Change] = {}
        self.changes: int = 0
        self.lives: dict[int, str] = {}  # every process that was ever started, by the name of its node
        self.foreign: set[int] = set()  # the leases of the checker
        self.let_go: set[bytes] = set()  # foreign keys that the checker itself deletes, or whose lease it lets end
        self.held_since: dict[int, float] = {}  # life -> since when the node's key is its own, without a gap
        self.lost_at: dict[int, float] = {}  # life -> when the last key of it went so far
        self.freed: dict[int, float] = {}  # life -> when the name became free that it then took
        self.claims: int = 0
        self.violations: list[Violation] = []
        self._owners: dict[int, int] = {}  # lease -> life
        self._free_since: dict[str, float] = {}  # node -> when its key was deleted last
        self._of_revision: list[tuple[int, Change]] = []  # applications put by a life in the revision under way
        self._revision = 0

    def take(self, change: Change) -> None:
        """Add one change. Those of one revision come one after the other."""
        if change.revision != self._revision:
            self.settle()
            self._revision = change.revision
        self.changes += 1
        before = self.keys.pop(change.key, None)
        if change.value is not None:
            self.keys[change.key] = change
        match route_names(change.key):
            case ["nodes", name]:
                self._take_node(name, change, before)
            case ["applications", _, name]:
                self._take_application(name, change, before)
        if before is not None and (life := self.owner(before)) is not None:
            self.lost_at[life] = change.at

    def settle(self) -> None:
        """Judge the last revision as a whole: an application stands under the lease that the node's name hangs on."""
        for life, change in self._of_revision:
            holder = self.keys.get(node_key(self.lives[life]))
            if holder is None or holder.lease != change.lease:
                what = f"put {change.key!r} at revision {change.revision} while the name was held by {holder}"
                self._broken(3, f"life {life} {what}")
        self._of_revision.clear()

    def owner(self, key: Change) -> int | None:
        """Return the life that holds a key, None for a foreign one."""
        return self._owners.get(key.lease)

    def keys_of(self, life: int) -> list[bytes]:
        """Return the keys that hang on a lease of this life."""
        return [key for key, change in self.keys.items() if self.owner(change) == life]

    def leases_of(self, lives: Iterable[int]) -> set[int]:
        """Return the leases of these lives that were ever seen."""
        wanted = set(lives)
        return {lease for lease, life in self._owners.items() if life in wanted}

    def _take_node(self, name: str, change: Change, before: Change | None) -> None:
        author = self._author(change)
        if author is not None and before is not None and self.owner(before) != author:
            whose = self.owner(before)
            whose_key = "a foreign key" if whose is None else f"the key of life {whose}"
            self._broken(5 if whose else 3, f"life {author} overwrote {whose_key}: {before} with {change}")
        if author is None:
            self._refuse_lost(change, before)
        holder = self.owner(change) if change.value is not None else None
        if before is not None and (previous := self.owner(before)) is not None and previous != holder:
            self.held_since.pop(previous, None)
        if holder is not None and holder not in self.held_since:
            self.held_since[holder] = change.at
            self.freed[holder] = self._free_since.get(name, 0.0)
            self.claims += 1
        if change.value is None:
            self._free_since[name] = change.at

    def _take_application(self, name: str, change: Change, before: Change | None) -> None:
        author = self._author(change)
        if author is not None:
            self._of_revision.append((author, change))
        elif self.owner(self.keys.get(node_key(name), change)) is None:  # its owner may mend what stands under it
            self._refuse_lost(change, before)

    def _refuse_lost(self, change: Change, before: Change | None) -> None:
        """A foreign key goes only where the checker lets it go."""
        was_foreign = before is not None and self.owner(before) is None
        if change.value is None and was_foreign and change.key not in self.let_go:
            self._broken(3, f"a foreign key was deleted: {before} at revision {change.revision}")

    def _author(self, change: Change) -> int | None:
        """Return the life that put this, None where nobody did or it is foreign."""
        if change.value is None or change.lease == 0 or change.lease in self.foreign:
            return None
        life = signature(change.value)
        if life is None or self.lives.get(life) != route_names(change.key)[-1]:
            return None
        if self._owners.setdefault(change.lease, life) != life:
            self._broken(5, f"life {life} put {change.key!r} under a lease of life {self._owners[change.lease]}")
        return life

    def _broken(self, invariant: int, evidence: str) -> None:
        self.violations.append(Violation(invariant, evidence))
