"""What someone wants the configuration to be, against what it is."""

import math

import msgspec
import pytest

from ergo_registrar.core.change import ConfigChange
from ergo_registrar.core.config_diff import (
    LEVEL_NAMES,
    Difference,
    Field,
    Problem,
    Stored,
    Unusable,
    differences,
    explain,
    read_stored,
    read_wanted,
)
from ergo_registrar.core.keys import ConfigKey, ConfigLevel, config_key, config_prefixes
from ergo_registrar.core.records import Record
from ergo_registrar.events import Value

CROSS_CLUSTER_NODE, CLUSTER_NODE, CLUSTER, GLOBAL = ConfigLevel
PREFIXES = config_prefixes("c", "n")


def stored(*texts: tuple[ConfigLevel, str, str | bytes]) -> list[Stored]:
    """What stands there after these were put, one revision each, from 2."""
    listing: dict[bytes, list[Record]] = {prefix: [] for prefix in PREFIXES.values()}
    for revision, (level, item, text) in enumerate(texts, 2):
        value = text if isinstance(text, bytes) else text.encode()
        listing[PREFIXES[level]].append(Record(PREFIXES[level] + item.encode(), value, revision, revision))
    return read_stored(PREFIXES, listing)


class TestWhatStands:
    def test_the_highest_level_that_can_be_read_decides(self) -> None:
        found = stored((CLUSTER_NODE, "port", b"\xff"), (CLUSTER, "port", "int:3"), (GLOBAL, "port", "int:4"))
        assert [(s.level, s.raw, s.value, s.revision, s.winner) for s in found] == [
            (CLUSTER_NODE, "\\xff", None, 2, False),
            (CLUSTER, "int:3", 3, 3, True),
            (GLOBAL, "int:4", 4, 4, False),
        ]
        assert [bool(s.problem) for s in found] == [True, False, False]

    def test_a_key_that_names_no_item_is_there_too(self) -> None:
        (found,) = stored((GLOBAL, "a/b", "1"))
        assert (found.item, found.key, found.value, found.winner) == (
            None,
            "services/ergo/config/global/a/b",
            None,
            False,
        )
        assert "should name one item" in found.problem

    def test_all_four_levels_are_explained(self) -> None:
        levels = explain(stored((CLUSTER, "port", "int:3"), (CLUSTER, "other", "x")), "c", "n", "port")
        assert [(s.level, s.key, s.raw, s.winner) for s in levels] == [
            (
                level,
                config_key(level, "c", "n", "port").decode(),
                "int:3" if level == CLUSTER else None,
                level == CLUSTER,
            )
            for level in ConfigLevel
        ]

    def test_without_a_node_its_levels_have_no_key(self) -> None:
        assert [s.key is None for s in explain([], "c", None, "port")] == [True, True, False, False]


class TestWhatIsWanted:
    def test_nested_names_are_joined_with_dots(self) -> None:
        fields = [
            Field("cluster", (Field("a", (Field("b", 1), Field("c", (Field("d", "x"),)))), Field("e.f", True))),
            Field("global", ()),
        ]
        assert read_wanted(fields) == ({CLUSTER: {"a.b": 1, "a.c.d": "x", "e.f": True}, GLOBAL: {}}, [])

    def test_every_problem_is_told_at_once(self) -> None:
        long = "x" * 256
        fields = [
            Field(
                "cluster",
                (
                    Field("a", Unusable("no good"), 2),
                    Field("b", 1, 3),
                    Field("b", 2, 4),
                    Field("c", (Field("d", 2**63, 6), Field("e", "int:5", 7))),
                    Field("c.d", 1, 8),
                    Field(long, 1, 9),
                    Field("x/y", 1),
                ),
                1,
            ),
            Field("node", (), 10),
            Field("cluster", (), 11),
            Field("global", 5, 12),
        ]
        wanted, problems = read_wanted(fields)
        assert wanted == {CLUSTER: {"b": 1}, GLOBAL: {}}
        assert [(p.line, p.place) for p in problems] == [
            (2, "cluster: a"),
            (4, "cluster: b"),
            (6, "cluster: c.d"),
            (7, "cluster: c.e"),
            (8, "cluster: c.d"),
            (9, f"cluster: {long}"),
            (None, "cluster: x/y"),
            (10, ""),
            (11, "cluster"),
            (12, "global"),
        ]
        for problem, words in zip(
            problems,
            [
                *("no good", "first on line 3", "2**63 - 1", "does not read as 5", "first on line 6", "255 bytes"),
                *("without '/'", ", ".join(LEVEL_NAMES), "into one", "must hold items"),
            ],
            strict=True,
        ):
            assert words in problem.reason

    def test_twice_without_lines(self) -> None:
        _, problems = read_wanted([Field("global", (Field("a", 1), Field("a", 1)))])
        assert problems == [Problem(None, "global: a", "stands twice")]

    @pytest.mark.parametrize(
        ("problem", "text"),
        [
            (Problem(3, "global: a", "bad"), "line 3: global: a: bad"),
            (Problem(None, "", "bad"), "bad"),
        ],
    )
    def test_a_problem_says_where(self, problem: Problem, text: str) -> None:
        assert str(problem) == text


class TestTheDifference:
    def test_what_is_new_what_is_other_and_what_is_the_same(self) -> None:
        now = stored((CLUSTER, "same", "int:007"), (CLUSTER, "other", "int:1"), (CLUSTER, "kept", "x"))
        wanted: dict[ConfigLevel, dict[str, Value]] = {CLUSTER: {"other": 2, "same": 7}, GLOBAL: {"new": "x"}}
        found = differences(now, wanted)
        assert [(d.level, d.item, d.before and d.before.raw, d.after) for d in found] == [
            (CLUSTER, "other", "int:1", 2),
            (GLOBAL, "new", None, "x"),
        ]

    @pytest.mark.parametrize(("text", "value"), [("1", 1), ("int:1", True), ("int:1", 1.0), ("float:0", -0.0)])
    def test_another_type_or_sign_is_a_difference(self, text: str, value: Value) -> None:
        assert len(differences(stored((GLOBAL, "a", text)), {GLOBAL: {"a": value}})) == 1

    def test_nan_is_nan(self) -> None:
        assert differences(stored((GLOBAL, "a", "float:NaN")), {GLOBAL: {"a": math.nan}}) == []

    def test_prune_takes_away_what_the_file_does_not_have_at_its_levels(self) -> None:
        now = stored((CLUSTER, "a", "1"), (CLUSTER, "b", "1"), (CLUSTER, "broken", b"\xff"), (GLOBAL, "a", "1"))
        found = differences(now, {CLUSTER: {"a": "1"}}, prune=True)
        assert [(d.level, d.item, d.after) for d in found] == [(CLUSTER, "b", None)]
        assert differences(stored((GLOBAL, "a/b", "1")), {GLOBAL: {}}, prune=True) == []

    def test_a_change_expects_what_was_read(self) -> None:
        now = stored((CLUSTER_NODE, "a", "int:1"), (CLUSTER, "a", b"\xff"))
        of_node, of_cluster = differences(now, {CLUSTER_NODE: {"a": 2}, CLUSTER: {"a": 2}})
        assert of_node.change("n") == ConfigChange(ConfigKey(CLUSTER_NODE, "a", "n"), 2, "int:1")
        assert of_cluster.change("n") == ConfigChange(ConfigKey(CLUSTER, "a"), 2, msgspec.UNSET)
        assert Difference(GLOBAL, "b", None, 3).change("n") == ConfigChange(ConfigKey(GLOBAL, "b"), 3, None)
