"""Configuration files as people write them: what is taken, and what is refused because it has two meanings."""

import math

import pytest

from ergo_registrar import RegistrarError, Value
from ergo_registrar.cli.config_files import format_of, read, write
from ergo_registrar.core.config import same_value
from ergo_registrar.core.config_diff import read_wanted
from ergo_registrar.core.keys import ConfigLevel


def taken(text: str, kind: str = "yaml") -> dict[str, Value]:
    """The items at level global, in a file without a problem."""
    fields, problems = read(text, kind)
    wanted, more = read_wanted(fields)
    assert problems + more == []
    return wanted[ConfigLevel.GLOBAL]


def refused(text: str, kind: str = "yaml") -> list[str]:
    fields, problems = read(text, kind)
    return [str(problem) for problem in problems + read_wanted(fields)[1]]


def one(value: str) -> str:
    return f"global:\n  item: {value}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("5432", 5432), ("-7", -7), ("+7", 7), ("0", 0), ("0x10", 16), ("0.75", 0.75), (".5", 0.5), ("1.", 1.0)),
        *(("1.0e+3", 1000.0), ("-0.0", -0.0), (".inf", math.inf), ("-.INF", -math.inf), (".nan", math.nan)),
        *(("true", True), ("False", False), ("'true'", "true"), ('"on"', "on"), ("'5432'", "5432"), ('""', "")),
        *(("info", "info"), ("a b", "a b"), ("1.2.3", "1.2.3"), ("int:x", "int:x"), ("|\n    a\n    b", "a\nb\n")),
        *(('"\\u0085\\U0001F600"', "\x85😀"), ("1.10.0", "1.10.0"), ("127.0.0.1:80", "127.0.0.1:80")),
    ],
)
def test_what_yaml_means(text: str, value: Value) -> None:
    assert same_value(taken(one(text))["item"], value)


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        *(("on", "true", '"on"'), ("No", "false", '"No"'), ("yes", "true", '"yes"'), ("OFF", "false", '"OFF"')),
        *(("010", "8", "10"), ("1e3", '"1e3"', "1000.0"), ("1.5e3", '"1.5e3"', "1500.0"), ("1_000", "1000", '"1_000"')),
        *(("0o17", '"0o17"', "15"), ("0b11", "3", '"0b11"'), ("12:30", "750", '"12:30"'), ("08", '"08"', "8")),
        *(("2024-01-01", "a date", '"2024-01-01"'), ("2024-13-99", "a date", '"2024-13-99"'), ("=", "no value", '"="')),
    ],
)
def test_what_two_readers_take_for_two_things_is_refused(text: str, old: str, new: str) -> None:
    rule = f"{text} means {old} in YAML 1.1 and {new} in YAML 1.2; write the one that you mean"
    assert refused(one(text)) == [f"line 2: global: item: {rule}"]
    for meant in {old, new} - {"a date", "no value"}:
        taken(one(meant))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *(("null", "null is no value"), ("~", "null is no value"), ("", "null is no value"), ("[1]", "a list")),
        *(("!!str 5", "a tag"), ("!x y", "a tag"), ("!!int '5'", "a tag"), ("!!set {a}", "a list")),
        *(("1.0e+999", "that size"), ("9" * 5000, "that size"), ("99999999999999999999", "2**63")),
        *(
            ("int:5", "does not read as 5"),
            ('"\\ud800"', "UTF-8"),
            ("{a/b: 1}", "without '/'"),
            ("{<<: {a: 1}}", "merge"),
        ),
        ("{? [1] : 2}", "a name must be text"),
    ],
)
def test_what_is_no_value_is_refused_with_its_line(text: str, words: str) -> None:
    (problem,) = refused(one(text))
    assert problem.startswith("line 2: global: item")
    assert words in problem


@pytest.mark.parametrize("name", ["on", "8080", "1.0", "null", "2024-01-01", "~"])
def test_a_name_is_text_however_it_looks(name: str) -> None:
    assert taken(f"global:\n  {name}: 1\n") == {name: 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("global: [", "line 1: not YAML: while parsing a flow node, expected the node content"),
        ("global:\n\t- a", "line 2: not YAML: while scanning for the next token, found character '\\t'"),
        ("a: 1\n---\nb: 2", "line 2: not YAML: expected a single document"),
        ("a: &x 1\nb: *x", "line 2: not YAML: an alias is not read here; write the value out"),
        ("a: 1\nb: \x00", "line 2: not YAML: a character that must be escaped, '\\x00'"),
        ("", "at the top must stand levels"),
        ("- global", "at the top must stand levels"),
        ("[" * 5000, "it is nested too deep to be read"),
    ],
)
def test_what_is_no_such_yaml(text: str, problem: str) -> None:
    (found,) = refused(text)
    assert found.startswith(problem)


def test_what_json_means() -> None:
    text = '{"global": {"a": 5, "b": 0.5, "c": true, "d": "on", "e": {"f": 1e3, "g": {}}, "h": "\\ud83d\\ude00"}}'
    assert taken(text, "json") == {"a": 5, "b": 0.5, "c": True, "d": "on", "e.f": 1000.0, "h": "😀"}


def test_every_problem_of_a_json_file_is_told() -> None:
    values = f'"a": null, "b": [1], "c": NaN, "d": 1e999, "e": {"9" * 5000}, "f": 1, "f": 1, "g": "\\ud800"'
    found = refused(f'{{"global": {{{values}}}}}', "json")
    for problem, words in zip(
        found,
        ["a: null is no", "b: a list", "c: JSON has no NaN", "d: no reader", "e: no reader", "f: stands twice", "g: "],
        strict=True,
    ):
        assert problem.startswith(f"global: {words}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"global":\n {"a" 1}}', "line 2: not JSON: Expecting ':' delimiter, at column 7"),
        ("", "line 1: not JSON"),
        ("[1]", "at the top must stand levels"),
        ("[" * 100_000, "it is nested too deep to be read"),
    ],
)
def test_what_is_no_such_json(text: str, problem: str) -> None:
    (found,) = refused(text, "json")
    assert found.startswith(problem)


def test_json_cannot_hold_everything() -> None:
    with pytest.raises(RegistrarError, match=r"neither inf nor nan \(global: a: nan\); export YAML"):
        write({"global": {"a": math.nan, "b": 1.0}}, "json")


def test_what_is_written_can_be_read_by_people() -> None:
    items: dict[str, Value] = {
        "port": 5432,
        "text": "5432",
        "switch": "on",
        "level": "info",
        "ratio": 1e-7,
        "no": "a\nb",
    }
    assert write({"cluster": items, "global": {}}, "yaml") == (
        'cluster:\n  port: 5432\n  text: "5432"\n  switch: "on"\n  level: info\n  ratio: 1.0e-07\n'
        '  "no": |-\n    a\n    b\nglobal: {}\n'
    )


@pytest.mark.parametrize(
    ("path", "kind"), [("a.yaml", "yaml"), ("a.YML", "yaml"), ("a.b.json", "json"), ("-", "yaml"), ("a.toml", None)]
)
def test_a_name_tells_the_format(path: str, kind: str | None) -> None:
    assert format_of(path) == kind
