"""`python -m tests.chaos --seed N --minutes M`: play stories drawn from a seed, and say whether every promise held."""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from tests.chaos import plan
from tests.chaos.checker import Checker
from tests.chaos.faults import play
from tests.chaos.history import Violation
from tests.chaos.plan import Chapter, Story
from tests.chaos.stage import Stage

_CHAPTER = 150.0  # seconds after which a chapter is said to hang


class Run:
    """One story played once: what of it was played, what was wrong, and the figures."""

    def __init__(self) -> None:
        self.played: list[Chapter] = []
        self.violations: list[Violation] = []
        self.figures: dict[str, Any] = {}

    async def play(self, chapters: Any, *, until: float = float("inf"), show: bool = True) -> None:
        """Play chapter after chapter until something is wrong, there are no more, or it is late."""
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ergo-registrar-chaos-") as directory:
            async with Stage(Path(directory)) as stage:
                checker = Checker(stage)
                stage.watch_over(checker.measure())
                self.violations = await checker.quiet([])
                for chapter in chapters:
                    if self.violations or time.monotonic() - began > until:
                        break
                    self.played.append(chapter)
                    async with asyncio.timeout(_CHAPTER):
                        await self._play_chapter(stage, checker, chapter)
                    if show:
                        kinds = ", ".join(f"{step.fault} {step.target}" for step in chapter)
                        print(f"{time.monotonic() - began:6.1f} s  {kinds}", flush=True)
                if not self.violations:
                    self.violations = await checker.end()
                self.figures = figures(stage, checker) | {"seconds": round(time.monotonic() - began, 1)}

    async def _play_chapter(self, stage: Stage, checker: Checker, chapter: Chapter) -> None:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(stage.witness(stop))
            try:
                await asyncio.gather(*(play(stage, step) for step in chapter))
            finally:
                stop.set()
        self.violations = await checker.quiet({step.fault for step in chapter} & plan.FAULTS.keys())


def figures(stage: Stage, checker: Checker) -> dict[str, Any]:
    """Return what was counted and measured, as it goes into docs/explanation/reliability.md."""
    told: Counter[str] = Counter()
    calls: dict[str, float] = {}
    for registrar in stage.lives:
        told.update(registrar.last_dump.get("counts", {}))
        for call, took in registrar.last_dump.get("longest", {}).items():
            calls[call] = max(calls.get(call, 0.0), took)
    steps = {key.removeprefix("step "): count for key, count in stage.counts.items() if key.startswith("step ")}
    checks = Counter(told) + checker.counts + stage.counts
    checked = ("folds compared", "views proved whole", "keys gone with close()", "bounds", "leases")
    return {
        "lives": len(stage.lives),
        "steps": dict(sorted(steps.items())),
        "events delivered": told["events delivered"],
        "events missed": told["events missed"],
        "reconnects": told["reconnects"],
        "re-registrations": told["re-registrations"],
        "changes in etcd": stage.history.changes,
        "checks": sum(checks[kind] for kind in (*checked, "comparisons with what was published"))
        + stage.history.changes,
        "longest": {what: round(took, 2) for what, took in sorted(checker.longest.items())},
        "longest call": {call: round(took, 2) for call, took in sorted(calls.items())},
        "checker stalled": round(checker.stalled, 2),
    }


async def shorten(story: Story, invariants: set[int], seconds: float) -> Story:
    """Return the shortest story that breaks one of the same promises, as far as there is time to look for it."""
    ends = time.monotonic() + seconds

    async def fails(candidate: Story) -> bool:
        run = Run()
        with contextlib.suppress(TimeoutError):
            await run.play(candidate.chapters, show=False)
        again = bool(invariants & {violation.invariant for violation in run.violations})
        print(f"  {sum(map(len, candidate.chapters))} steps: {'fails, too' if again else 'all well'}", flush=True)
        return again

    return await plan.shortest(story, fails, lambda: time.monotonic() < ends)


def report(run: Run) -> None:
    """Print the figures as a table."""
    print(f"\n{len(run.played)} chapters")
    for name, value in run.figures.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, each in value.items():
                print(f"    {key:<40} {each:>10}")
        else:
            print(f"{name:<44} {value:>10}")


async def main() -> int:
    arguments = parsed()
    if arguments.story:
        story = msgspec.json.decode(Path(arguments.story).read_bytes(), type=Story)
        chapters, seed = iter(story.chapters), story.seed
    else:
        seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4))
        chapters = plan.chapters(seed)
    print(f"chaos: seed {seed}, {arguments.minutes:g} min", flush=True)
    run = Run()
    try:
        await run.play(chapters, until=60 * arguments.minutes)
    except Exception:  # noqa: BLE001  # the story that led here must be told all the same
        run.violations.append(Violation(0, f"the run itself ended with {traceback.format_exc()}"))
    report(run)
    if arguments.json:
        line = {"seed": seed, "minutes": arguments.minutes, "chapters": len(run.played), **run.figures}
        line["violations"] = list(map(str, run.violations))
        with Path(arguments.json).open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
    if not run.violations:
        print(f"\nEvery promise held. Seed {seed}.")
        return 0
    fail(run, seed)
    story = Story(seed, tuple(run.played))
    kept = Path(tempfile.gettempdir(), f"chaos-{seed}.json")
    kept.write_bytes(msgspec.json.format(msgspec.json.encode(story), indent=1))
    print(f"\nThe story is in {kept}: play it again with --story {kept}. Looking for a shorter one:")
    story = await shorten(story, {each.invariant for each in run.violations}, 60 * arguments.shrink_minutes)
    kept.write_bytes(msgspec.json.format(msgspec.json.encode(story), indent=1))
    print(f"\n{story}\n\nin {kept}")
    return 1


def fail(run: Run, seed: int) -> None:
    print(f"\nBroken with seed {seed}:")
    for violation in run.violations:
        print(f"- {violation}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="what the story is drawn from; without, any")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long new chapters begin")
    parser.add_argument("--story", help="a story to play instead, as an earlier run kept it")
    parser.add_argument("--shrink-minutes", type=float, default=3.0, help="how long to look for a shorter story")
    parser.add_argument("--json", help="a file to add the figures to, one line for a run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
