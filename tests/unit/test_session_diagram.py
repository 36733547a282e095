"""The page about the session is drawn from the table, and names all that is in it."""

import re
from pathlib import Path

from ergo_registrar.core.session import Input, State, diagram

PAGE = (Path(__file__).parents[2] / "docs/explanation/session.md").read_text()


def first_cells(heading: str) -> set[str]:
    """Return the code in the first cells of the table with this heading."""
    table = PAGE.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0]
    return {name for line in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_the_diagram_is_the_table() -> None:
    drawn = re.findall(r"^```mermaid\n(.*?)\n```$", PAGE, re.MULTILINE | re.DOTALL)
    assert drawn == [diagram()]  # else: python -c "from ergo_registrar.core.session import diagram; print(diagram())"


def test_every_state_and_every_input_is_explained() -> None:
    assert first_cells("`State`") == {state.name for state in State}
    assert first_cells("input") == {happened.value for happened in Input}
