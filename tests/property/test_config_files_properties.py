"""Whatever configuration stands in etcd: its file reads back as the same, and changes nothing."""

import math

import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ergo_registrar import RegistrarError, Value
from ergo_registrar.cli.config_files import read, write
from ergo_registrar.core.config_diff import differences, level_name, read_stored, read_wanted
from ergo_registrar.core.keys import ConfigLevel, check_name, config_prefixes
from ergo_registrar.core.records import Record
from ergo_registrar.core.values import format_value

PREFIXES = config_prefixes("c", "n")


def is_item(name: str) -> bool:
    try:
        check_name("item", name)
    except RegistrarError:
        return False
    return True


def is_value(text: str) -> bool:
    try:
        format_value(text)
    except RegistrarError:
        return False
    return True


# What a reader may take for something else.
traps = st.sampled_from(
    [
        *(
            "on",
            "No",
            "y",
            "~",
            "null",
            "",
            "=",
            "<<",
            "010",
            "0x1F",
            "0o7",
            "0b1",
            "1e3",
            "1.5e3",
            "1_000",
            "12:30:00",
        ),
        *(".inf", ".NaN", "2024-01-01", "2024-01-01 10:00:00", "- a", "a: b", "# a", "!a", "&a", "*a", "|", ">", "%a"),
        *(
            "@a",
            "`a",
            "'",
            '"',
            "\n",
            "a\n",
            "\na",
            " a",
            "a ",
            "\t",
            "a\tb",
            "\x00",
            "\x85",
            "\u2028",
            "\ufeff",
            "\r\n",
        ),
        *("a #b", "[", "{a}", "?", "? a", "---", "...", "😀", "\x7f", "a\n  b\n c", "  a\nb", "a\n\n", "\n\n"),
    ]
)
texts = traps | st.from_regex(r"[-+0-9._:eExob]{1,12}", fullmatch=True) | st.text(max_size=40)
values: st.SearchStrategy[Value] = (
    st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans() | texts.filter(is_value)
)
names = (traps | st.sampled_from(["a.b", "database.port", "x" * 255]) | st.text(min_size=1, max_size=30)).filter(
    is_item
)
configurations = st.dictionaries(st.sampled_from(ConfigLevel), st.dictionaries(names, values, max_size=6))


@given(levels=configurations, kind=st.sampled_from(["yaml", "json"]))
def test_a_file_made_from_etcd_changes_nothing(levels: dict[ConfigLevel, dict[str, Value]], kind: str) -> None:
    numbers = [v for items in levels.values() for v in items.values() if isinstance(v, float)]
    assume(kind == "yaml" or all(map(math.isfinite, numbers)))
    text = write({level_name(level): items for level, items in levels.items()}, kind).encode().decode()
    if not levels:
        return
    fields, problems = read(text, kind)
    wanted, more = read_wanted(fields)
    assert problems + more == []
    assert repr(wanted) == repr(levels)
    listing = {
        prefix: [
            Record(prefix + item.encode(), format_value(value).encode(), 2, 2)
            for item, value in levels.get(level, {}).items()
        ]
        for level, prefix in PREFIXES.items()
    }
    assert differences(read_stored(PREFIXES, listing), wanted, prune=True) == []


@given(text=texts.filter(is_value))
@example(text="\x85")  # what PyYAML itself writes of it, it reads as a space
@example(text="1e3")
def test_what_is_written_means_the_same_to_who_reads_yaml_1_1(text: str) -> None:
    assert yaml.safe_load(write({"global": {"item": text}}, "yaml")) == {"global": {"item": text}}
