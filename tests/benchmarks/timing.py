"""What becomes of times that were measured: percentiles, and turns to take."""

import statistics
from collections.abc import Sequence


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile; of fewer than a hundred values, nearly the largest."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def blocks(count: int, size: int) -> list[int]:
    """Cut a number of measurements into blocks, so that what is compared can take turns."""
    whole, rest = divmod(count, size)
    return [size] * whole + [rest] * (rest > 0)


def each(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratios of what was measured in the same rounds."""
    return [a / b for a, b in zip(values, others, strict=True)]
