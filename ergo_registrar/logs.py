"""What the package's log records carry beside their text, and how often one kind of them may come.

`docs/reference/observability.md` lists the records and their fields.
"""

import logging
from collections.abc import Callable

from ergo_registrar.core.session import State

_TROUBLE = (State.SUSPENDED, State.LOST)
_ENDS = (State.CLOSING, State.CLOSED, State.FAILED)


def about(record: str, cluster: str, node: str | None, **more: object) -> dict[str, object]:
    """Return the `extra` of a log record: which it is, of which registrar, and `more`; without what is None."""
    fields = {"record": record, "cluster": cluster, "node": node, **more}
    return {f"ergo_{name}": value for name, value in fields.items() if value is not None}


class Throttle:
    """Lets so many through at once, and then one every `period` seconds. What it holds back it counts."""

    def __init__(self, burst: int, period: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._period = period
        self._clock = clock
        self._left = float(burst)  # may go through now
        self._since = clock()
        self._waiting = 0

    def note(self) -> int | None:
        """Take note of one more; return what `due` returns."""
        self._waiting += 1
        return self.due()

    def due(self) -> int | None:
        """Return how many there were since the last that went through; None if that was none, or it is too early."""
        at = self._clock()
        self._left = min(self._burst, self._left + (at - self._since) / self._period)
        self._since = at
        if not self._waiting or self._left < 1:
            return None
        self._left -= 1
        count, self._waiting = self._waiting, 0
        return count


def since(count: int) -> str:
    """Return what to add to the text of a record that stands for so many."""
    return "" if count == 1 else f" ({count} times since this was last told)"


class StateLog:
    """Logs each change of a registrar's state; of one that goes to and fro only so many, and then where it is."""

    def __init__(
        self,
        logger: logging.Logger,
        fields: Callable[[], dict[str, object]],
        clock: Callable[[], float],
    ) -> None:
        self._logger = logger
        self._fields = fields  # of the record, beside those about the change
        self._throttle = Throttle(10, 60.0, clock)
        self._told = self._state = State.NEW
        self._reason: Exception | None = None

    def changed(self, state: State, reason: Exception | None) -> None:
        """Tell of a change, or let it wait."""
        self._state, self._reason = state, reason
        count = self._throttle.note()
        self._tell(count or 1 if state in _ENDS else count)

    def catch_up(self) -> None:
        """Tell of what waits, if it is time."""
        self._tell(self._throttle.due())

    def _tell(self, count: int | None) -> None:
        if count is None:
            return
        reason = None if self._reason is None else str(self._reason) or repr(self._reason)
        self._logger.log(
            logging.WARNING if self._state in _TROUBLE else logging.INFO,
            "%s -> %s%s%s",
            self._told.value,
            self._state.value,
            f": {reason}" if reason else "",
            "" if count == 1 else f" ({count} changes since the last line)",
            extra={
                **self._fields(),
                "ergo_previous_state": self._told.value,
                "ergo_state": self._state.value,
                "ergo_count": count,
                **({"ergo_reason": reason} if reason else {}),
            },
        )
        self._told = self._state
