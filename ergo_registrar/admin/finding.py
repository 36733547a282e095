"""What `examine` finds: one thing each, how bad it is, and what to do about it."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

_SHOWN = 3  # of many keys


class Severity(StrEnum):
    """How bad a finding is. An error keeps something from working, a warning will or may, a note is good to know."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True):
    """One thing found. `id` is the same in every release; `cure` is what to do about it, empty when nothing is."""

    id: str
    severity: Severity
    where: str
    what: str
    cure: str = ""


def ok(id: str, where: str, what: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(id, Severity.OK, where, what)


def note(id: str, where: str, what: str, cure: str = "") -> Finding:
    """Return a finding that is good to know."""
    return Finding(id, Severity.NOTE, where, what, cure)


def warning(id: str, where: str, what: str, cure: str) -> Finding:
    """Return a finding of what will, or may, go wrong."""
    return Finding(id, Severity.WARNING, where, what, cure)


def error(id: str, where: str, what: str, cure: str) -> Finding:
    """Return a finding of what does not work."""
    return Finding(id, Severity.ERROR, where, what, cure)


def first_of(things: Sequence[str]) -> str:
    """Return the first few of many, and how many more there are."""
    more = f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return "; ".join(things[:_SHOWN]) + more
