"""A process that forks: the copy of a registrar in the child is of no use, and says so; the parent goes on."""

import asyncio
import inspect
import json
import os
import sys
from typing import Any

import pytest

from ergo_registrar import Options, Registrar
from tests.faults.forking import CALLS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


async def told_by(program: str, options: Options) -> Any:
    """Return what a program of `forking.py` tells."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.forking", program, options.endpoints[0], options.cluster),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(50):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return json.loads(printed)


async def test_the_copy_raises_and_the_parent_goes_on(registrar_options: Options) -> None:
    """In the child, every call raises `TerminatedError` at once; the parent keeps its lease and publishes."""
    told = await told_by("copy", registrar_options)
    assert [
        {name: answer for name, answer in child.items() if answer != "TerminatedError"} for child in told["children"]
    ] == [{}]
    assert told["parent"] == {"ok": True, "lost": 0}


def test_every_call_is_tried_in_the_copy() -> None:
    """Those that are not tried only tell what is known, or are refused always."""
    public = {name for name, _ in inspect.getmembers(Registrar, inspect.isfunction) if not name.startswith("_")}
    untried = {"info", "version", "on_request", "resolve_proxy", "register_proxy", "unregister_proxy"}
    assert public == untried | {name for name in CALLS if name.isidentifier() and not name.startswith("_")}


async def test_a_new_one_in_the_child_is_refused_and_the_parent_goes_on(registrar_options: Options) -> None:
    """gRPC does not survive a fork: an error at once, which says what to do; the parent keeps its lease.

    In every one of several children: gRPC's own handlers of a fork would have killed one in four.
    """
    told = await told_by("new", registrar_options)
    assert ["spawn" in str(child) for child in told["children"]] == [True] * 8
    assert told["parent"] == {"ok": True, "lost": 0}


async def test_before_the_first_registrar_does_no_harm(registrar_options: Options) -> None:
    """A server that forks its workers first: each has a registrar of its own, and sees the others."""
    told = await told_by("before", registrar_options)
    assert told == {"child": 0, "parent": ["NodeJoined", "NodeLeft"]}
