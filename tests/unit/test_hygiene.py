"""The rules of `tests/conftest.py` and `pyproject.toml`, each broken once, in a project of its own."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

KEPT = """
import asyncio, time, warnings
import pytest

kept = []

async def test_tasks_that_end():
    await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0.01))

async def test_a_task_that_is_just_ending():
    kept.append(asyncio.create_task(asyncio.sleep(0.05)))
"""

BROKEN = """
async def test_a_call_that_blocks_the_loop():
    time.sleep(0.001)

async def test_a_task_left_behind():
    kept.append(asyncio.create_task(asyncio.sleep(50)))

def callback():
    raise ValueError("lost")

async def test_an_error_nobody_handled():
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0)

def test_a_warning():
    warnings.warn("old", DeprecationWarning)

@pytest.mark.timeout(1)
async def test_a_hung_loop():
    await asyncio.Event().wait()

@pytest.mark.xfail(reason="mended")
def test_an_expected_failure_that_passes():
    pass
"""

REPORTS = {
    ("FAILED", "test_a_call_that_blocks_the_loop"): "BlockingError: Blocking call to time.sleep",
    ("ERROR", "test_a_task_left_behind"): "tasks left behind",
    ("ERROR", "test_an_error_nobody_handled"): "ValueError('lost')",
    ("FAILED", "test_a_warning"): "DeprecationWarning: old",
    ("FAILED", "test_a_hung_loop"): "Timeout (>1.0s) from pytest-timeout",
    ("ERROR", "test_a_hung_loop"): "tasks left behind",  # itself, and where it hangs
    ("FAILED", "test_an_expected_failure_that_passes"): "XPASS(strict)",
}


def run(pytester: pytest.Pytester, test: str) -> str:
    """Return what pytest prints of a project under the same rules as this one."""
    pytester.makeconftest((ROOT / "tests/conftest.py").read_text())
    pytester.makepyprojecttoml((ROOT / "pyproject.toml").read_text())
    pytester.makepyfile(test_rules=test)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", ".", timeout=50).stdout.str()


def test_who_keeps_the_rules_passes_and_who_breaks_one_does_not(pytester: pytest.Pytester) -> None:
    output = run(pytester, KEPT + BROKEN)
    reported = set(re.findall(r"^(FAILED|ERROR) test_rules\.py::(\w+)", output, re.MULTILINE))
    assert reported == set(REPORTS)
    assert [reason for reason in REPORTS.values() if reason not in output] == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the children of a process under /proc")
def test_a_process_left_behind_fails(pytester: pytest.Pytester) -> None:
    output = run(
        pytester, "import subprocess\nkept = []\ndef test():\n    kept.append(subprocess.Popen(['sleep', '5']))"
    )
    assert "AssertionError: processes left behind" in output


def test_an_unknown_marker_fails(pytester: pytest.Pytester) -> None:
    output = run(pytester, "import pytest\n@pytest.mark.slwo\ndef test():\n    pass")
    assert "'slwo' not found in `markers` configuration option" in output
