"""An asyncio-native service registrar on etcd, for clusters of Ergo Framework nodes and Python services.

A public name is imported when it is first asked for. What stands in front of that then costs next to nothing: the start
of the command line, and of pytest, which imports the plugin in every run, also where nobody uses it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ergo_registrar.core.config import ConfigSource
    from ergo_registrar.core.keys import ConfigLevel
    from ergo_registrar.core.session import State
    from ergo_registrar.errors import (
        ConflictError,
        ConnectionFailedError,
        DecodeError,
        NoRouteError,
        RegistrarError,
        SettingsError,
        SettingsProblem,
        TakenError,
        TerminatedError,
        UnknownItemError,
        UnsupportedError,
        ValidationError,
        WaitTimeoutError,
    )
    from ergo_registrar.events import (
        ApplicationLoaded,
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
        Value,
    )
    from ergo_registrar.health import Health
    from ergo_registrar.options import TLS, Options
    from ergo_registrar.registrar import Registrar, Resolver
    from ergo_registrar.routes import (
        ApplicationMode,
        ApplicationRoute,
        ApplicationState,
        RegistrarInfo,
        Route,
        Version,
    )
    from ergo_registrar.settings import LiveSettings
    from ergo_registrar.stats import Stats
    from ergo_registrar.subscription import Subscription

# Read by gRPC when it is imported, by whomever, so it is set at once. Its handlers for a fork are on unless told
# otherwise, do not cover asyncio, and kill one child in four (measured on 1.85; its issue 19793 is one of many).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

__all__ = [
    "TLS",
    "ApplicationLoaded",
    "ApplicationMode",
    "ApplicationRoute",
    "ApplicationStarted",
    "ApplicationState",
    "ApplicationStopped",
    "ApplicationStopping",
    "ApplicationUpdated",
    "ConfigLevel",
    "ConfigSource",
    "ConfigUpdate",
    "ConflictError",
    "ConnectionFailedError",
    "DecodeError",
    "Event",
    "EventsMissed",
    "Health",
    "LiveSettings",
    "NoRouteError",
    "NodeJoined",
    "NodeLeft",
    "NodeRecovered",
    "NodeSuspected",
    "Options",
    "Registrar",
    "RegistrarConnected",
    "RegistrarDisconnected",
    "RegistrarError",
    "RegistrarInfo",
    "Resolver",
    "Route",
    "SettingsError",
    "SettingsProblem",
    "State",
    "Stats",
    "Subscription",
    "TakenError",
    "TerminatedError",
    "UnknownItemError",
    "UnsupportedError",
    "ValidationError",
    "Value",
    "Version",
    "WaitTimeoutError",
]

# Where the names come from, what needs little first: who asks for `Options` alone need not wait for gRPC.
_HOMES = (
    *("errors", "routes", "events", "core.keys", "core.config", "core.session", "options", "health", "stats"),
    *("subscription", "settings", "registrar"),
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for home in _HOMES:
            found = vars(import_module(f"{__name__}.{home}"))
            if name in found:
                globals()[name] = found[name]  # the next time nobody asks here
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
