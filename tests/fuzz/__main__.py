"""Fuzz for a time, shared out among the targets: `nox -s fuzz -- --minutes 10`, or among some: `... -- keys watch`.

Hypothesis and not Atheris: it makes messages, not bytes, shrinks what fails, and runs wherever the tests do.

What fails is printed as small as it could be made, and Hypothesis tries it first the next time. Write it down as an
`@example` of its test, and it is tried always: `nox -s tests` runs the targets too, as tests like any other.
"""

import argparse
import functools
import logging
import sys
import time
import traceback
from typing import Any

import hypothesis

from tests.fuzz import test_bytes, test_watch

TARGETS: dict[str, Any] = {
    "edf": test_bytes.test_any_value_of_a_route_is_decoded_or_refused,
    "edf-cost": test_bytes.test_what_it_costs_to_decode_is_bounded_by_the_length,
    "keys": test_bytes.test_any_key_is_built_again_from_what_it_names_or_is_refused,
    "values": test_bytes.test_any_text_is_a_value_that_reads_as_it_is_written,
    "watch": test_watch.test_the_view_is_what_the_messages_say,
}
ROUND = 100  # examples between two looks at the clock; Hypothesis remembers those of one round


def fuzz(name: str, seconds: float) -> bool:
    """Try one target round after round, and tell how it went: True if nothing failed."""
    test = hypothesis.settings(
        max_examples=ROUND,
        deadline=None,
        derandomize=False,  # which it is by default where CI is set: every round would be the same
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )(TARGETS[name])
    tried, asks = 0, test.hypothesis.inner_test

    @functools.wraps(asks)
    def count(*arguments: object, **named: object) -> None:
        nonlocal tried
        tried += 1
        asks(*arguments, **named)

    test.hypothesis.inner_test = count
    began = time.monotonic()
    failed = False
    while not failed and time.monotonic() - began < seconds:
        try:
            test()
        except Exception:  # noqa: BLE001  # whatever a target raises is what is looked for
            traceback.print_exc()
            failed = True
    took = time.monotonic() - began
    print(f"{name:8} {tried:9,} examples in {took:5.1f} s, {tried / took:6,.0f}/s: {'FAILED' if failed else 'ok'}")
    return not failed


def main() -> int:
    """Fuzz the targets that are named, or all; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads bytes of etcd.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--minutes", type=float, default=0.5, help="for all of them together; by default %(default)s")
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(TARGETS)}")
    logging.disable()  # every broken key is logged, and there are many
    passed = [fuzz(name, arguments.minutes * 60 / len(names)) for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
