"""An asyncio-native service registrar on etcd, for clusters of Ergo Framework nodes and Python services."""

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
]
