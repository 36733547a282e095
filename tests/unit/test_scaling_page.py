"""The page about scaling shows what the simulation says of the report that is kept."""

from tests.benchmarks.report import KEPT, read
from tests.benchmarks.simulation import page


def test_its_tables_are_those_of_the_report_that_is_kept() -> None:
    text = page.PAGE.read_text()
    assert text == page.written(text, read(KEPT)), "write them anew: python -m tests.benchmarks.simulation --write"


def test_it_has_room_for_the_tables() -> None:
    text = page.PAGE.read_text()
    assert text.count(page.BEGIN) == text.count(page.END) == 1
