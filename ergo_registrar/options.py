"""How a registrar is set up: `Options` and `TLS`, frozen, checked once, secrets hidden."""

import dataclasses
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

from ergo_registrar.core.keys import check_name
from ergo_registrar.errors import ValidationError
from ergo_registrar.routes import ApplicationRouteLayout

_ENVIRONMENT_PREFIX = "ERGO_REGISTRAR_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TLS:
    """How to prove etcd, and oneself to etcd. All are paths to PEM files, read at every new connection.

    Without `ca`, the roots that gRPC carries are trusted. `cert` and `key` belong together and make it mutual.
    `server_name` is the name to expect in etcd's certificate, where it is not the one in the endpoint.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            missing = "tls.key" if self.key is None else "tls.cert"
            raise ValidationError(missing, None, "must be given together with its other half, cert and key")
        for field in ("ca", "cert", "key"):
            path = getattr(self, field)
            if path is not None and not isinstance(path, str | Path):
                raise ValidationError(f"tls.{field}", path, "must be the path of a PEM file")
        name: object = self.server_name
        if name is not None and (not isinstance(name, str) or not name):
            raise ValidationError("tls.server_name", name, "must be a host name")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Everything that sets up a `Registrar`. Times are in seconds. A wrong value is a `ValidationError` at once.

    - `cluster`: who can see each other. `endpoints`: etcd's, `HOST:PORT` each; the first that answers is used, the
      next one when it stops answering. An `https://` in front switches TLS on, as `tls` does.
    - `username`, `password`: for etcd's own authentication; both or neither.
    - `insecure_skip_verify`: TLS to whoever answers first, without proof of who that is. It warns.
    - `dial_timeout`: to reach etcd at the start. `request_timeout`: for any one call. `keep_alive`: between two pings
      of an idle connection, at least 5 (etcd answers faster ones by hanging up). `close_timeout`: for `close()`.
    - `lease_ttl`: how long others see this node after it died, whole seconds; etcd may grant more.
    - `suspect_grace`: how long a node that vanished without good-bye is still resolved, 0 for not at all.
    - `claim_timeout`: how long `register` waits for a taken name to become free, 0 for not at all.
    - `application_route_layout`: the fields to write; all are always read.
    """

    cluster: str = "default"
    endpoints: tuple[str, ...] = ("localhost:2379",)
    username: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    tls: TLS | None = None
    insecure_skip_verify: bool = False
    dial_timeout: float = 10.0
    request_timeout: float = 10.0
    keep_alive: float = 10.0
    lease_ttl: float = 10.0
    suspect_grace: float = 0.0
    claim_timeout: float = 0.0
    close_timeout: float = 5.0
    application_route_layout: ApplicationRouteLayout = "v3.1"

    def __post_init__(self) -> None:
        check_name("cluster", self.cluster)
        object.__setattr__(self, "endpoints", _checked_endpoints(self.endpoints))
        _check_credentials(self.username, self.password)
        if self.tls is not None and not isinstance(self.tls, TLS):
            raise ValidationError("tls", self.tls, "must be a TLS or None")
        if not isinstance(self.insecure_skip_verify, bool):
            raise ValidationError("insecure_skip_verify", self.insecure_skip_verify, "must be True or False")
        if self.insecure_skip_verify:
            warnings.warn("insecure_skip_verify: whoever answers first is trusted to be etcd", stacklevel=3)
        for field, least in _LEAST_SECONDS.items():
            check_seconds(field, getattr(self, field), least)
        if self.lease_ttl != int(self.lease_ttl):
            raise ValidationError("lease_ttl", self.lease_ttl, "must be whole seconds, as etcd counts")
        if self.application_route_layout not in get_args(ApplicationRouteLayout):
            layouts = ", ".join(map(repr, get_args(ApplicationRouteLayout)))
            raise ValidationError(
                "application_route_layout", self.application_route_layout, f"must be one of {layouts}"
            )

    @property
    def secure(self) -> bool:
        """Whether to speak TLS: asked for by `tls`, `insecure_skip_verify`, or an `https://` endpoint."""
        return (
            self.tls is not None or self.insecure_skip_verify or any(e.startswith("https://") for e in self.endpoints)
        )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """Return options read from `ERGO_REGISTRAR_*`, each named as the field in upper case.

        `ERGO_REGISTRAR_ENDPOINTS` is separated by commas; booleans are 1, true, yes or 0, false, no;
        `ERGO_REGISTRAR_TLS_CA`, `_TLS_CERT`, `_TLS_KEY` and `_TLS_SERVER_NAME` make up `tls`. An empty variable counts
        as unset. `overrides` win. An unknown or malformed variable is a `ValidationError` that names it.
        """
        given: dict[str, Any] = {}
        tls: dict[str, str] = {}
        for variable, text in environ.items():
            if not variable.startswith(_ENVIRONMENT_PREFIX) or not text:
                continue
            field = variable.removeprefix(_ENVIRONMENT_PREFIX).lower()
            if variable in _OTHER_VARIABLES:
                continue
            if field.startswith("tls_") and field.removeprefix("tls_") in _TLS_FIELDS:
                tls[field.removeprefix("tls_")] = text
            elif field in _READERS:
                given[field] = _READERS[field](variable, text)
            else:
                known = ", ".join(sorted(f"{_ENVIRONMENT_PREFIX}{name.upper()}" for name in _READERS))
                # What it holds may be a secret under a wrong name.
                raise ValidationError(variable, "(hidden)", f"is not a variable of this package; known are {known}")
        if tls:
            given["tls"] = TLS(**tls)
        return cls(**(given | overrides))


_OTHER_VARIABLES = {"ERGO_REGISTRAR_ETCD", "ERGO_REGISTRAR_TEST_ETCD"}  # of LocalEtcd and of the pytest plugin
_TLS_FIELDS = {field.name for field in dataclasses.fields(TLS)}
_LEAST_SECONDS = {  # seconds; None: more than zero
    "dial_timeout": None,
    "request_timeout": None,
    "keep_alive": 5.0,
    "lease_ttl": 1.0,
    "suspect_grace": 0.0,
    "claim_timeout": 0.0,
    "close_timeout": None,
}
_MOST_SECONDS = 1_000_000.0  # gRPC counts milliseconds in 32 bits; nobody waits longer than that


_ENDPOINT = re.compile(r"(?:https?://)?(?:\[[0-9a-fA-F:.%]+\]|[^\s/,:@\[\]\x00-\x1f\ud800-\udfff]+):([0-9]{1,5})")


def check_seconds(field: str, value: object, least: float | None) -> None:
    """Raise `ValidationError` unless `value` is a time to wait, of at least so much; None: of more than nothing."""
    rule = "must be more than 0 seconds" if least is None else f"must be at least {least:g} seconds"
    if not isinstance(value, int | float) or isinstance(value, bool) or not value <= _MOST_SECONDS:
        raise ValidationError(field, value, f"{rule} and at most {_MOST_SECONDS:g}")
    if value <= 0 if least is None else value < least:
        raise ValidationError(field, value, rule)


def _checked_endpoints(endpoints: object) -> tuple[str, ...]:
    rule = "must be one or more of HOST:PORT, such as ('localhost:2379',)"
    if isinstance(endpoints, str) or not isinstance(endpoints, tuple | list) or not endpoints:
        raise ValidationError("endpoints", endpoints, rule)
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            raise ValidationError("endpoints", endpoint, rule)
        if "@" in endpoint:
            raise ValidationError("endpoints", "(hidden)", f"{rule}; a login goes into username and password")
        match = _ENDPOINT.fullmatch(endpoint)
        if match is None or not 0 < int(match[1]) <= 65535:
            raise ValidationError("endpoints", endpoint, rule)
    if len({endpoint.startswith("https://") for endpoint in endpoints}) > 1:
        raise ValidationError("endpoints", endpoints, "must all be https:// or none")
    return tuple(endpoints)


def _check_credentials(username: object, password: object) -> None:
    if (username is None) != (password is None):
        missing = "password" if password is None else "username"
        raise ValidationError(missing, None, "must be given together with its other half, username and password")
    if username is not None and (not _is_utf8(username) or not username):
        raise ValidationError("username", username, "must be a non-empty string that UTF-8 can hold")
    if password is not None and not _is_utf8(password):
        raise ValidationError("password", "(hidden)", "must be a string that UTF-8 can hold")


def _is_utf8(text: object) -> bool:
    return isinstance(text, str) and not any("\ud800" <= c <= "\udfff" for c in text)


def _read_text(variable: str, text: str) -> str:
    return text


def _read_number(variable: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValidationError(variable, text, "must be a number of seconds") from None


def _read_bool(variable: str, text: str) -> bool:
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise ValidationError(variable, text, "must be 1, true, yes or 0, false, no")


def _read_endpoints(variable: str, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


_READERS: dict[str, Callable[[str, str], Any]] = {
    "cluster": _read_text,
    "endpoints": _read_endpoints,
    "username": _read_text,
    "password": _read_text,
    "insecure_skip_verify": _read_bool,
    "application_route_layout": _read_text,
    **dict.fromkeys(_LEAST_SECONDS, _read_number),
}
