"""The wheel in the hands of strangers: what it installs, what importing it costs, and a project that uses its plugin.

It installs from PyPI, as everything does that runs these tests.
"""

import email
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPENDENCIES = ("aetcd", "anyio", "msgspec")

SERVICE = """
from ergo_registrar import ApplicationRoute, Registrar

async def start(options):
    api = ApplicationRoute("web1@h", "api", weight=1, mode=3, state=2)
    return await Registrar(options, node="web1@h", applications=[api]).__aenter__()
"""

TEST = """
import pytest, service

@pytest.mark.asyncio
async def test_the_service_is_found(registrar_options, make_registrar):
    web = await service.start(registrar_options)
    assert (await (await make_registrar()).wait_for("api"))[0].node == "web1@h"
    await web.close()
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command far from this repository, and return what it printed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ERGO_", "PYTEST_", "PYTHON", "COVERAGE_", "COV_"))
    }
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def pip(python: Path, *arguments: str) -> str:
    """Run this environment's pip on another one, which then needs none."""
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", place, ROOT, cwd=place)
    (wheel,) = place.glob("*.whl")
    return wheel


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python with nothing installed."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    return tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@pytest.mark.timeout(170)  # it downloads and installs
def test_a_stranger_s_project_tests_its_service(wheel: Path, python: Path, tmp_path: Path) -> None:
    pip(python, "install", "-q", f"{wheel}[embedded]", "pytest", "pytest-asyncio")
    project = tmp_path / "project"
    project.mkdir()
    (project / "service.py").write_text(SERVICE)
    (project / "test_service.py").write_text(TEST)
    assert len((SERVICE + TEST).strip().splitlines()) < 15

    loops = ("-o", "asyncio_default_fixture_loop_scope=function")
    run(python, "-m", "pytest", "-W", "error", *loops, cwd=project)
    (project / "test_service.py").write_text(TEST.replace("@pytest.mark.asyncio\n", ""))
    auto = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session")
    printed = run(python, "-m", "pytest", "-W", "error", *loops, *auto, cwd=project)
    assert "1 passed" in printed
    assert "skipped" not in printed


@pytest.mark.timeout(170)  # it downloads and installs
def test_it_installs_with_only_those_packages_and_what_they_need(wheel: Path, python: Path) -> None:
    pip(python, "install", "-q", *DEPENDENCIES)
    before = installed_by(python)
    pip(python, "install", "-q", str(wheel))
    assert installed_by(python) - before == {"ergo-registrar"}
    run(python, "-c", "from ergo_registrar import *")


def test_it_requires_three_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requires = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    names = [re.match(r"[\w-]+", each) for each in requires if "extra ==" not in each]
    assert sorted(name[0] for name in names if name) == list(DEPENDENCIES)


def test_it_carries_its_types_and_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "ergo_registrar/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith(("ergo_registrar/", "ergo_registrar-"))]


def installed_by(python: Path) -> set[str]:
    return {package["name"].lower().replace("_", "-") for package in json.loads(pip(python, "list", "--format=json"))}


class TestImporting:
    """What is imported is what it costs: the time depends on the machine, so it is measured by hand."""

    def imported(self, program: str, *, after: str = "") -> set[str]:
        """Return the modules that a program imports, beyond those that another one did."""
        program = f"import sys\n{after}\nbefore = set(sys.modules)\n{textwrap.dedent(program)}\n"
        return set(run(sys.executable, "-c", f"{program}print(*set(sys.modules) - before)", cwd=ROOT).split())

    def test_the_package_is_next_to_nothing(self) -> None:
        found = self.imported("import ergo_registrar")
        assert {name for name in found if name.startswith("ergo_registrar")} == {"ergo_registrar"}
        assert not {name.partition(".")[0] for name in found} - sys.stdlib_module_names - {"ergo_registrar"}

    def test_every_public_name_is_this_package_and_its_dependencies(self) -> None:
        found = self.imported(
            "import ergo_registrar\nfor name in ergo_registrar.__all__:\n    getattr(ergo_registrar, name)",
            after=f"import {', '.join(DEPENDENCIES)}",
        )
        tops = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
        assert tops <= {"ergo_registrar", "anyio", "sniffio"}  # of anyio some parts, and what they may use
        unused = ("cli", "testing", "etcd.server", "etcd.process", "etcd.operator")
        assert not {f"ergo_registrar.{name}" for name in unused} & found

    def test_options_and_routes_do_not_wait_for_grpc(self) -> None:
        found = self.imported("from ergo_registrar import ApplicationRoute, NoRouteError, Options, Route")
        assert not {"aetcd", "anyio", "asyncio", "grpc"} & found

    def test_a_star_brings_every_name(self) -> None:
        program = "from ergo_registrar import *\nimport ergo_registrar\nprint(set(ergo_registrar.__all__) - set(dir()))"
        assert run(sys.executable, "-c", program, cwd=ROOT) == "set()\n"

    def test_a_name_that_is_none_is_an_attribute_error(self) -> None:
        program = (
            "import ergo_registrar\nprint(hasattr(ergo_registrar, 'Registar'), 'Registrar' in dir(ergo_registrar))"
        )
        assert run(sys.executable, "-c", program, cwd=ROOT) == "False True\n"
