"""Where a process spends its CPU time: by what the event loop is at, beside what gRPC's threads and the collector take.

A thread of its own looks every few milliseconds at where the event loop's thread is, and counts for that the CPU time
which that thread used since the look before; the collector's, measured by itself, is taken off. A look at a loop that
waits does not count, and leaves that time to the next one. The innermost frame decides whose time it is, so what C code
takes is that of the Python function which called it.

To walk the frames of another thread is not safe in CPython 3.11: seldom, a process that is looked at ends by a signal.
"""

import gc
import sys
import threading
import time
from collections import defaultdict
from types import FrameType

_EVERY = 0.002  # seconds between two looks
_SWITCH = 1e-5  # seconds for which the event loop may keep the interpreter from who looks: or it would look when idle
_PLACES = (
    ("ergo_registrar.core.edf", "decode values"),
    ("ergo_registrar.core.keys", "read keys"),
    ("ergo_registrar.core", "mirror, and its events"),
    ("ergo_registrar.view", "mirror, and its events"),
    ("ergo_registrar.subscription", "hand out events"),
    ("ergo_registrar.etcd.watch", "follow the watch"),
    ("ergo_registrar.etcd.stream", "follow the watch"),
    ("ergo_registrar", "lease, connection, state"),
    ("tests.benchmarks", "who is told"),
    ("grpc", "gRPC, in the event loop's thread"),
    ("aetcd", "gRPC, in the event loop's thread"),
    ("google", "gRPC, in the event loop's thread"),
    ("asyncio", "asyncio and anyio"),
    ("anyio", "asyncio and anyio"),
)
_PASSED = ("selectors", __name__)  # it waits, or a collection has just ended
COLLECTOR = "Python's garbage collector"
THREADS = "gRPC's own threads"
_OTHER = "else"


class Sampler:
    """Counts from its making on, in the thread that made it, until the process ends."""

    def __init__(self) -> None:
        self._loop = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._loop)
        self._spent: dict[str, float] = defaultdict(float)
        self._collecting = self._collection_began = 0.0
        self._own = 0.0  # what looking takes
        self._told: dict[str, float] = {}
        gc.callbacks.insert(0, self._collected)
        sys.setswitchinterval(_SWITCH)
        threading.Thread(target=self._look, name="sampler", daemon=True).start()

    def spent(self) -> dict[str, float]:
        """Return the seconds of CPU since this was called before, by what they went to."""
        others = time.process_time() - time.clock_gettime(self._clock) - self._own
        so_far = {**self._spent, COLLECTOR: self._collecting, THREADS: others}
        before, self._told = self._told, so_far
        return {place: seconds - before.get(place, 0.0) for place, seconds in so_far.items()}

    def _collected(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
        elif threading.get_ident() == self._loop:
            self._collecting += time.thread_time() - self._collection_began

    def _look(self) -> None:
        used, collected = time.clock_gettime(self._clock), self._collecting
        while True:
            time.sleep(_EVERY)
            frame = sys._current_frames().get(self._loop)
            used_now, collected_now = time.clock_gettime(self._clock), self._collecting
            if frame is None or frame.f_globals.get("__name__") not in _PASSED:
                self._spent[_place(frame)] += max(0.0, used_now - used - (collected_now - collected))
                used, collected = used_now, collected_now
            self._own = time.thread_time()


def _place(frame: FrameType | None) -> str:
    """Return what the innermost frame belongs to that belongs to anything."""
    while frame is not None:
        module: str = frame.f_globals.get("__name__", "")
        for beginning, place in _PLACES:
            if module.startswith(beginning):
                return place
        frame = frame.f_back
    return _OTHER
