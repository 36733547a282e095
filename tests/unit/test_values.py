"""Configuration values read as Go's strconv reads them. What Go said of many more: test_vectors.py."""

import math
import struct
from enum import IntEnum

import pytest

from ergo_registrar.core.values import format_value, parse_value
from ergo_registrar.errors import ValidationError


def bits(value: object) -> str:
    assert type(value) is float
    return struct.pack(">d", value).hex()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("int:5432", 5432),
        ("int:+5", 5),
        ("int:-0", 0),
        ("int:007", 7),
        ("int:" + "0" * 10_000, 0),
        ("int:-" + "0" * 10_000 + "7", -7),
        ("int:9223372036854775807", 2**63 - 1),
        ("int:-9223372036854775808", -(2**63)),
        ("float:0.5", 0.5),
        ("float:1", 1.0),
        ("float:1.", 1.0),
        ("float:.5e1", 5.0),
        ("float:1_0.5_0e+1_0", 10.5e10),
        ("float:0x1p-1", 0.5),
        ("float:0X_fF.8P+0_1", 511.0),
        ("float:-0x.8p1", -1.0),
        ("float:0x1.00000000000008p0", 1.0),  # halfway, to even
        ("float:0x1.000000000000080000000001p0", 1.0000000000000002),
        ("float:1e-400", 0.0),
        ("float:0x1p-1074", 5e-324),
        ("float:0x1p-1075", 0.0),
        ("float:0x1p-99999999999", 0.0),
        ("float:0e999999999", 0.0),
        ("float:1.7976931348623158e308", 1.7976931348623157e308),
        ("float:iNf", math.inf),
        ("float:+infinity", math.inf),
        ("float:-Infinity", -math.inf),
    ],
)
def test_a_typed_text_is_its_value(text: str, value: float) -> None:
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("t", "f"), ("T", "F"), ("true", "false"), ("TRUE", "FALSE"), ("True", "False")]
)
def test_all_words_for_true_and_false(yes: str, no: str) -> None:
    assert parse_value(f"bool:{yes}") is True
    assert parse_value(f"bool:{no}") is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "int",
        "int:",
        "int :5",
        "Int:5",
        " int:5",
        "int: 5",
        "int:5\n",
        "int:5.0",
        "int:1_000",
        "int:0x10",
        "int:+-5",
        "int:--5",
        "int:\N{ARABIC-INDIC DIGIT FIVE}",
        "int:\N{FULLWIDTH DIGIT FIVE}",
        "int:\N{SUPERSCRIPT TWO}",
        "int:9223372036854775808",
        "int:-9223372036854775809",
        "int:" + "9" * 10_000,
        "float:",
        "float:.",
        "float:e5",
        "float:1e",
        "float:1e+",
        "float: 1",
        "float:1 ",
        "float:1f",
        "float:_1",
        "float:1_",
        "float:1__0",
        "float:1_.5",
        "float:1._5",
        "float:1e_5",
        "float:1e5_",
        "float:1e400",
        "float:-1.7976931348623159e308",
        "float:0x1",  # a hexadecimal float has an exponent
        "float:0x",
        "float:0xp1",
        "float:0x.p1",
        "float:0x_.8p1",
        "float:0x1_p1",
        "float:0x1p1024",
        "float:0x1.fffffffffffff8p1023",
        "float:0x1e5",
        "float:0b1p1",
        "float:+nan",
        "float:-nan",
        "float:infi",
        "float:\N{LATIN SMALL LETTER DOTLESS I}nf",
        "float:\N{ARABIC-INDIC DIGIT FIVE}",
        "bool:",
        "bool:yes",
        "bool:tRUE",
        "bool: true",
        "string:a",
    ],
)
def test_what_go_does_not_parse_stays_the_whole_text(text: str) -> None:
    assert parse_value(text) is text


def test_nan_has_the_bits_of_go() -> None:
    for text in ("float:nan", "float:NaN", "float:NAN"):
        assert bits(parse_value(text)) == "7ff8000000000001"
    assert format_value(math.nan) == format_value(-math.nan) == "float:nan"


def test_minus_zero_is_kept() -> None:
    for text in ("float:-0", "float:-0x0p0", "float:-1e-400", "float:-.0e5"):
        assert bits(parse_value(text)) == "8000000000000000"


def test_of_an_exponent_only_five_digits_count_as_in_go() -> None:
    assert parse_value("float:0." + "0" * 100_009 + "1e100010") == 0.0
    assert parse_value("float:1e0000000000000001") == 10.0


@pytest.mark.parametrize("digit", ["0", "1", "_1", "f"])
def test_long_texts_are_read_in_no_time(digit: str) -> None:
    for prefix in ("int:", "float:", "float:0x", "float:0.", "float:1e"):
        for end in ("", "p1", "e-1", "x"):
            parse_value(prefix + digit * 200_000 + end)


class Colour(IntEnum):
    RED = 1


class Shouting(float):
    def __repr__(self) -> str:
        return "LOUD"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5432, "int:5432"),
        (-(2**63), "int:-9223372036854775808"),
        (2**63 - 1, "int:9223372036854775807"),
        (Colour.RED, "int:1"),
        (True, "bool:true"),
        (False, "bool:false"),
        (0.1, "float:0.1"),
        (-0.0, "float:-0.0"),
        (1e300, "float:1e+300"),
        (math.inf, "float:inf"),
        (-math.inf, "float:-inf"),
        (Shouting(2.5), "float:2.5"),
        ("plain", "plain"),
        ("", ""),
        ("int:five", "int:five"),
        ("bool:yes", "bool:yes"),
        ("юникод", "юникод"),
    ],
)
def test_a_value_is_written_as_it_reads(value: object, text: str) -> None:
    assert format_value(value) == text
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (2**63, "must be from"),
        (-(2**63) - 1, "must be from"),
        ("int:5", "must be a str that does not read as 5; give the int itself"),
        ("bool:t", "does not read as True; give the bool itself"),
        ("float:nan", "does not read as nan; give the float itself"),
        ("\ud800", "UTF-8"),
        (None, "must be an int, a float, a bool or a str"),
        (b"bytes", "must be an int"),
        ([1], "must be an int"),
        (1j, "must be an int"),
    ],
)
def test_what_has_no_text_of_its_own_is_refused(value: object, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule) as refused:
        format_value(value)
    assert refused.value.field == "value"
    assert refused.value.value is value
