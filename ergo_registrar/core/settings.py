"""Typed settings: items of the configuration fill the fields of a class, and every problem is told at once.

A `Plan` is made of a msgspec Struct, a dataclass or a pydantic model, once: which item is for which field.
`database.port` is field `port` of the class of field `database`. What no item gives, the class's defaults do. A Struct
and a dataclass are made here, each value by `msgspec.convert`, strictly; a pydantic model validates itself, strictly
too. pydantic is imported nowhere: whoever hands in one of its models has it.
"""

import dataclasses
import enum
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

import msgspec

from ergo_registrar.core.config import ConfigSource
from ergo_registrar.core.keys import check_name
from ergo_registrar.core.values import parse_value
from ergo_registrar.errors import SettingsError, SettingsProblem, ValidationError

T = TypeVar("T")

Found = Mapping[str, ConfigSource]
"""What decides about each item that exists."""

_MODEL_RULE = "must be a msgspec Struct, a dataclass or a pydantic model"
_LEAF_RULE = "must have a type that one configuration value can be, such as int, str or an Enum, or a default"
_CONTAINERS = (msgspec.inspect.CollectionType, msgspec.inspect.TupleType, msgspec.inspect.DictType)


class _Field(msgspec.Struct, frozen=True):
    name: str  # the attribute
    key: str  # the last part of the item; another one than `name` where the class renames it
    item: str
    annotation: Any
    default: Callable[[], Any] | None  # None: there must be an item
    group: "_Group | None"  # what it holds, where that is a class of fields, too


class _Group(msgspec.Struct, frozen=True):
    model: type
    item: str  # what its items begin with; itself it must have no value. Empty: every item
    fields: list[_Field]

    def items(self) -> Iterator[str]:
        """Yield every item that matters, also those that must not be."""
        if self.item:
            yield self.item
        for field in self.fields:
            yield from (field.item,) if field.group is None else field.group.items()


class Plan(Generic[T]):
    """How a class is filled from items that begin with `prefix` and a dot; with all items where it is empty.

    Raises ValidationError for a class that cannot be filled.
    """

    def __init__(self, model: type[T], prefix: str = "") -> None:
        if not _is_model(model):
            raise ValidationError("settings", model, _MODEL_RULE)
        if prefix:
            check_name("prefix", prefix)
        self._root = _group(model, prefix, ())
        self._items = tuple(self._root.items())
        twice = {item for item in self._items if self._items.count(item) > 1}
        if twice:
            raise ValidationError(
                "settings", model, f"must have one field for an item, and has more for {sorted(twice)}"
            )

    def find(self, source: Callable[[str], ConfigSource | None]) -> dict[str, ConfigSource]:
        """Return what decides about each item that matters and exists."""
        return {item: found for item in self._items if (found := source(item)) is not None}

    def make(self, found: Found) -> T:
        """Return the settings. Raises SettingsError with every problem."""
        problems: list[SettingsProblem] = []
        made: T = _make(self._root, found, None, problems)
        if problems:
            raise SettingsError(self._root.model.__name__, problems)
        return made


# What a class looks like


def _is_pydantic(model: Any) -> bool:
    pydantic: Any = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(model, type) and issubclass(model, pydantic.BaseModel)


def _is_model(model: Any) -> bool:
    if not isinstance(model, type):
        return False
    return issubclass(model, msgspec.Struct) or dataclasses.is_dataclass(model) or _is_pydantic(model)


def _group(model: type, item: str, within: tuple[type, ...]) -> _Group:
    if model in within:
        raise ValidationError("settings", model, "must not contain itself")
    try:
        declared = list(_declared(model))
    except NameError as error:
        raise ValidationError("settings", model, f"must have annotations that can be read: {error}") from None
    fields = []
    for name, key, annotation, default in declared:
        own = check_name("item", f"{item}.{key}" if item else key)
        inner = _inner_model(model, name, annotation)
        group = None if inner is None else _group(inner, own, (*within, model))
        if inner is None and not _is_pydantic(model):
            _check_leaf(model, name, annotation, needed=default is None)
        fields.append(_Field(name, key, own, annotation, default, group))
    return _Group(model, item, fields)


def _declared(model: Any) -> Iterator[tuple[str, str, Any, Callable[[], Any] | None]]:
    """Yield name, key, annotation and default of each field."""
    if _is_pydantic(model):
        model.model_rebuild()  # it may name classes that came after it
        for name, field in model.model_fields.items():
            alias = field.validation_alias
            if not isinstance(alias, str | None):
                raise ValidationError(f"{model.__name__}.{name}", alias, "must have one alias, which is a str")
            default = None if field.is_required() else field.get_default
            yield name, alias or name, typing.Annotated[field.annotation, field], default
    elif issubclass(model, msgspec.Struct):
        for field in msgspec.structs.fields(model):
            yield field.name, field.encode_name, field.type, _default(field, msgspec.NODEFAULT)
    else:
        hints = typing.get_type_hints(model, include_extras=True)
        for field in dataclasses.fields(model):
            if field.init:
                yield field.name, field.name, hints[field.name], _default(field, dataclasses.MISSING)


def _default(field: Any, missing: object) -> Callable[[], Any] | None:
    if field.default is not missing:
        return lambda: field.default
    return None if field.default_factory is missing else field.default_factory


def _inner_model(model: type, name: str, annotation: Any) -> type | None:
    """Return the class of fields that an annotation stands for, None where it is of one value."""
    members = [member for member in _members(annotation) if member is not types.NoneType]
    models = [member for member in members if _is_model(member)]
    if models and len(members) > 1:
        raise ValidationError(f"{model.__name__}.{name}", annotation, "must be one class with fields, or that and None")
    return models[0] if models else None


def _members(annotation: Any) -> list[Any]:
    """Return the types of a union, of any other type itself, without what `Annotated` adds."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(annotation.__origin__)
    if origin in (typing.Union, types.UnionType):
        return [each for member in typing.get_args(annotation) for each in _members(member)]
    return [annotation]


def _check_leaf(model: type, name: str, annotation: Any, *, needed: bool) -> None:
    try:
        msgspec.json.Decoder(annotation)
        infos = [msgspec.inspect.type_info(member) for member in _members(annotation)]
    except TypeError as error:
        raise ValidationError(f"{model.__name__}.{name}", annotation, f"must have another type: {error}") from None
    if needed and all(isinstance(info, _CONTAINERS) for info in infos):
        raise ValidationError(f"{model.__name__}.{name}", annotation, _LEAF_RULE)


# What the items make of it


def _make(group: _Group, found: Found, base: Any, problems: list[SettingsProblem]) -> Any:
    """Return an object of the group's class, or None where there were problems. What no item gives, `base` does."""
    before = len(problems)
    problems += _collisions(group, found)
    if _is_pydantic(group.model):
        return _validated(group, found, problems)
    given = {}
    try:
        for field in group.fields:
            if field.group is not None and _is_wanted(field, found, base):
                inherited = getattr(base, field.name) if base is not None else field.default and field.default()
                inherited = inherited if isinstance(inherited, field.group.model) else None
                given[field.name] = _make(field.group, found, inherited, problems)
            elif field.item in found and field.group is None:
                given[field.name] = _converted(field, found[field.item], problems)
            elif base is not None:
                given[field.name] = getattr(base, field.name)
            elif field.default is None:
                problems.append(_missing(field))
        return None if len(problems) > before else group.model(**given)
    except Exception as error:  # noqa: BLE001  # the class's own defaults and checks raise what they like
        problems.append(_refused(group, error))
        return None


def _is_wanted(field: _Field, found: Found, base: Any) -> bool:
    """Say whether a group has to be made: there are items for it, or nothing else to put there."""
    assert field.group is not None  # the caller looked
    return (base is None and field.default is None) or any(item in found for item in field.group.items())


def _collisions(group: _Group, found: Found) -> Iterator[SettingsProblem]:
    if group.item and group.item in found:
        below = ", ".join(field.item for field in group.fields)
        yield _wrong(group.item, f"no value, but items below it ({below})", found[group.item])


def _converted(field: _Field, source: ConfigSource, problems: list[SettingsProblem]) -> Any:
    try:
        return msgspec.convert(source.value, field.annotation, strict=True)
    except msgspec.ValidationError as error:
        reason = _hint(field.annotation, source) or _reason(str(error))
        problems.append(_wrong(field.item, _expected(field.annotation), source, reason))
        return None


def _validated(group: _Group, found: Found, problems: list[SettingsProblem]) -> Any:
    """Let a pydantic model validate itself. As JSON, because strictly, from Python, it takes no text for an enum."""
    model: Any = group.model
    text = json.dumps(_document(group, found, problems))
    try:
        return model.model_validate_json(text, strict=True)
    except sys.modules["pydantic"].ValidationError as error:
        problems += [_told_by_pydantic(group, each, found) for each in error.errors(include_url=False)]
    except Exception as error:  # noqa: BLE001  # the model's own checks raise what they like
        problems.append(_refused(group, error))
    return None


def _document(group: _Group, found: Found, problems: list[SettingsProblem]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field in group.fields:
        if field.group is not None:
            if _is_wanted(field, found, None):
                problems += _collisions(field.group, found)
                document[field.key] = _document(field.group, found, problems)
        elif field.item in found:
            document[field.key] = found[field.item].value
    return document


def _told_by_pydantic(group: _Group, error: Mapping[str, Any], found: Found) -> SettingsProblem:
    within: _Group | None = group
    field: _Field | None = None
    for key in error["loc"]:
        inner = next((each for each in within.fields if each.key == key), None) if within else None
        if inner is None:
            break
        field, within = inner, inner.group
    if field is None or field.group is not None:
        item, model = (field.item, field.group.model) if field and field.group else (group.item, group.model)
        return SettingsProblem(item, None, None, f"a valid {model.__name__}", error["msg"])
    if error["type"] == "missing":
        return _missing(field)
    source = found.get(field.item)
    expected = _expected(field.annotation)
    if source is None:  # its default is wrong
        return SettingsProblem(field.item, None, None, expected, error["msg"])
    return _wrong(field.item, expected, source, _hint(field.annotation, source) or error["msg"])


# How it is told


def _wrong(item: str, expected: str, source: ConfigSource, reason: str = "") -> SettingsProblem:
    return SettingsProblem(item, source.level, source.raw, expected, reason)


def _missing(field: _Field) -> SettingsProblem:
    return SettingsProblem(field.item, None, None, _expected(field.annotation), "no level has it")


def _refused(group: _Group, error: Exception) -> SettingsProblem:
    reason = str(error) if isinstance(error, ValueError) and str(error) else repr(error)
    return SettingsProblem(group.item, None, None, f"a valid {group.model.__name__}", reason)


def _expected(annotation: Any) -> str:
    return " or ".join(_named(member) for member in _members(annotation) if member is not types.NoneType)


def _named(member: Any) -> str:
    values: Iterable[Any] = ()
    if typing.get_origin(member) is Literal:
        values = typing.get_args(member)
    elif isinstance(member, type) and issubclass(member, enum.Enum):
        values = (each.value for each in member)
    if told := ", ".join(map(repr, values)):
        return f"one of {told}"
    return member.__name__ if type(member) is type else str(member).removeprefix("typing.")


def _reason(message: str) -> str:
    """Return what msgspec says beyond that the type, or the value of an enum, is wrong."""
    if match := re.fullmatch(r"Expected `[^`]+`, got `(\w+)`", message):
        return f"it is read as {match[1]}"
    return "" if message.startswith("Invalid enum value") else message.replace("`", "")


def _hint(annotation: Any, source: ConfigSource) -> str:
    """Say how text would be right that only lacks its prefix, or has a wrong one."""
    text = str(source.raw).rpartition(":")[2].strip()
    for prefix in ("int", "float", "bool"):
        value = parse_value(f"{prefix}:{text}")
        try:
            if not isinstance(value, str) and isinstance(source.value, str):
                msgspec.convert(value, annotation, strict=True)
                return f"{prefix}:{text} would be right"
        except (msgspec.ValidationError, TypeError):
            pass  # not that one, or a type that only pydantic knows
    return ""
