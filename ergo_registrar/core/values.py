"""Configuration values: text in etcd, typed by its prefix, to Python and back.

`int:5432`, `float:0.5` and `bool:true` are read exactly as the Go registrar reads them (`decodeConfigValue` in
`etcd/marshal.go` of `ergo.services/registrar`), with `strconv.ParseInt(s, 10, 64)`, `ParseFloat(s, 64)` and
`ParseBool`. Whatever these refuse, and all else, is the whole text itself. Python's `int()` and `float()` take more
than Go does (spaces, digits of every script, `int("1_0")`) and less (hexadecimal floats), so patterns decide first.

One difference is known and kept, since there Go is wrong: of a number halfway between two floats, written with more
than 800 digits in front of the point and a negative exponent, Go forgets the digits behind the 800th.
"""

import math
import re
import struct
from collections.abc import Callable

from ergo_registrar.errors import ValidationError

_LEAST_INT, _MOST_INT = -(2**63), 2**63 - 1
_INT = re.compile(r"([+-]?)0*([0-9]{1,19})")  # 19 digits hold every int64; of more than 4300, int() raises

_DIGITS = "[0-9](?:_?[0-9])*+"  # an underscore stands between two digits (strconv's underscoreOK)
_HEX_DIGITS = "[0-9a-fA-F](?:_?[0-9a-fA-F])*+"
_DECIMAL_FLOAT = re.compile(
    rf"([+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS}))(?:[eE]([+-]?)({_DIGITS}))?",
)
_HEX_FLOAT = re.compile(
    rf"([+-]?0[xX](?:_?{_HEX_DIGITS}(?:\.(?:{_HEX_DIGITS})?)?|\.{_HEX_DIGITS}))[pP]([+-]?)({_DIGITS})",
)
_EXPONENT_DIGITS = 5  # strconv's readFloat stops counting there; it does not matter but for 0.000...1e100000
_SPECIAL_FLOATS: dict[str, float] = {
    "nan": struct.unpack(">d", bytes.fromhex("7ff8000000000001"))[0],  # Go's math.NaN(); Python's ends in 0
    **dict.fromkeys(("inf", "+inf", "infinity", "+infinity"), math.inf),
    **dict.fromkeys(("-inf", "-infinity"), -math.inf),
}
_BOOLS: dict[str, bool] = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


def parse_value(text: str) -> int | float | bool | str:
    """Return the value that a configuration text stands for. Never raises: what does not parse stays `text`."""
    prefix, _, rest = text.partition(":")  # without a colon nothing is left, which nothing parses
    parse = _PARSERS.get(prefix)
    value = parse(rest) if parse else None
    return text if value is None else value


def format_value(value: object) -> str:
    """Return the text that `parse_value` reads as `value`, of the same type and, but for NaN, the same bits.

    Takes an int of 64 bits, a float, a bool, or a str. Raises ValidationError for anything else, for a str that would
    be read as something else (`"int:5"`), and for one that UTF-8 cannot hold.
    """
    if isinstance(value, bool):
        return "bool:true" if value else "bool:false"
    if isinstance(value, int):
        if not _LEAST_INT <= value <= _MOST_INT:
            raise ValidationError("value", value, "must be from -2**63 to 2**63 - 1")
        return f"int:{int(value)}"
    if isinstance(value, float):
        return f"float:{float.__repr__(value)}"  # the shortest text of these bits, whatever a subclass shows
    if isinstance(value, str):
        return _checked_text(value)
    raise ValidationError("value", value, "must be an int, a float, a bool or a str")


def _checked_text(text: str) -> str:
    parsed = parse_value(text)
    if not isinstance(parsed, str):
        rule = f"must be a str that does not read as {parsed!r}; give the {type(parsed).__name__} itself"
        raise ValidationError("value", text, rule)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError("value", text, "must be a str that UTF-8 can hold") from None
    return text


def _parse_int(text: str) -> int | None:
    match = _INT.fullmatch(text)
    if match is None:
        return None
    sign, digits = match.groups()
    value = int(sign + digits)
    return value if _LEAST_INT <= value <= _MOST_INT else None


def _parse_float(text: str) -> float | None:
    special = _SPECIAL_FLOATS.get(text.lower())
    if special is not None:
        return special
    decimal, hexadecimal = _DECIMAL_FLOAT.fullmatch(text), _HEX_FLOAT.fullmatch(text)
    match = decimal or hexadecimal
    if match is None:
        return None
    mantissa, sign, digits = (part.replace("_", "") for part in match.groups(default=""))
    exponent = sign + (digits.lstrip("0")[:_EXPONENT_DIGITS] or "0")
    try:
        value = float(f"{mantissa}e{exponent}") if decimal else float.fromhex(f"{mantissa}p{exponent}")
    except OverflowError:  # only fromhex says so
        return None
    return None if math.isinf(value) else value


_PARSERS: dict[str, Callable[[str], int | float | bool | None]] = {
    "int": _parse_int,
    "float": _parse_float,
    "bool": _BOOLS.get,
}
