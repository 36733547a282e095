"""The reference page of the options says of each what the code says."""

import dataclasses
import re
from pathlib import Path

import pytest

from ergo_registrar import TLS, Options

PAGE = (Path(__file__).parents[2] / "docs/reference/options.md").read_text()
SAMPLES = {"a number of seconds": "7", "1, true, yes or 0, false, no": "yes", "separated by commas": "a:1,b:2"}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table whose first heading this is."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    lines = table.splitlines()[2:]  # behind the headings and the line under them
    return [
        [cell.strip().replace("\\|", "|").strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]


@pytest.mark.parametrize(("heading", "kind"), [("option", Options), ("field", TLS)])
def test_every_option_stands_there_with_its_default(heading: str, kind: type[Options | TLS]) -> None:
    documented = {name: default for name, _, default, _ in rows(heading)}
    assert documented == {field.name: repr(field.default) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("heading", "kind"), [("option", Options), ("field", TLS)])
def test_the_types_are_those_of_the_code(heading: str, kind: type[Options | TLS]) -> None:
    documented = {name: type_ for name, type_, _, _ in rows(heading)}
    documented.pop("application_route_layout", None)  # the page writes out what the code's alias stands for
    written = {field.name: field.type for field in dataclasses.fields(kind) if field.name in documented}
    assert documented == {
        name: re.sub(r"<class '(\w+)'>|\b[\w.]+\.", r"\1", str(type_)) for name, type_ in written.items()
    }


@pytest.mark.filterwarnings("ignore:insecure_skip_verify")
@pytest.mark.parametrize("variable", [variable for variable, _ in rows("variable")])
def test_every_variable_is_read(variable: str) -> None:
    read_as = dict(rows("variable"))[variable]
    field = variable.removeprefix("ERGO_REGISTRAR_").lower()
    environ = {variable: SAMPLES.get(read_as, "tags")}
    if field in ("username", "password"):
        environ = {"ERGO_REGISTRAR_USERNAME": "u", "ERGO_REGISTRAR_PASSWORD": "p"}
    if field in ("tls_cert", "tls_key"):
        environ = {"ERGO_REGISTRAR_TLS_CERT": "c", "ERGO_REGISTRAR_TLS_KEY": "k"}
    assert Options.from_env(environ) != Options()


def test_every_option_has_its_variable() -> None:
    documented = {variable.removeprefix("ERGO_REGISTRAR_").lower() for variable, _ in rows("variable")}
    options = {field.name for field in dataclasses.fields(Options)} - {"tls"}
    assert documented == options | {f"tls_{field.name}" for field in dataclasses.fields(TLS)}
