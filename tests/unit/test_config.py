"""Configuration, as one who writes it and one who reads it see it."""

import math

import pytest

from ergo_registrar.core.config import ConfigMirror, ConfigSource, same_value
from ergo_registrar.core.keys import ConfigLevel, config_key
from ergo_registrar.core.records import Record
from ergo_registrar.errors import UnknownItemError, ValidationError
from ergo_registrar.events import ConfigUpdate

CROSS_CLUSTER_NODE, CLUSTER_NODE, CLUSTER, GLOBAL = ConfigLevel


def written(level: ConfigLevel, item: str, text: str | bytes | None, revision: int = 2) -> Record:
    value = text.encode() if isinstance(text, str) else text
    return Record(config_key(level, "c", "a@h", item), value, revision, revision)


@pytest.fixture
def config() -> ConfigMirror:
    """The port is set for all, and otherwise for this node."""
    config = ConfigMirror("c", "a@h")
    config.snapshot(
        {
            GLOBAL: [written(GLOBAL, "port", "int:1"), written(GLOBAL, "name", "x")],
            CLUSTER_NODE: [written(CLUSTER_NODE, "port", "int:2")],
        },
        2,
    )
    return config


def test_the_highest_level_decides(config: ConfigMirror) -> None:
    assert config.value("port") == 2
    assert config.effective() == {"port": 2, "name": "x"}
    assert config.effective(["name", "unknown"]) == {"name": "x"}
    assert config.revision == 2


def test_an_override_that_goes_uncovers_the_next_level(config: ConfigMirror) -> None:
    step = config.batch(CLUSTER_NODE, [written(CLUSTER_NODE, "port", None)], 3)
    assert step.events == [ConfigUpdate(revision=3, item="port", value=1, previous=2, level=GLOBAL)]


def test_a_change_that_a_higher_level_hides_says_nothing(config: ConfigMirror) -> None:
    assert config.batch(GLOBAL, [written(GLOBAL, "port", "int:7")], 3).events == []
    assert config.batch(CROSS_CLUSTER_NODE, [written(CROSS_CLUSTER_NODE, "port", "int:2")], 4).events == []
    assert config.value("port") == 2


def test_an_item_comes_and_goes(config: ConfigMirror) -> None:
    new = config.batch(CLUSTER, [written(CLUSTER, "debug", "bool:true")], 3)
    assert new.events == [ConfigUpdate(revision=3, item="debug", value=True, level=CLUSTER)]
    gone = config.batch(CLUSTER, [written(CLUSTER, "debug", None)], 4)
    assert gone.events == [ConfigUpdate(revision=4, item="debug", value=None, previous=True)]
    assert config.batch(CLUSTER, [written(CLUSTER, "debug", None)], 5).events == []


@pytest.mark.parametrize(
    ("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), (1, "1"), (0, None), (math.nan, math.inf)]
)
def test_values_of_another_type_or_sign_are_not_the_same(one: float, other: float | str | None) -> None:
    assert not same_value(one, other)


def test_any_nan_is_the_same() -> None:
    assert same_value(math.nan, -float("nan"))
    assert same_value(None, None)


def test_a_move_to_another_level_between_two_listings_says_nothing(config: ConfigMirror) -> None:
    listing = {
        CLUSTER: [written(CLUSTER, "port", "int:2", 5)],
        GLOBAL: [written(GLOBAL, "name", "y", 6), written(GLOBAL, "port", "int:1")],
    }
    step = config.snapshot(listing, 7)
    assert step.events == [ConfigUpdate(revision=7, item="name", value="y", previous="x", level=GLOBAL)]


def test_what_cannot_be_read_is_skipped_and_the_next_level_decides(config: ConfigMirror) -> None:
    strange = Record(config_key(CLUSTER_NODE, "c", "a@h", "port") + b"/x", b"", 3, 3)
    step = config.batch(CLUSTER_NODE, [written(CLUSTER_NODE, "port", b"\xff"), strange], 3)
    assert [(skipped.key, "UTF-8" in skipped.reason) for skipped in step.skipped] == [
        (config_key(CLUSTER_NODE, "c", "a@h", "port"), True),
        (strange.key, False),
    ]
    assert config.value("port") == 1
    assert config.batch(CLUSTER_NODE, [Record(strange.key, None)], 4).skipped == []


def test_explain_shows_every_level_and_why(config: ConfigMirror) -> None:
    assert config.explain("port") == (
        ConfigSource(CROSS_CLUSTER_NODE, "services/ergo/config/c/a@h/port"),
        ConfigSource(CLUSTER_NODE, "services/ergo/cluster/c/config/a@h/port", "int:2", 2, 2, winner=True),
        ConfigSource(CLUSTER, "services/ergo/cluster/c/config/*/port"),
        ConfigSource(GLOBAL, "services/ergo/config/global/port", "int:1", 1, 2),
    )


def test_an_observer_has_no_levels_of_a_node() -> None:
    observer = ConfigMirror("c")
    assert [source.key for source in observer.explain("port")] == [
        None,
        None,
        "services/ergo/cluster/c/config/*/port",
        "services/ergo/config/global/port",
    ]
    with pytest.raises(UnknownItemError, match="'port' for an observer in cluster 'c'"):
        observer.value("port")


def test_an_unknown_item_says_where_it_would_be(config: ConfigMirror) -> None:
    with pytest.raises(UnknownItemError) as caught:
        config.value("nothing")
    assert str(caught.value) == (
        "no configuration item 'nothing' for node 'a@h' in cluster 'c'; it would be at one of "
        "services/ergo/config/c/a@h/nothing, services/ergo/cluster/c/config/a@h/nothing, "
        "services/ergo/cluster/c/config/*/nothing, services/ergo/config/global/nothing"
    )


def test_what_cannot_be_an_item_is_refused(config: ConfigMirror) -> None:
    with pytest.raises(ValidationError):
        config.value("a/b")


def test_an_observer_that_becomes_a_node_tells_only_what_differs_for_it() -> None:
    everywhere = [written(GLOBAL, "port", "int:1"), written(GLOBAL, "name", "x")]
    observer = ConfigMirror("c")
    observer.snapshot({GLOBAL: everywhere}, 2)
    node = ConfigMirror("c", "a@h")
    own = [written(CLUSTER_NODE, "port", "int:2")]
    step = node.snapshot({GLOBAL: everywhere, CLUSTER_NODE: own}, 3, previous=observer.effective())
    assert step.events == [ConfigUpdate(revision=3, item="port", value=2, previous=1, level=CLUSTER_NODE)]


def test_replay_tells_the_whole_state(config: ConfigMirror) -> None:
    assert config.state_events() == [
        ConfigUpdate(revision=2, item="name", value="x", level=GLOBAL),
        ConfigUpdate(revision=2, item="port", value=2, level=CLUSTER_NODE),
    ]
