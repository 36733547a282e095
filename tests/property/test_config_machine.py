"""The four levels of configuration against a model that looks every key up, each time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ergo_registrar.core.config import ConfigMirror
from ergo_registrar.core.keys import ConfigLevel, config_key, config_prefix, config_prefixes
from ergo_registrar.core.records import Record, Step
from ergo_registrar.core.values import parse_value
from ergo_registrar.events import ConfigUpdate, Value
from tests.property.folding import State, fold_all
from tests.property.keyspace import Keyspace

CLUSTER = "c"
NODE = "n1@h"
ITEMS = ("port", "name")
Transaction = dict[bytes, bytes | None]

levels = st.sampled_from(ConfigLevel)
item_keys = st.builds(config_key, levels, st.just(CLUSTER), st.just(NODE), st.sampled_from(ITEMS))
foreign_keys = st.builds(
    lambda level, rest: config_prefix(level, CLUSTER, NODE) + rest, levels, st.sampled_from([b"", b"a/b", b"\xff"])
)
texts = [b"int:1", b"float:1", b"bool:1", b"1", b"", b"float:nan", b"float:+NaN", b"float:0", b"float:-0", b"\xff"]
values = st.none() | st.sampled_from(texts)
transactions = st.dictionaries(item_keys, values, max_size=4) | st.dictionaries(foreign_keys, values, max_size=1)


def told_apart(value: Value | None) -> str:
    """1, 1.0, True and "1" look different, as do the zeros; any NaN looks like any other."""
    return repr(value)


class ConfigMachine(RuleBasedStateMachine):
    """Values are written and deleted at all levels; this process loses its watch, and changes who it is."""

    @initialize(node=st.sampled_from([NODE, None]))
    def begin(self, node: str | None) -> None:
        self.etcd = Keyspace()
        self.node = node
        self.mirror = ConfigMirror(CLUSTER, node)
        self.told = State()

    def listing(self) -> dict[ConfigLevel, list[Record]]:
        return {level: self.etcd.listing(prefix) for level, prefix in config_prefixes(CLUSTER, self.node).items()}

    def take(self, step: Step) -> None:
        for event in step.events:
            assert isinstance(event, ConfigUpdate)
            assert told_apart(self.told.config.get(event.item)) == told_apart(event.previous)
            decides = next((source.level for source in self.mirror.explain(event.item) if source.winner), None)
            assert event.level == decides
        self.told = fold_all(self.told, step.events)

    @rule(transaction=transactions)
    def commit(self, transaction: Transaction) -> None:
        records = self.etcd.commit(transaction)
        for level, prefix in config_prefixes(CLUSTER, self.node).items():
            of_level = [record for record in records if record.key.startswith(prefix)]
            if of_level:
                self.take(self.mirror.batch(level, of_level, self.etcd.revision))

    @rule(missed=st.lists(transactions, max_size=3))
    def resync(self, missed: list[Transaction]) -> None:
        for transaction in missed:
            self.etcd.commit(transaction)
        self.take(self.mirror.snapshot(self.listing(), self.etcd.revision))

    @rule(node=st.sampled_from([NODE, None]))
    def becomes(self, node: str | None) -> None:
        known = self.mirror.effective()
        self.node = node
        self.mirror = ConfigMirror(CLUSTER, node)
        self.take(self.mirror.snapshot(self.listing(), self.etcd.revision, known))

    def stands(self, level: ConfigLevel, item: str) -> Record | None:
        """Return what stands in etcd for an item at a level, if it can be read."""
        if self.node is None and level <= ConfigLevel.CLUSTER_NODE:
            return None
        record = self.etcd.records.get(config_key(level, CLUSTER, NODE, item))
        return record if record is not None and record.value != b"\xff" else None

    def decides(self, item: str) -> ConfigLevel | None:
        return min((level for level in ConfigLevel if self.stands(level, item)), default=None)

    @invariant()
    def all_agree(self) -> None:
        effective = self.mirror.effective()
        assert effective.keys() <= set(ITEMS)
        for item in ITEMS:
            decides = self.decides(item)
            for level, source in zip(ConfigLevel, self.mirror.explain(item), strict=True):
                record = self.stands(level, item)
                raw = None if record is None or record.value is None else record.value.decode()
                assert (source.level, source.raw, source.winner) == (level, raw, level == decides)
                assert told_apart(source.value) == told_apart(None if raw is None else parse_value(raw))
                assert source.revision == (0 if record is None else record.mod_revision)
                if source.winner:
                    assert (
                        told_apart(source.value) == told_apart(effective[item]) == told_apart(self.mirror.value(item))
                    )
            assert (item in effective) == (decides is not None)
        assert repr(sorted(self.told.config.items())) == repr(sorted(effective.items()))
        assert repr(fold_all(State(), self.mirror.state_events()).config) == repr(dict(sorted(effective.items())))


TestConfig = ConfigMachine.TestCase
