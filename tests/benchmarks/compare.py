"""Whether a run is worse than the one that is kept: a figure that is a ratio, by a third or more."""

from collections.abc import Iterable

from tests.benchmarks.report import Figure

WORSE = 4 / 3


def worse(kept: Iterable[Figure], now: Iterable[Figure]) -> dict[str, str]:
    """Return what is worse now than it was in the kept run, by the name of the figure, and by how much.

    Only ratios are compared: they come from one run each, so that it does not matter that the machine is another one.
    """
    before = {figure.name: figure for figure in kept}
    found = {}
    for figure in now:
        old = before.get(figure.name)
        if old is None or not figure.relative:
            continue
        by = figure.median / old.median if figure.better == "lower" else old.median / figure.median
        if by >= WORSE:
            found[figure.name] = f"{figure.median:.3g} {figure.unit}, was {old.median:.3g}: worse by {by - 1:.0%}"
    return found
