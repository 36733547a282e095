"""The clock that leases and silence are counted on."""

import time

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Return seconds that only grow, whatever becomes of the time of day, and that go on while the machine sleeps.

    A lease goes on meanwhile, too. `time.monotonic` stands still then on Linux (clock_gettime(2)) and macOS; where
    there is no other clock it must do.
    """
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)
