"""Typed settings without a registrar: which item fills which field, and how each problem is told."""

import dataclasses
import datetime
import enum
import math
import pickle
import subprocess
import sys
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from ergo_registrar import ConfigLevel, SettingsError, ValidationError
from ergo_registrar.core.config import ConfigMirror
from ergo_registrar.core.records import Record
from ergo_registrar.core.settings import Plan


def source_of(items: dict[str, str], level: ConfigLevel = ConfigLevel.CLUSTER) -> ConfigMirror:
    mirror = ConfigMirror("c", "n")
    prefix = {4: "services/ergo/config/global/", 3: "services/ergo/cluster/c/config/*/"}[level]
    mirror.snapshot({level: [Record(f"{prefix}{item}".encode(), text.encode()) for item, text in items.items()]}, 1)
    return mirror


def read(model: type, prefix: str = "", /, **items: str) -> Any:
    """Fill a class; `__` in a name stands for a dot."""
    plan: Plan[Any] = Plan(model, prefix)
    return plan.make(plan.find(source_of({item.replace("__", "."): text for item, text in items.items()}).source))


def refused(model: type, prefix: str = "", /, **items: str) -> list[str]:
    """Return the problems with a class, as they are told."""
    with pytest.raises(SettingsError) as raised:
        read(model, prefix, **items)
    assert str(raised.value).splitlines()[1:] == [f"  {problem}" for problem in raised.value.problems]
    return [str(problem) for problem in raised.value.problems]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Kinds:
    """The same settings, written in the three ways."""

    class Database(msgspec.Struct, frozen=True):
        host: str
        port: int = 5432

    class Struct(msgspec.Struct):
        database: "Kinds.Database"
        ratio: float = 0.5
        debug: bool = False
        level: Literal["debug", "info"] = "info"
        colour: Colour = Colour.RED
        spare: "Kinds.Database | None" = None

    @dataclasses.dataclass
    class DatabaseClass:
        host: str
        port: int = 5432

    @dataclasses.dataclass
    class Dataclass:
        database: "Kinds.DatabaseClass"
        ratio: float = 0.5
        debug: bool = False
        level: Literal["debug", "info"] = "info"
        colour: Colour = Colour.RED
        spare: "Kinds.DatabaseClass | None" = None

    class DatabaseModel(pydantic.BaseModel):
        host: str
        port: int = 5432

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")  # which must not make unknown items an error
        database: "Kinds.DatabaseModel"
        ratio: float = 0.5
        debug: bool = False
        level: Literal["debug", "info"] = "info"
        colour: Colour = Colour.RED
        spare: "Kinds.DatabaseModel | None" = None


@pytest.mark.parametrize("model", [Kinds.Struct, Kinds.Dataclass, Kinds.Model])
class TestEveryKind:
    def test_has_the_defaults_of_the_type(self, model: Any) -> None:
        made = read(model, database__host="db1", unknown="x", database__unknown="x")
        assert type(made) is model
        assert (made.database.host, made.database.port) == ("db1", 5432)
        assert (made.ratio, made.debug, made.level, made.colour, made.spare) == (0.5, False, "info", Colour.RED, None)

    def test_is_filled_with_what_there_is(self, model: Any) -> None:
        made = read(
            model,
            database__host="",
            database__port="int:1",
            ratio="int:2",
            debug="bool:T",
            level="debug",
            colour="blue",
            spare__host="db2",
        )
        assert (made.database.host, made.database.port) == ("", 1)
        assert (made.ratio, type(made.ratio)) == (2.0, float)
        assert (made.debug, made.level, made.colour) == (True, "debug", Colour.BLUE)
        assert (made.spare.host, made.spare.port) == ("db2", 5432)

    def test_takes_every_float(self, model: Any) -> None:
        assert math.isnan(read(model, database__host="h", ratio="float:nan").ratio)
        assert read(model, database__host="h", ratio="float:-inf").ratio == -math.inf

    def test_may_have_a_prefix(self, model: Any) -> None:
        assert read(model, "my.app", my__app__database__host="db1", database__host="x").database.host == "db1"

    def test_tells_every_problem_at_once(self, model: Any) -> None:
        problems = refused(
            model,
            database__port="5432",
            ratio="half",
            debug="int:1",
            level="warning",
            colour="green",
            spare__port="int:1",
            spare="x",
        )
        heads = sorted(problem.partition(";")[0] for problem in problems)
        assert heads == [
            "colour: expected one of 'red', 'blue', not 'green' of level 3",
            "database.host: expected str",
            "database.port: expected int, not '5432' of level 3",
            "debug: expected bool, not 'int:1' of level 3",
            "level: expected one of 'debug', 'info', not 'warning' of level 3",
            "ratio: expected float, not 'half' of level 3",
            "spare.host: expected str",
            "spare: expected no value, but items below it (spare.host, spare.port), not 'x' of level 3",
        ]
        assert "database.port: expected int, not '5432' of level 3; int:5432 would be right" in problems
        assert "database.host: expected str; no level has it" in problems

    def test_takes_nothing_for_what_it_is_not(self, model: Any) -> None:
        for wrong in (
            {"database__port": "float:1"},
            {"database__port": "bool:1"},
            {"debug": "true"},
            {"ratio": "bool:1"},
        ):
            (problem,) = refused(model, database__host="h", **wrong)
            assert problem.startswith(next(iter(wrong)).replace("__", "."))
        (problem,) = refused(model, database__host="int:5")
        assert problem.startswith("database.host: expected str, not 'int:5' of level 3; ")


class TestAStruct:
    def test_keeps_its_names_for_items(self) -> None:
        class Renamed(msgspec.Struct, rename="kebab"):
            max_size: int
            other: int = msgspec.field(name="an.other", default=0)

        assert read(Renamed, **{"max-size": "int:1", "an.other": "int:2"}) == Renamed(1, 2)
        assert refused(Renamed) == ["max-size: expected int; no level has it"]

    def test_takes_what_is_left_from_the_default_of_its_field(self) -> None:
        class Pool(msgspec.Struct, frozen=True):
            size: int
            wait: float = 1.0
            inner: Kinds.Database = Kinds.Database("a")

        class Settings(msgspec.Struct):
            pool: Pool = Pool(7, inner=Kinds.Database("b", 1))
            made: Kinds.Database = msgspec.field(default_factory=lambda: Kinds.Database("made", 2))

        assert read(Settings) == Settings()
        expected = Settings(Pool(7, 2.0, Kinds.Database("b", 3)), Kinds.Database("h", 2))
        assert read(Settings, pool__wait="int:2", pool__inner__port="int:3", made__host="h") == expected

    def test_is_told_of_a_default_that_fails(self) -> None:
        def database() -> Kinds.Database:
            raise LookupError("no DATABASE in the environment")

        class Settings(msgspec.Struct):
            workers: int
            made: Kinds.Database = msgspec.field(default_factory=database)

        assert refused(Settings, workers="many", made__host="h") == [
            "workers: expected int, not 'many' of level 3; it is read as str",
            "expected a valid Settings; LookupError('no DATABASE in the environment')",
        ]

    def test_may_say_more_of_its_values(self) -> None:
        class Settings(msgspec.Struct):
            workers: Annotated[int, msgspec.Meta(ge=1, le=9)]
            wait: datetime.timedelta | None = None
            id: uuid.UUID | int | None = None
            price: Decimal = Decimal(0)
            anything: Any = None

        made = read(Settings, workers="int:9", wait="PT5S", id="int:5", price="0.10", anything="bool:1")
        assert made == Settings(9, datetime.timedelta(seconds=5), 5, Decimal("0.10"), True)
        problems = refused(Settings, workers="int:0", wait="soon", id="x", price="float:x")
        assert [problem.partition(", not")[0] for problem in problems] == [
            "workers: expected int",
            "wait: expected timedelta",
            "id: expected UUID or int",
            "price: expected Decimal",
        ]
        assert problems[0].endswith("; Expected int >= 1")
        assert refused(Settings, workers="10") == ["workers: expected int, not '10' of level 3; it is read as str"]
        assert refused(Settings, workers="int: 9")[0].endswith("; int:9 would be right")

    def test_has_the_last_word(self) -> None:
        class Range(msgspec.Struct):
            least: int
            most: int

            def __post_init__(self) -> None:
                if self.least > self.most:
                    raise ValueError("least is more than most")
                if self.least < 0:
                    raise KeyError(self.least)

        class Settings(msgspec.Struct):
            range: Range
            port: int

        problems = refused(Settings, range__least="int:2", range__most="int:1")
        assert problems == [
            "range: expected a valid Range; least is more than most",
            "port: expected int; no level has it",
        ]
        assert refused(Settings, range__least="int:-1", range__most="int:1", port="int:1") == [
            "range: expected a valid Range; KeyError(-1)"
        ]
        assert refused(Range, least="int:2", most="int:1") == ["expected a valid Range; least is more than most"]

    def test_may_hold_the_other_kinds(self) -> None:
        @dataclasses.dataclass
        class Inner:
            model: Kinds.DatabaseModel
            fixed: int = dataclasses.field(default=1, init=False)
            listed: list[int] = dataclasses.field(default_factory=list)  # which no item can fill

        class Settings(msgspec.Struct):
            inner: Inner

        assert read(Settings, inner__model__host="h").inner.model == Kinds.DatabaseModel(host="h")
        assert refused(Settings, inner__model__port="x", inner__listed="int:1") == [
            "inner.model.host: expected str; no level has it",
            "inner.model.port: expected int, not 'x' of level 3; Input should be a valid integer",
            "inner.listed: expected list[int], not 'int:1' of level 3; it is read as int",
        ]


class TestAModel:
    def test_keeps_its_aliases_for_items(self) -> None:
        class Settings(pydantic.BaseModel):
            size: int = pydantic.Field(alias="maxSize", ge=1)
            other: int = pydantic.Field(validation_alias="an.other", serialization_alias="x", default=0)

        made = read(Settings, **{"maxSize": "int:1", "an.other": "int:2"})
        assert (made.size, made.other) == (1, 2)
        assert refused(Settings, maxSize="int:0") == [
            "maxSize: expected int, not 'int:0' of level 3; Input should be greater than or equal to 1"
        ]

    def test_has_the_last_word(self) -> None:
        class Range(pydantic.BaseModel):
            least: int
            most: int = pydantic.Field(default=-1, validate_default=True, ge=0)

            @pydantic.model_validator(mode="after")
            def in_order(self) -> "Range":
                if self.least > self.most:
                    raise ValueError("least is more than most")
                if self.least < 0:
                    raise KeyError(self.least)
                return self

        class Settings(pydantic.BaseModel):
            range: Range

        assert refused(Settings, range__least="int:2", range__most="int:1") == [
            "range: expected a valid Range; Value error, least is more than most"
        ]
        assert refused(Range, least="int:2", most="int:1") == [
            "expected a valid Range; Value error, least is more than most"
        ]
        assert refused(Range, least="int:-1", most="int:1") == ["expected a valid Range; KeyError(-1)"]
        assert refused(Range, least="int:1") == ["most: expected int; Input should be greater than or equal to 0"]

    def test_may_hold_what_only_pydantic_knows(self) -> None:
        class Settings(pydantic.BaseModel):
            secret: pydantic.SecretStr
            url: pydantic.HttpUrl | None = None

        assert read(Settings, secret="s").secret.get_secret_value() == "s"
        (problem,) = refused(Settings, secret="s", url="nowhere")
        assert problem.startswith("url: expected HttpUrl, not 'nowhere' of level 3; Input should be a valid URL")

    def test_that_takes_one_of_several_types_tells_of_each(self) -> None:
        class Settings(pydantic.BaseModel):
            port: int | bool

        problems = refused(Settings, port="x")
        assert len(problems) == 2
        assert all(problem.startswith("port: expected int or bool, not 'x' of level 3") for problem in problems)


class TestAClassThatCannotBeFilled:
    def test_is_refused_before_anything_is_read(self) -> None:
        @dataclasses.dataclass
        class Listed:
            names: list[str]

        @dataclasses.dataclass
        class Mixed:
            database: Kinds.Database | int

        @dataclasses.dataclass
        class Unknown:
            database: "Nowhere"  # type: ignore[name-defined] # noqa: F821  # what must be refused

        class Twice(msgspec.Struct, rename={"port": "database.port"}):
            database: Kinds.Database
            port: int

        class Impossible(msgspec.Struct):
            lists: list[int] | set[int] = msgspec.field(default_factory=list)

        class Slashed(msgspec.Struct, rename={"a": "a/b"}):
            a: int

        class Choices(pydantic.BaseModel):
            a: int = pydantic.Field(validation_alias=pydantic.AliasChoices("a", "b"))

        rules: dict[Any, str] = {
            dict: "settings: must be a msgspec Struct, a dataclass or a pydantic model",
            "x": "settings: must be a msgspec Struct",
            Kinds.Database("h"): "settings: must be a msgspec Struct",
            Listed: "Listed.names: must have a type that one configuration value can be",
            Mixed: "Mixed.database: must be one class with fields",
            Unknown: "settings: must have annotations that can be read: name 'Nowhere'",
            Tree: "settings: must not contain itself",
            Twice: "settings: must have one field for an item, and has more for ['database.port']",
            Impossible: "Impossible.lists: must have another type: Type unions may not contain",
            Slashed: "item: must be 1 to 255 bytes",
            Choices: "Choices.a: must have one alias",
        }
        for model, rule in rules.items():
            with pytest.raises(ValidationError) as raised:
                Plan(model)
            assert str(raised.value).startswith(rule)
        with pytest.raises(ValidationError, match="prefix"):
            Plan(Kinds.Struct, "a/b")


@dataclasses.dataclass
class Tree:
    left: "Tree | None" = None


def test_the_level_that_decides_is_told() -> None:
    plan = Plan(Kinds.Struct)
    mirror = source_of({"database.host": "int:1"}, ConfigLevel.GLOBAL)
    with pytest.raises(SettingsError) as raised:
        plan.make(plan.find(mirror.source))
    (problem,) = raised.value.problems
    assert (problem.item, problem.level, problem.raw, problem.expected) == ("database.host", 4, "int:1", "str")


def test_an_error_survives_a_pickle() -> None:
    with pytest.raises(SettingsError) as raised:
        read(Kinds.Struct)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (copy.problems, str(copy)) == (raised.value.problems, str(raised.value))


def test_pydantic_is_imported_by_nobody_who_does_not_use_it() -> None:
    program = (
        "import sys, dataclasses, ergo_registrar\n"
        "from ergo_registrar.core.settings import Plan\n"
        "@dataclasses.dataclass\n"
        "class Settings:\n    port: int = 1\n"
        "assert Plan(Settings).make({}).port == 1\n"
        "assert 'pydantic' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
