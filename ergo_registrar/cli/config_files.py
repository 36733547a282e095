"""Configuration files, YAML and JSON: text to fields and back, with no value that two readers could take for two.

YAML has two readings of what stands without quotes. `on` is true in YAML 1.1 and text in 1.2; `010` is 8 and 10; `1e3`
is text and 1000.0; `2024-01-01` is a date and text. Most libraries read 1.1, most people think 1.2. A value that both
read alike is taken; any other is refused, with how to write each of the two. What is written here is read alike by all.

Sources: yaml.org/type (YAML 1.1, which PyYAML reads), yaml.org/spec/1.2.2, section 10.3.2 (the core schema).
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from ergo_registrar import RegistrarError, Value
from ergo_registrar.core.config import same_value
from ergo_registrar.core.config_diff import Field, Problem, Unusable

FORMATS = ("yaml", "json")
_SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".json": "json"}

_TAG = "tag:yaml.org,2002:"
_OLD = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str")}
_RESOLVER: Any = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()

_NULL = re.compile("~|null|Null|NULL|")
_BOOL = re.compile("true|True|TRUE|false|False|FALSE")
_INTS = {re.compile("[-+]?[0-9]+"): 10, re.compile("0o[0-7]+"): 8, re.compile("0x[0-9a-fA-F]+"): 16}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_LIST = Unusable("a list is no value; a value is an int, a float, a bool or text")
_NOTHING = Unusable('null is no value; write "" for the empty text, and leave out what is not to be set')
_TOO_LARGE = Unusable("no reader takes a number of that size; write it in quotes if it is text")


def format_of(path: str) -> str | None:
    """Return the format that a file's name tells, None if it tells none. `-`, a stream, is YAML."""
    return (
        "yaml" if path == "-" else next((kind for end, kind in _SUFFIXES.items() if path.lower().endswith(end)), None)
    )


def read(text: str, kind: str) -> tuple[tuple[Field, ...], list[Problem]]:
    """Return what stands in a file; or why it is none of its kind, and where."""
    try:
        content = _read_yaml(text) if kind == "yaml" else _read_json(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        return (), [Problem(mark.line + 1 if mark else None, "", f"not YAML: {reason}")]
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return (), [Problem(line, "", f"not YAML: a character that must be escaped, {chr(error.character)!a}")]
    except json.JSONDecodeError as error:
        return (), [Problem(error.lineno, "", f"not JSON: {error.msg}, at column {error.colno}")]
    except RecursionError:
        return (), [Problem(None, "", "it is nested too deep to be read")]
    if not isinstance(content, tuple):
        return (), [Problem(None, "", "at the top must stand levels, and under each its items; see --help")]
    return content, []


def write(sections: Mapping[str, Mapping[str, Value]], kind: str) -> str:
    """Return the text of a file. Raise `RegistrarError` for a value that JSON does not have."""
    if kind == "json":
        strange = [
            f"{name}: {item}: {value}"
            for name, items in sections.items()
            for item, value in items.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        if strange:
            raise RegistrarError(f"JSON has neither inf nor nan ({', '.join(strange)}); export YAML instead")
        return json.dumps(sections, indent=2, ensure_ascii=False) + "\n"
    tree = {name: dict(items) for name, items in sections.items()}
    return yaml.dump(tree, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=math.inf)


# JSON


def _read_json(text: str) -> object:
    return _json_content(
        json.loads(
            text,
            object_pairs_hook=lambda pairs: tuple(Field(name, _json_content(value)) for name, value in pairs),
            parse_int=lambda digits: _number(int, digits),
            parse_float=lambda digits: _number(float, digits),
            parse_constant=lambda name: Unusable(f"JSON has no {name}; YAML has it, as {_SPELLED[name]}"),
        )
    )


_SPELLED = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}


def _json_content(value: Any) -> Any:
    if isinstance(value, list):
        return _LIST
    return _NOTHING if value is None else value


def _number(kind: type[int] | type[float], digits: str) -> int | float | Unusable:
    try:
        number = kind(digits)
    except ValueError:  # an int of more digits than Python reads
        return _TOO_LARGE
    return _TOO_LARGE if isinstance(number, float) and math.isinf(number) else number


# YAML


class _Loader(yaml.SafeLoader):
    """Composes nodes, which know their lines; without aliases, which could make a short file endless."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # its stubs lack it
            raise yaml.composer.ComposerError(None, None, "an alias is not read here; write the value out", mark)
        return super().compose_node(parent, index)


def _read_yaml(text: str) -> object:
    return _yaml_content(yaml.compose(text, _Loader))


def _yaml_content(node: Any) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        return tuple(_yaml_field(key, value) for key, value in node.value)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node)
    return _LIST


def _yaml_field(key: Any, value: Any) -> Field:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        return Field("?", Unusable("a name must be text"), line)
    if key.tag == f"{_TAG}merge":
        return Field(key.value, Unusable("a merge is not read here; write the items out"), line)
    return Field(key.value, _yaml_content(value), line)


def _scalar(node: Any) -> Value | Unusable:
    plain = node.style is None
    if node.tag != _resolve(node.value, plain=plain):
        return Unusable("a tag is not read here; quotes make text, and numbers, true and false have none")
    return _plain(node.value) if plain else str(node.value)


def _plain(text: str) -> Value | Unusable:
    """Return what stands for itself, without quotes, where YAML 1.1 and 1.2 agree on it."""
    tag = _resolve(text, plain=True)
    try:
        old = _CONSTRUCTOR.construct_object(yaml.ScalarNode(tag, text)) if tag in _OLD else None
        new = _core_schema(text)
    except ValueError:  # an int of more digits than Python reads
        return _TOO_LARGE
    if tag not in _OLD or not same_value(old, new):
        meant = _spelled(old) if tag in _OLD else "a date" if tag == f"{_TAG}timestamp" else "no value"
        reason = f"{text} means {meant} in YAML 1.1 and {_spelled(new)} in YAML 1.2; write the one that you mean"
        return Unusable(reason)
    if new is None:
        return _NOTHING
    return _TOO_LARGE if isinstance(new, float) and math.isinf(new) and not _SPECIAL.fullmatch(text) else new


def _resolve(text: str, *, plain: bool) -> str:
    """Return the tag that YAML 1.1 gives to a text that has none."""
    return str(_RESOLVER.resolve(yaml.ScalarNode, text, (plain, not plain)))


def _core_schema(text: str) -> Value | None:
    """Return what YAML 1.2 takes a text without quotes for."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    for pattern, base in _INTS.items():
        if pattern.fullmatch(text):
            return int(text, base)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return float(text) if _FLOAT.fullmatch(text) else text


def _spelled(value: Value | None) -> str:
    """Return what both readings take for a value."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(yaml.dump(value, Dumper=_Dumper)).removesuffix("\n...\n")


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes wherever one of the readings would take it for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    lines = text.split("\n")
    style: str | None
    if not all(map(str.isprintable, lines)) or (len(lines) == 1 and _plain(text) != text):
        style = '"'  # with escapes: what stands for itself is folded, such as U+0085
    else:
        style = "|" if len(lines) > 1 else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_Dumper.add_representer(str, _represent_text)
