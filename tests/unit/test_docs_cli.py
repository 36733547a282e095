"""What the pages say of the command line is what `--help` says, and what `--help` gives as examples is run."""

import re
from pathlib import Path

import pytest

from tests.docs.cli_options import PAGE, commands, page, parameters
from tests.docs.examples import read

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = dict(commands())


def test_the_page_of_options_is_what_help_shows() -> None:
    assert PAGE.read_text() == page(), "python -m tests.docs.cli_options writes it anew"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_for(name: str) -> None:
    assert [parameter.name for parameter, _, info in parameters(COMMANDS[name]) if not info.help] == []


def test_the_examples_in_help_are_run() -> None:
    """Each stands in a page, in a block that the tests of the pages run."""
    run = "".join(f"{block.text}\n" for file in DOCS.rglob("*.md") for block in read(file) if block.runs)
    examples = [
        (name, example)
        for name, function in COMMANDS.items()
        for example in re.findall(r"^ *- `(ergo-registrar .*)`$", function.__doc__ or "", re.MULTILINE)
    ]
    assert len(examples) >= 10
    assert [(name, example) for name, example in examples if f"$ {example}\n" not in run] == []
