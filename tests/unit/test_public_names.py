"""The public names, which come when they are asked for, are those that type checkers see."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import ergo_registrar

TREE = ast.parse(Path(ergo_registrar.__file__).read_text())
DECLARED = {
    alias.name: node.module
    for node in ast.walk(TREE)
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ergo_registrar")
    for alias in node.names
}


def test_every_name_is_declared() -> None:
    assert sorted(DECLARED) == sorted(ergo_registrar.__all__)


@pytest.mark.parametrize("name", DECLARED)
def test_a_name_is_what_it_is_declared_as(name: str) -> None:
    assert ergo_registrar.__getattr__(name) is getattr(import_module(DECLARED[name]), name)


def test_another_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ergo_registrar' has no attribute 'Registar'"):
        ergo_registrar.__getattr__("Registar")


def test_dir_tells_them_all() -> None:
    assert set(ergo_registrar.__all__) <= set(dir(ergo_registrar))
