"""Every event has its words for `watch`, and its document."""

from typing import get_args

import msgspec
import pytest

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationRoute,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    ConfigUpdate,
    ConnectionFailedError,
    Event,
    EventsMissed,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    RegistrarConnected,
    RegistrarDisconnected,
    RegistrarInfo,
    Route,
    Version,
)
from ergo_registrar.cli.event_lines import details, fields

WEB = ApplicationRoute("n@h", "web", 3, 3, 2, ("eu",), Version("web", "1.2"))
TOLD: list[tuple[Event, str]] = [
    (NodeJoined(name="n@h", routes=(Route("", 1), Route("::1", 2))), "n@h at h:1, [::1]:2"),
    (NodeJoined(name="n"), "n at no address"),
    (NodeLeft(name="n"), "n"),
    (NodeSuspected(name="n"), "n"),
    (NodeRecovered(name="n"), "n"),
    (ApplicationLoaded(route=WEB), "web on n@h, weight 3"),
    (ApplicationStarted(route=WEB), "web on n@h, weight 3"),
    (ApplicationStopping(route=WEB), "web on n@h, weight 3"),
    (ApplicationStopped(route=WEB), "web on n@h, weight 3"),
    (ApplicationUpdated(route=WEB), "web on n@h, weight 3, state 2, tags eu, version web 1.2"),
    (
        ApplicationUpdated(route=WEB, previous=msgspec.structs.replace(WEB, weight=-1, tags=None, version=Version())),
        "web on n@h, weight 3, state 2, tags eu, version web 1.2, before: weight -1, state 2",
    ),
    (ConfigUpdate(item="a", value=5, level=3), "a: unset -> 5, at level 3"),
    (ConfigUpdate(item="a", value="x\n", previous=True, level=2), r"a: True -> 'x\n', at level 2"),
    (ConfigUpdate(item="a", value=None, previous="5"), "a: '5' -> unset"),
    (RegistrarConnected(info=RegistrarInfo("h:2379", Version())), "to h:2379"),
    (RegistrarDisconnected(reason=ConnectionFailedError("gone")), "gone; what happens now is told when it is back"),
    (EventsMissed(count=7), "7 events came faster than they could be told: look again with nodes and apps"),
]


@pytest.mark.parametrize(("event", "words"), TOLD)
def test_an_event_in_words(event: Event, words: str) -> None:
    assert details(event) == words


def test_no_event_is_without_words_and_a_document() -> None:
    assert {type(event) for event, _ in TOLD} == set(get_args(Event))
    for event, _ in TOLD:
        assert msgspec.json.encode(fields(event)) not in (b"{}", b"null")
