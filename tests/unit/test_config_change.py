"""A change of the configuration before it is sent: what it may be, and what it takes an expectation to be."""

import math
import pickle
from typing import Any

import msgspec
import pytest

from ergo_registrar import ConfigLevel, ConflictError, ValidationError
from ergo_registrar.core.change import ConfigChange, Expectation, Write
from ergo_registrar.core.keys import (
    ConfigKey,
)

KEY = "services/ergo/cluster/c/config/*/i"


def write(value: Any = 1, expect: Any = msgspec.UNSET, level: Any = ConfigLevel.CLUSTER, node: Any = None) -> Write:
    return Write.of("c", ConfigChange(ConfigKey(level, "i", node), value, expect))


@pytest.mark.parametrize(
    ("value", "sent"),
    [(5, b"int:5"), (0.5, b"float:0.5"), (True, b"bool:true"), ("x", b"x"), ("", b""), (None, None)],
)
def test_a_value_is_sent_as_it_is_read(value: Any, sent: bytes | None) -> None:
    assert write(value) == Write(KEY.encode(), sent, msgspec.UNSET)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"value": "int:5"}, "value"),
        ({"value": "x" * 1_000_001}, "value"),
        ({"value": []}, "value"),
        ({"expect": []}, "expect"),
        ({"expect": 2**63}, "expect"),
        ({"level": 0}, "level"),
        ({"level": "cluster"}, "level"),
        ({"level": None}, "level"),
        ({"level": 4, "node": "n"}, "node"),
        ({"level": 3, "node": "n"}, "node"),
        ({"level": 2}, "node"),
        ({"level": 1, "node": "*"}, "node"),
    ],
)
def test_what_breaks_a_rule_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        write(**given)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("found", "expect"),
    [
        (None, msgspec.UNSET),
        (b"x", msgspec.UNSET),
        (None, None),
        (b"", ""),
        (b"int:5", "int:5"),
        (b"int:5", 5),
        (b"int:005", 5),
        (b"float:0x1p-1", 0.5),
        (b"float:NaN", math.nan),
        (b"bool:T", True),
        ("grüße".encode(), "grüße"),
    ],
)
def test_an_expectation_is_met(found: bytes | None, expect: Expectation) -> None:
    write(expect=expect).refuse(found)


@pytest.mark.parametrize(
    ("found", "expect"),
    [
        (b"", None),
        (None, ""),
        (None, 5),
        (None, False),
        (b"int:005", "int:5"),
        (b"int:1", True),
        (b"bool:true", 1),
        (b"int:5", 5.0),
        (b"5", 5),
        (b"\xff", "x"),
        (b"\xff", "\xff"),
        (b"\xff", "\\xff"),
        (b"\xff", 5),
        (b"x", "\ud800"),
    ],
)
def test_an_expectation_is_not_met(found: bytes | None, expect: Expectation) -> None:
    with pytest.raises(ConflictError) as raised:
        write(expect=expect).refuse(found)
    assert raised.value.key == KEY
    assert raised.value.expected == expect
    assert (raised.value.found is None) == (found is None)


def test_a_conflict_says_what_stands_there_and_survives_a_pickle() -> None:
    with pytest.raises(ConflictError) as raised:
        write(expect=None).refuse(b"int:6")
    assert (
        str(raised.value) == f"'{KEY}': 'int:6' stands there, where nothing was expected; look again, and decide anew"
    )
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (copy.key, copy.expected, copy.found, str(copy)) == (KEY, None, "int:6", str(raised.value))
