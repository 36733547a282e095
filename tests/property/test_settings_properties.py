"""Typed settings: what an object holds, written as items, makes the object again; all three kinds of class agree."""

import dataclasses
import enum
from typing import Any, Literal

import msgspec
import pydantic
from hypothesis import given
from hypothesis import strategies as st

from ergo_registrar import SettingsError
from ergo_registrar.core.config import ConfigMirror
from ergo_registrar.core.keys import ConfigLevel
from ergo_registrar.core.records import Record
from ergo_registrar.core.settings import Plan
from ergo_registrar.core.values import format_value, parse_value

Shape = dict[str, Any]
"""The names of fields, and what each holds: a type, or a shape."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = ""


class Number(enum.IntEnum):
    ONE = 1
    MINUS = -1


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda text: parse_value(text) == text)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(),
    bool: st.booleans(),
    str: texts,
    Literal["a", "b"]: st.sampled_from("ab"),
    Literal[1, 2]: st.sampled_from([1, 2]),
    Colour: st.sampled_from(Colour),
    Number: st.sampled_from(Number),
}


COMMON = tuple(kind for kind in VALUES if kind not in (Literal[1, 2], Number))  # for which pydantic takes 1.0, too


def shapes(leaves: tuple[Any, ...] = tuple(VALUES)) -> st.SearchStrategy[Shape]:
    leaf: st.SearchStrategy[Any] = st.sampled_from(leaves)
    names = st.sampled_from("abcdef")
    nested = st.recursive(leaf, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=6)
    return st.dictionaries(names, nested, max_size=4).map(ordered)


def ordered(shape: Any) -> Any:
    return {name: ordered(shape[name]) for name in sorted(shape)} if isinstance(shape, dict) else shape


def values_of(shape: Any) -> st.SearchStrategy[Any]:
    if isinstance(shape, dict):
        return st.fixed_dictionaries({name: values_of(inner) for name, inner in shape.items()}).map(ordered)
    return VALUES[shape]


def as_struct(shape: Any) -> Any:
    if not isinstance(shape, dict):
        return shape
    return msgspec.defstruct("Settings", [(name, as_struct(inner)) for name, inner in shape.items()])


def as_dataclass(shape: Any) -> Any:
    if not isinstance(shape, dict):
        return shape
    return dataclasses.make_dataclass("Settings", [(name, as_dataclass(inner)) for name, inner in shape.items()])


def as_model(shape: Any) -> Any:
    if not isinstance(shape, dict):
        return shape
    fields: dict[str, Any] = {name: (as_model(inner), ...) for name, inner in shape.items()}
    return pydantic.create_model("Settings", **fields)


KINDS = (as_struct, as_dataclass, as_model)


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value.value if isinstance(value, enum.Enum) else value
    return flat


def plain(shape: Shape, made: Any) -> dict[str, Any]:
    """Return what an object holds as dicts."""
    return {
        name: plain(inner, getattr(made, name)) if isinstance(inner, dict) else getattr(made, name)
        for name, inner in shape.items()
    }


def read(model: type, items: dict[str, str]) -> Any:
    mirror = ConfigMirror("c")
    records = [Record(f"services/ergo/config/global/{item}".encode(), text.encode()) for item, text in items.items()]
    mirror.snapshot({ConfigLevel.GLOBAL: records}, 1)
    plan: Plan[Any] = Plan(model)
    return plan.make(plan.find(mirror.source))


@given(st.data())
def test_what_is_written_as_items_is_read_back(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    values = data.draw(values_of(shape))
    items = {item: format_value(value) for item, value in flattened(values).items()}
    for make in KINDS:
        assert repr(plain(shape, read(make(shape), items))) == repr(values)


TEXTS = ["", "a", "5", "int:5", "int:1", "float:1", "float:0.5", "float:inf", "bool:1", "true", "int:x", "red"]


@given(st.data())
def test_all_kinds_find_the_same_problems_and_raise_nothing_else(data: st.DataObject) -> None:
    shape = data.draw(shapes(COMMON))
    names = sorted({*flattened(shape), *("a", "a.b", "c", "zz")})
    items = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(TEXTS) | texts))
    found: list[Any] = []
    for make in KINDS:
        try:
            found.append(repr(plain(shape, read(make(shape), items))))
        except SettingsError as error:
            found.append({(problem.item, problem.level, problem.raw) for problem in error.problems})
    assert found[0] == found[1] == found[2]
    if isinstance(found[0], set):
        assert all(item == "" or item in {*names, *_groups(shape)} for item, _, _ in found[0])


def _groups(shape: Shape, prefix: str = "") -> set[str]:
    groups = set()
    for name, inner in shape.items():
        if isinstance(inner, dict):
            groups |= {prefix + name, *_groups(inner, f"{prefix}{name}.")}
    return groups
