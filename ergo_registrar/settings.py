"""Settings that follow the configuration: always the last valid ones, and told of when they change."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from ergo_registrar.core.config import ConfigSource
from ergo_registrar.core.settings import Plan
from ergo_registrar.errors import RegistrarError, SettingsError, SettingsProblem, TerminatedError
from ergo_registrar.subscription import Subscription

_log = logging.getLogger(__name__)

T = TypeVar("T")


class LiveSettings(Generic[T]):
    """Settings of one class, kept current while the `async with` block of `registrar.bind` lasts.

    Each change is read as a whole and validated before it is taken. One that is not valid is logged and changes
    nothing: `current` stays the last valid one, and `problems` says why. Changes that come together are taken as one.
    """

    def __init__(
        self,
        plan: Plan[T],
        source: Callable[[str], ConfigSource | None],
        subscribe: Callable[[], Subscription],
        fields: Callable[[], dict[str, object]],
    ) -> None:
        self._plan = plan
        self._source = source
        self._subscribe = subscribe
        self._fields = fields  # of the log record: whose settings these are
        self._updates: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._current: tuple[T] | None = None
        self._problems: tuple[SettingsProblem, ...] = ()
        self._seen: dict[str, str] = {}  # what was read last, valid or not
        self._taken: dict[str, str] = {}  # what `current` was made of
        self._version = 0
        self._moved = asyncio.Event()  # another one after each change
        self._ended = False
        self._cause: TerminatedError | None = None

    async def __aenter__(self) -> Self:
        if self._updates is not None:
            raise RegistrarError("these settings are bound already: call bind() again for others")
        updates = self._subscribe()
        try:
            self._take(self._read())
        except BaseException:
            updates.close()
            raise
        self._updates = updates
        self._task = asyncio.create_task(self._follow(updates), name="ergo_registrar settings")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._updates is not None and self._task is not None:
            self._updates.close()  # which ends the task
            await asyncio.wait({self._task})

    @property
    def current(self) -> T:
        """The last valid settings. They stay after the end. Raise `RegistrarError` before the block is entered."""
        if self._current is None:
            raise RegistrarError("there are no settings yet: enter `async with registrar.bind(...)` first")
        return self._current[0]

    @property
    def problems(self) -> tuple[SettingsProblem, ...]:
        """What is wrong with the configuration as it is now; empty where `current` is made of it."""
        return self._problems

    async def changed(self) -> T:
        """Wait until `current` becomes another one than it is now, and return it.

        A change between two calls is not waited for again: iterate to hear of each. May be cancelled. Raise
        `TerminatedError` when the block, or the registrar, ends; with a cause where a bug ended it.
        """
        await self._beyond(self._version)
        return self.current

    async def __aiter__(self) -> AsyncIterator[T]:
        """Yield `current`, and then each later one; of several that came meanwhile, the last.

        It ends with the block, or the registrar; with `TerminatedError` where that died of a bug.
        """
        seen = self._version
        yield self.current
        while True:
            try:
                await self._beyond(seen)
            except TerminatedError:
                if self._cause is not None:
                    raise
                return
            seen = self._version
            yield self.current

    async def _beyond(self, version: int) -> None:
        while self._version == version:
            if self._ended:
                raise self._cause or TerminatedError("these settings have ended, and change no more")
            await self._moved.wait()

    async def _follow(self, updates: Subscription) -> None:
        """Read anew whenever anything changed, or was missed."""
        try:
            async for _ in updates:
                with contextlib.suppress(asyncio.QueueEmpty):
                    while True:
                        updates.get_nowait()
                self._look()
        except TerminatedError as error:
            self._look()
            self._cause = error if error.__cause__ else None
        except Exception as error:  # noqa: BLE001  # a bug: whoever reads these must not take the last ones for current
            self._cause = TerminatedError(f"these settings died of a bug: {error!r}")
            self._cause.__cause__ = error
        finally:
            self._ended = True
            self._moved.set()

    def _read(self) -> dict[str, ConfigSource]:
        return self._plan.find(self._source)

    def _look(self) -> None:
        """Take what is there now, unless it is what was there before, or is not valid."""
        found = self._read()
        values = _values(found)
        if values == self._seen:
            return
        self._seen = values
        try:
            self._take(found)
        except SettingsError as error:
            if error.problems != self._problems:
                reason = "; ".join(map(str, error.problems))
                extra = {**self._fields(), "ergo_settings": error.settings, "ergo_reason": reason}
                _log.warning("the last valid settings stay, since %s", error, extra=extra)
            self._problems = error.problems

    def _take(self, found: dict[str, ConfigSource]) -> None:
        """Make `current` of it, or raise."""
        values = _values(found)
        if self._current is None or values != self._taken:
            self._current = (self._plan.make(found),)
            self._taken = self._seen = values
            self._version += 1
            self._moved.set()
            self._moved = asyncio.Event()
        self._problems = ()


def _values(found: dict[str, ConfigSource]) -> dict[str, str]:
    return {item: repr(source.value) for item, source in found.items()}  # which tells types apart, and NaN is NaN
