"""The examples of the README and of the docs run as they stand there."""

from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from ergo_registrar.etcd.server import LocalEtcd, find_etcdctl
from tests.docs.examples import Block, PageError, Story, commands, looks_like, read

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(page for page in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in page.parts)]
STORIES = [page for page in PAGES if page.exists() and any(block.runs for block in read(page))]


@pytest.mark.timeout(170)
@pytest.mark.parametrize("page", STORIES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of(page: Path, tmp_path: Path) -> None:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(LocalEtcd()) as etcd,
        Story(tmp_path, etcd.endpoints[0], find_etcdctl()) as story,
    ):
        story.run(list(read(page)))


def one_block(text: str) -> Block:
    (block,) = read(Path("page.md"), text)
    return block


def test_a_block_has_its_place_its_language_and_the_note_above_it() -> None:
    block = one_block("Text\n\n<!-- file: a.py -->\n```python\nx = 1\n```\n")
    assert block == Block(Path("page.md"), 4, "python", "x = 1", "file: a.py")


def test_a_note_belongs_to_the_block_right_below() -> None:
    assert one_block("<!-- background -->\nText\n```python\n```\n").note == ""


@pytest.mark.parametrize("note", ["not run:", "nto run: because", "later"])
def test_a_note_that_means_nothing_is_refused(note: str) -> None:
    with pytest.raises(PageError, match=r"page\.md:2"):
        one_block(f"<!-- {note} -->\n```python\n```\n")


def test_a_fence_inside_a_longer_one_is_text() -> None:
    assert one_block("````{note}\n```python\n1 / 0\n```\n````\n").language == "{note}"


def test_a_console_block_is_commands_with_their_output() -> None:
    block = one_block("```console\n$ echo \\\n    one\none\n$ true\n```\n")
    assert list(commands(block)) == [("echo \\\n    one", "one"), ("true", "")]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\nc\n", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("took ... ms", "took 12.5 ms", True),
        ("took ... ms", "took 1\n2 ms", False),
        ("a", "a\nb", False),
    ],
)
def test_three_dots_stand_for_what_differs(shown: str, printed: str, same: bool) -> None:
    assert looks_like(shown, printed) is same


def test_a_story_runs_what_stands_on_the_page(tmp_path: Path) -> None:
    page = """
<!-- file: greet.py -->
```python
import time
print("at localhost:2379", flush=True)
time.sleep(60)
```
<!-- background -->
```console
$ python greet.py
at localhost:12379
```
```python
print("a")
```
<!-- output -->
```text
a
```
<!-- not run: it would fail -->
```python
1 / 0
```
"""
    with Story(tmp_path, "127.0.0.1:1", "true") as story:
        story.run(list(read(Path("page.md"), page)))


@pytest.mark.parametrize(
    "block", ["```python\n1 / 0\n```", "```console\n$ echo a\nb\n```", "```bash\nfalse\ntrue\n```"]
)
def test_a_story_that_is_not_true_fails(block: str, tmp_path: Path) -> None:
    with pytest.raises(PageError, match=r"page\.md:1"), Story(tmp_path, "127.0.0.1:1", "true") as story:
        story.run(list(read(Path("page.md"), block)))
