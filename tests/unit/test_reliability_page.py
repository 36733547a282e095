"""The page about reliability names tests that exist, and shows the figures of the runs that are kept."""

import ast
import re
from pathlib import Path

from tests.chaos import page

ROOT = Path(__file__).parents[2]


def names_in(path: Path) -> set[str]:
    """Return the node ids of a file's tests, without parameters."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if hasattr(each, "name")} | {node.name}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return found


def test_every_test_it_names_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)(?:::([\w:]+))?`", page.PAGE.read_text())
    assert len(named) > 50
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).exists() or (test and test not in names_in(ROOT / "tests" / file))
    ]
    assert missing == []


def test_every_fault_has_what_is_seen_its_bound_and_its_test() -> None:
    tables = [part.split("\n\n", 1)[0] for part in page.PAGE.read_text().split("| fault |")[1:]]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for table in tables for line in table.splitlines()[2:]]
    assert len(rows) > 60
    assert [row for row in rows if len(row) != 4 or not all(row)] == []


def test_the_figures_are_those_of_the_runs_that_are_kept() -> None:
    text = page.PAGE.read_text()
    assert text == page.written(text, page.kept_runs()), "write them anew: python -m tests.chaos.page"
