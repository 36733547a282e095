"""How long to wait before trying again."""

from collections.abc import Iterator
from typing import Protocol


class Random(Protocol):
    """The one thing that is needed of a `random.Random`."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""
        ...


def delays(random: Random, first: float = 0.1, factor: float = 2.0, most: float = 2.0) -> Iterator[float]:
    """Yield delays in seconds, for ever: each between 0 and a bound that grows from `first` by `factor` up to `most`.

    This is full jitter: of the ways to spread many clients that lost the same server at the same moment, the one that
    costs the server least. Source: "Exponential Backoff And Jitter", M. Brooker, AWS Architecture Blog, 2015.
    `most` is low by default because every process must be registered again within 3 s of etcd being able to serve it.
    """
    bound = min(first, most)
    while True:
        yield random.uniform(0.0, bound)
        bound = min(bound * factor, most)
