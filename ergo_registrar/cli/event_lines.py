"""How an event is told: in words, for a line, and as a document."""

from typing import Any

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationRoute,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    ConfigUpdate,
    Event,
    EventsMissed,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    RegistrarConnected,
    RegistrarDisconnected,
)
from ergo_registrar.cli.documents import address, application_fields, route_documents, state_name

_ApplicationEvent = (
    ApplicationLoaded | ApplicationStarted | ApplicationStopping | ApplicationUpdated | ApplicationStopped
)


def details(told: Event) -> str:
    """Return what happened, beside the type of the event."""
    match told:
        case NodeJoined():
            return f"{told.name} at " + (", ".join(address(told.name, route) for route in told.routes) or "no address")
        case NodeLeft() | NodeSuspected() | NodeRecovered():
            return told.name
        case ApplicationUpdated():
            before = "" if told.previous is None else f", before: {_settings(told.previous)}"
            return f"{told.name} on {told.node}, {_settings(told.route)}{before}"
        case ApplicationLoaded() | ApplicationStarted() | ApplicationStopping() | ApplicationStopped():
            return f"{told.name} on {told.node}, weight {told.weight}"
        case ConfigUpdate():
            before = "unset" if told.previous is None else repr(told.previous)
            after = "unset" if told.value is None else f"{told.value!r}, at level {told.level}"
            return f"{told.item}: {before} -> {after}"
        case RegistrarConnected():
            return f"to {told.info.server}"
        case RegistrarDisconnected():
            return f"{told.reason}; what happens now is told when it is back"
        case EventsMissed():
            return f"{told.count} events came faster than they could be told: look again with nodes and apps"


def _settings(route: ApplicationRoute) -> str:
    """Return what an update may have changed."""
    tags = f", tags {','.join(route.tags)}" if route.tags else ""
    version = f"{route.version.name} {route.version.release}".strip()
    return f"weight {route.weight}, state {state_name(route.state)}{tags}" + (f", version {version}" if version else "")


def fields(told: Event) -> dict[str, Any]:
    """Return the fields of the document about an event, beside those that all have."""
    match told:
        case NodeJoined():
            return {"name": told.name, "routes": route_documents(told.name, told.routes)}
        case NodeLeft() | NodeSuspected() | NodeRecovered():
            return {"name": told.name}
        case ApplicationUpdated():
            previous = None if told.previous is None else application_fields(told.previous)
            return {**application_fields(told.route), "previous": previous}
        case ApplicationLoaded() | ApplicationStarted() | ApplicationStopping() | ApplicationStopped():
            return application_fields(told.route)
        case ConfigUpdate():
            return {"item": told.item, "value": told.value, "previous": told.previous, "level": told.level}
        case RegistrarConnected():
            return {"endpoint": told.info.server}
        case RegistrarDisconnected():
            return {"reason": str(told.reason)}
        case EventsMissed():
            return {"count": told.count}
