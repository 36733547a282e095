"""A change of the configuration: checked before anything is sent, and whether it may happen, given what stands."""

import msgspec

from ergo_registrar.core.config import same_value
from ergo_registrar.core.keys import NODE_LEVELS, ConfigKey, ConfigLevel, config_key
from ergo_registrar.core.registration import MOST_BYTES
from ergo_registrar.core.values import format_value, parse_value
from ergo_registrar.errors import ConflictError, ValidationError
from ergo_registrar.events import Value

Expectation = Value | msgspec.UnsetType | None
"""What must stand at a key. A str is the exact text; an int, float or bool whatever text is read as it; None: nothing.

UNSET: whatever stands there will do.
"""


class ConfigChange(msgspec.Struct, frozen=True):
    """One item to put, or to delete where `value` is None, if what stands there is as expected."""

    at: ConfigKey
    value: Value | None
    expect: Expectation = msgspec.UNSET


class Write(msgspec.Struct, frozen=True):
    """A change as etcd gets it; `value` is None to delete."""

    key: bytes
    value: bytes | None
    expect: Expectation

    @classmethod
    def of(cls, cluster: str, change: ConfigChange) -> "Write":
        """Return the write that makes a change. Raise `ValidationError` for what breaks a rule."""
        at = change.at
        if at.level not in list(ConfigLevel):
            raise ValidationError("level", at.level, "must be a ConfigLevel, 1 to 4")
        level = ConfigLevel(at.level)
        if (level in NODE_LEVELS) != (at.node is not None):
            rule = (
                "be given: this level is of one node"
                if level in NODE_LEVELS
                else "not be given: this level is of no one node"
            )
            raise ValidationError("node", at.node, f"must {rule}")
        key = config_key(level, cluster, at.node, at.item)
        if not isinstance(change.expect, str | msgspec.UnsetType | None):
            _formatted("expect", change.expect)
        return cls(key, None if change.value is None else _formatted("value", change.value), change.expect)

    def refuse(self, found: bytes | None) -> None:
        """Raise `ConflictError` unless what stands at the key, None for nothing, is as expected."""
        if not _meets(found, self.expect):
            text = None if found is None else found.decode(errors="backslashreplace")
            expected = None if isinstance(self.expect, msgspec.UnsetType) else self.expect
            raise ConflictError(self.key.decode(), expected, text)


def _meets(found: bytes | None, expect: Expectation) -> bool:
    if isinstance(expect, msgspec.UnsetType):
        return True
    if found is None or expect is None:
        return found is None and expect is None
    if isinstance(expect, str):
        return found == expect.encode(errors="surrogatepass")
    return same_value(parse_value(found.decode(errors="replace")), expect)


def _formatted(field: str, value: object) -> bytes:
    try:
        text = format_value(value).encode()
    except ValidationError as error:
        raise ValidationError(field, value, error.rule) from None
    if len(text) > MOST_BYTES:
        raise ValidationError(field, f"{len(text)} bytes", f"must fit into {MOST_BYTES} bytes")
    return text
