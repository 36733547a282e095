"""What etcd does with keys and revisions, as a dict."""

from collections.abc import Mapping

from ergo_registrar.core.records import Record


class Keyspace:
    """Every commit is one transaction: one new revision, unless nothing changes."""

    def __init__(self) -> None:
        self.revision = 1
        self.records: dict[bytes, Record] = {}

    def commit(self, changes: Mapping[bytes, bytes | None]) -> list[Record]:
        """Put, or with None delete, and return what a watch would show, in the order given."""
        happening = [key for key, value in changes.items() if value is not None or key in self.records]
        self.revision += bool(happening)
        return [self._change(key, changes[key]) for key in happening]

    def listing(self, prefix: bytes) -> list[Record]:
        """Return what a range read at this revision would show."""
        return [record for key, record in sorted(self.records.items()) if key.startswith(prefix)]

    def _change(self, key: bytes, value: bytes | None) -> Record:
        before = self.records.pop(key, None)
        if value is None:
            return Record(key, None, 0, self.revision)
        created = self.revision if before is None else before.create_revision
        self.records[key] = Record(key, value, created, self.revision)
        return self.records[key]
