"""One hierarchy; each error says what, where, and what would be right."""

import pickle

import pytest

from ergo_registrar import errors
from ergo_registrar.errors import (
    ConnectionFailedError,
    NoRouteError,
    RegistrarError,
    TakenError,
    UnknownItemError,
    ValidationError,
    WaitTimeoutError,
)

ALL = [kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), Exception)]


def test_registrar_error_is_the_base_of_all() -> None:
    assert all(issubclass(kind, RegistrarError) for kind in ALL)


def test_those_that_python_has_a_word_for_are_that_too() -> None:
    assert issubclass(ValidationError, ValueError)
    assert issubclass(UnknownItemError, KeyError)
    assert issubclass(NoRouteError, LookupError)
    assert issubclass(WaitTimeoutError, TimeoutError)


def test_a_validation_error_names_the_field_the_rule_and_the_value() -> None:
    error = ValidationError("node", "a/b", "must not contain '/'")
    assert str(error) == "node: must not contain '/', not 'a/b'"
    assert (error.field, error.value, error.rule) == ("node", "a/b", "must not contain '/'")


def test_a_long_value_is_shortened() -> None:
    message = str(ValidationError("node", "x" * 100_000, "must be short"))
    assert len(message) < 200
    assert "100002 characters" in message
    assert str(ValidationError("node", "x" * 118, "must be short")).endswith(f"not '{'x' * 118}'")


@pytest.mark.parametrize(
    ("remaining", "words"),
    [(7.0, "has 7 s left"), (0.0, "has 0 s left"), (2.25, "has 2.25 s left"), (None, "no lease")],
)
def test_a_taken_name_says_for_how_long_and_what_to_do(remaining: float | None, words: str) -> None:
    error = TakenError("web1", "production", remaining)
    for part in ("'web1'", "'production'", words, "claim_timeout"):
        assert part in str(error)
    assert (error.node, error.cluster, error.remaining_ttl) == ("web1", "production", remaining)


def test_an_unknown_item_reads_like_a_sentence() -> None:
    assert str(UnknownItemError("no configuration item 'x'")) == "no configuration item 'x'"


def test_a_failed_connection_tells_each_endpoint() -> None:
    assert ConnectionFailedError("no").endpoints == {}
    assert ConnectionFailedError("no", {"a:1": "refused"}).endpoints == {"a:1": "refused"}


@pytest.mark.parametrize(
    "error",
    [
        ValidationError("node", "a/b", "must not contain '/'"),
        TakenError("web1", "production", 7.0),
        ConnectionFailedError("no", {"a:1": "refused"}),
        UnknownItemError("no item"),
        WaitTimeoutError("too late"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_survives_the_way_to_another_process(error: RegistrarError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
