"""Every error this package raises. Nothing from grpc or aetcd escapes it.

`RegistrarError` is the base of all. Each message says what was wrong, where, and what would be right.
"""

from collections.abc import Iterable
from typing import Self

import msgspec

__all__ = [
    "ConflictError",
    "ConnectionFailedError",
    "DecodeError",
    "NoRouteError",
    "RegistrarError",
    "SettingsError",
    "SettingsProblem",
    "TakenError",
    "TerminatedError",
    "UnknownItemError",
    "UnsupportedError",
    "ValidationError",
    "WaitTimeoutError",
]


class RegistrarError(Exception):
    """The base of every error of this package, and itself the error of a call made in the wrong order."""


class ValidationError(RegistrarError, ValueError):
    """A name, an option, a route or a configuration value breaks a rule. Raised before anything is sent.

    `field` is the name of what was wrong, `value` what was given (never a secret), `rule` what would be right.
    """

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: {rule}, not {_shortened(value)}")
        self.field = field
        self.value = value
        self.rule = rule

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.field, self.value, self.rule)


class DecodeError(RegistrarError):
    """Bytes that stand in etcd are not what belongs there."""


class ConnectionFailedError(RegistrarError):
    """etcd could not be reached, or did not answer, or refused, within the time given.

    `endpoints` maps each endpoint that was tried to why it failed.
    """

    def __init__(self, message: str, endpoints: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.endpoints: dict[str, str] = endpoints or {}


class SettingsProblem(msgspec.Struct, frozen=True):
    """What is wrong with one item of the configuration, or, without a level, with what the items make together.

    `item` is its name, empty for the whole. `level` (1 to 4) is the one that decides, and `raw` the text there; None
    where no level has it. `expected` is the type, or the values, that would be right, `reason` why this is not.
    """

    item: str
    level: int | None
    raw: str | None
    expected: str
    reason: str = ""

    def __str__(self) -> str:
        where = f"{self.item}: " if self.item else ""
        found = "" if self.raw is None else f", not {_shortened(self.raw)} of level {self.level}"
        return f"{where}expected {self.expected}{found}" + (f"; {self.reason}" if self.reason else "")


class SettingsError(RegistrarError):
    """The configuration does not fill a settings class. `problems` has all that is wrong with it, by field."""

    def __init__(self, settings: str, problems: Iterable[SettingsProblem]) -> None:
        self.settings = settings
        self.problems: tuple[SettingsProblem, ...] = tuple(problems)
        each = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"the configuration does not make valid {settings}:{each}")

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.settings, self.problems)


class TakenError(RegistrarError):
    """Another process holds this node name in this cluster (Ergo: `gen.ErrTaken`).

    `remaining_ttl` is how many seconds the holder's lease still had to live, None where it has no lease or etcd did
    not tell. A live holder renews it; that of a crashed one runs out.
    """

    def __init__(self, node: str, cluster: str, remaining_ttl: float | None) -> None:
        left = (
            f"its lease has {remaining_ttl:g} s left unless its holder lives and renews it"
            if remaining_ttl is not None
            else "it has no lease and will not go away by itself"
        )
        super().__init__(
            f"node name {node!r} is taken in cluster {cluster!r}: {left}. "
            "Use another name, or set claim_timeout to wait for a crashed predecessor's lease to end"
        )
        self.node = node
        self.cluster = cluster
        self.remaining_ttl = remaining_ttl

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.node, self.cluster, self.remaining_ttl)


class ConflictError(RegistrarError):
    """What stands at a configuration key is not what the writer expected there. Nothing was written.

    `key` is the key in etcd, `expected` what was given, `found` the text that stands there, None for nothing.
    """

    def __init__(self, key: str, expected: int | float | bool | str | None, found: str | None) -> None:
        stands = "nothing stands there" if found is None else f"{_shortened(found)} stands there"
        wanted = "nothing" if expected is None else _shortened(expected)
        super().__init__(f"{key!r}: {stands}, where {wanted} was expected; look again, and decide anew")
        self.key = key
        self.expected = expected
        self.found = found

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.key, self.expected, self.found)


class NoRouteError(RegistrarError, LookupError):
    """There is no such node or application in the cluster, as far as this process knows (Ergo: `gen.ErrNoRoute`)."""


class WaitTimeoutError(RegistrarError, TimeoutError):
    """An application did not come, or not in as many instances as were waited for, within the time given."""


class UnknownItemError(RegistrarError, KeyError):
    """No level of the configuration has this item (Ergo: `gen.ErrUnknown`)."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class TerminatedError(RegistrarError):
    """The registrar is closed, or died (Ergo: `gen.ErrRegistrarTerminated`). `__cause__` tells of what it died."""


class UnsupportedError(RegistrarError):
    """The reference does not support this either: proxy routes (Ergo: `gen.ErrUnsupported`)."""


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python turns into text
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
