"""The links that Sphinx does not follow: those of the papers at the top, and the lists that lead to every page.

Between the pages in docs/, `sphinx-build -W -n` refuses a link to a page or a heading that is not there.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
INDEXES = sorted(ROOT.glob("docs/*/index.md"))


def links(page: Path) -> list[str]:
    """What a page links to in this repository, fences left out."""
    text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [link for link in LINK.findall(text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    broken = []
    for link in links(ROOT / name):
        path, _, anchor = link.partition("#")
        page = ROOT / (path or name)
        if not page.exists() or (anchor and anchor not in anchors(page)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: index.parent.name)
def test_every_page_is_in_the_list_of_its_folder(index: Path) -> None:
    pages = {page.name for page in index.parent.glob("*.md")} - {"index.md"}
    assert pages
    assert pages - set(links(index)) == set()


def test_the_first_page_leads_to_every_folder() -> None:
    assert {f"{index.parent.name}/index.md" for index in INDEXES} <= set(links(ROOT / "docs/index.md"))
