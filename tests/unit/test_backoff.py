"""How long to wait before trying again."""

import itertools
import random

from ergo_registrar.core.backoff import delays


class Longest:
    """A dice that always shows the most."""

    def uniform(self, a: float, b: float, /) -> float:
        return b


def test_the_bound_doubles_up_to_the_most() -> None:
    assert list(itertools.islice(delays(Longest(), first=0.5, most=3.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_the_most_holds_from_the_first() -> None:
    assert next(delays(Longest(), first=5.0, most=2.0)) == 2.0


def test_delays_of_many_clients_are_spread_and_can_be_repeated() -> None:
    first = [next(delays(random.Random(client))) for client in range(100)]
    assert min(first) < 0.02
    assert max(first) > 0.08
    assert first == [next(delays(random.Random(client))) for client in range(100)]
