"""The house stays as it was drawn: arrows point down, core is pure, every exception to a rule gives its reason."""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import ergo_registrar

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ergo_registrar"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_PYTHON = [
    *SOURCES,
    *sorted((ROOT / "tests").rglob("*.py")),
    ROOT / "noxfile.py",
    *sorted(ROOT.glob("docs/**/*.py")),
]

# What each part may import of the package. The names are prefixes: "etcd" stands for all of etcd/.
VALUES = ("routes", "errors", "events")
PARTS = (
    *VALUES,
    "core",
    "options",
    "stats",
    "subscription",
    "version",
    "view",
    "etcd",
    "clock",
    "forks",
    "health",
    "logs",
    "settings",
)
PUBLIC = ("", *VALUES, "options", "core.edf", "core.values", "etcd.server")  # "" is the package itself
ARROWS = {
    "routes": (),
    "errors": (),
    "stats": (),
    "clock": (),
    "children": (),
    "forks": ("errors",),
    "version": ("routes",),
    "health": ("core",),
    "logs": ("core",),
    "events": ("routes",),
    "core": (*VALUES, "core"),
    "options": ("core", "errors", "routes"),
    "subscription": ("events", "errors", "forks", "stats"),
    "view": (*VALUES, "core", "clock", "logs", "options", "stats", "subscription"),
    "etcd": (*VALUES, "core", "children", "clock", "logs", "options", "stats", "etcd"),
    "runner": PARTS,
    "registrar": (*PARTS, "runner"),
    "": (*PARTS, "registrar"),
    "otel": ("", "version"),
    "admin": (*VALUES, "core", "clock", "options", "stats", "etcd", "admin"),
    "cli": (*PUBLIC, "admin", "children", "core", "cli"),
    "testing": (*PUBLIC, "core.keys", "etcd.operator", "testing"),
    "settings": ("core", "errors", "subscription"),
}
IMPURE = {
    *("aetcd", "anyio", "asyncio", "concurrent", "datetime", "grpc", "io", "logging", "multiprocessing", "os"),
    *("pathlib", "queue", "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl"),
    *("subprocess", "tempfile", "threading", "time", "trio", "uuid"),
}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_name(path: Path) -> str:
    """Return the name below the package: "" for the package itself, "core.keys" for core/keys.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    return module.split(".")[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of everything that is imported, wherever the import stands."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module
            for alias in node.names:
                submodule = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = submodule.is_dir() or submodule.with_suffix(".py").exists()
                yield node.lineno, f"{node.module}.{alias.name}" if is_module else node.module


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or (prefix != "" and module.startswith(f"{prefix}."))


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_imports_point_downward_only() -> None:
    upward = []
    for path in SOURCES:
        allowed = ARROWS[part_of(module_name(path))]
        for line, name in imported(path):
            head, _, module = name.partition(".")
            if head == PACKAGE.name and not any(is_within(module, prefix) for prefix in allowed):
                upward.append(f"{place(path, line)} imports {name}")
    assert upward == []


def test_every_part_has_its_place() -> None:
    assert {part_of(module_name(path)) for path in SOURCES} <= set(ARROWS)


def test_core_touches_nothing_outside() -> None:
    impure = [
        f"{place(path, line)} imports {name}"
        for path in (PACKAGE / "core").rglob("*.py")
        for line, name in imported(path)
        if part_of(name) in IMPURE
    ]
    assert impure == []


def test_core_waits_for_nothing_and_prints_nothing() -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [
        place(path, node.lineno)
        for path in (PACKAGE / "core").rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, waiting)
        or (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in {"open", "print", "input"}
        )
    ]
    assert found == []


def test_only_etcd_knows_aetcd_and_grpc() -> None:
    strangers = [
        f"{place(path, line)} imports {name}"
        for path in SOURCES
        if part_of(module_name(path)) != "etcd"
        for line, name in imported(path)
        if part_of(name) in {"aetcd", "grpc"}
    ]
    assert strangers == []


def test_only_otel_knows_opentelemetry() -> None:
    knowing = {module_name(path) for path in SOURCES for _, name in imported(path) if part_of(name) == "opentelemetry"}
    assert knowing == {"otel"}


def test_requests_are_named_by_few_words() -> None:
    """A metric counts them by that name: what is put together from keys belongs into `key`."""
    made = [
        place(path, node.lineno)
        for path in (PACKAGE / "etcd").rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("connection.call")
        if isinstance(node.args[0], ast.JoinedStr)
    ]
    assert made == []


def test_only_the_client_reaches_into_aetcd() -> None:
    """A private name of another object is touched only where it is defined, or, of aetcd, in etcd/client.py."""
    reaching = []
    for path in SOURCES:
        if module_name(path) == "etcd.client":
            continue
        tree = parsed(path)
        private = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)]
        on_self = [node for node in private if isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}]
        own = {node.attr for node in on_self}
        own |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        reaching += [f"{place(path, node.lineno)} {node.attr}" for node in private if node.attr not in own]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                reaching += [
                    f"{place(path, node.lineno)} extends {base}" for base in bases if base.startswith("aetcd.")
                ]
    assert reaching == []


def test_the_reference_documents_every_public_name() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    documented = re.findall(
        r"^ *\.\. (?:auto|py:)(?:class|exception|function|data):: ergo_registrar\.(\w+)(?:\(\))?$", pages, re.MULTILINE
    )
    assert sorted(documented) == sorted(ergo_registrar.__all__)


def test_nothing_new_stands_at_the_top() -> None:
    house = {"pyproject.toml", "ergo_registrar", "tests", "compose.yaml", "noxfile.py", "docs"}
    papers = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    made = {"build", "dist", "benchmarks.json"}  # by building, and by `nox -s bench`; git ignores them
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} - made == house | papers


# What silences a tool, and what must stand behind it on the same line: a reason of at least two words.
SILENCERS = {
    "type: ignore": r"type: ignore\[[\w, -]+\]",
    "noqa": r"noqa: [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*",
    "pragma": r"pragma: no (cover|branch)",
    "pyright: ignore": r"pyright: ignore(\[\w+\])?",
    "fmt:": r"fmt: (off|on|skip)",
}
REASON = r"[\s#:,;()-]*\w\S*\s+\w"


@pytest.mark.parametrize("silencer", SILENCERS)
def test_what_silences_a_tool_says_why(silencer: str) -> None:
    silent = []
    for path in ALL_PYTHON:
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            comment = token.string
            if token.type != tokenize.COMMENT or not re.search(rf"#\s*{silencer}", comment):
                continue
            others = "|".join(form for name, form in SILENCERS.items())
            if not re.search(REASON, re.sub(others, "", comment.replace("#", ""))):
                silent.append(f"{place(path, token.start[0])} {comment}")
    assert silent == []


def test_a_broad_except_says_why() -> None:
    """Unless it raises again what it caught."""
    silent = []
    for path in ALL_PYTHON:
        lines = path.read_text().splitlines()
        for node in ast.walk(parsed(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = set(re.findall(r"\w+", ast.unparse(node.type))) if node.type else {"BaseException"}
            raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            has_reason = re.search(f"#{REASON}", lines[node.lineno - 1])
            if caught & {"Exception", "BaseException"} and not raises_again and not has_reason:
                silent.append(place(path, node.lineno))
    assert silent == []


def test_a_skipped_test_says_why() -> None:
    silent = []
    skips = {"pytest.skip", "pytest.xfail", "pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail"}
    for path in (ROOT / "tests").rglob("*.py"):
        nodes = list(ast.walk(parsed(path)))
        calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) in skips]
        for call in calls:
            says_why = any(keyword.arg == "reason" for keyword in call.keywords)
            if not says_why and not (call.args and ast.unparse(call.func) != "pytest.mark.skipif"):
                silent.append(place(path, call.lineno))
        called = {id(call.func) for call in calls}
        bare = [n for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n) in skips and id(n) not in called]
        silent += [place(path, node.lineno) for node in bare]
    assert silent == []


def test_nothing_is_mocked() -> None:
    mocked = [place(path, line) for path in ALL_PYTHON for line, name in imported(path) if "mock" in name.split(".")]
    mocked += [place(path, line) for path in ALL_PYTHON for line, name in imported(path) if name == "unittest"]
    assert mocked == []
