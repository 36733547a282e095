"""The options that every command has which talks to etcd, and `--json`."""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import msgspec
import typer

from ergo_registrar import TLS, Options
from ergo_registrar.cli.output import complain
from ergo_registrar.errors import ValidationError

_PANEL = "Where etcd is (or in the environment: ERGO_REGISTRAR_ENDPOINTS, ...)"

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON instead: one document, or one a line where there is no end.")
]

SuspectGrace = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Seconds that a node which vanished without good-bye is a suspect before it counts as gone.",
        show_default="0",
    ),
]


def _option(name: str, help_text: str, **how: Any) -> Any:
    """Return a flag. `Options.from_env` reads its variable; that of a part of TLS is read here, to be merged."""
    variable = f"ERGO_REGISTRAR_{name.upper()}" if name.startswith("tls_") else None
    flags = [f"--{name.replace('_', '-')}", *how.pop("short", ())]
    return typer.Option(*flags, envvar=variable, show_envvar=False, help=help_text, rich_help_panel=_PANEL, **how)


def _connection(
    endpoints: Annotated[
        str | None,
        _option("endpoints", "HOST:PORT, several with commas.", short=["-e"], show_default="localhost:2379"),
    ] = None,
    cluster: Annotated[
        str | None, _option("cluster", "Whose nodes to look at.", short=["-c"], show_default="default")
    ] = None,
    username: Annotated[str | None, _option("username", "For etcd's own authentication.")] = None,
    password: Annotated[
        str | None, _option("password", "Its password; in the variable, other processes cannot see it.")
    ] = None,
    tls_ca: Annotated[str | None, _option("tls_ca", "A PEM file of the CA to trust; switches TLS on.")] = None,
    tls_cert: Annotated[str | None, _option("tls_cert", "A PEM file, for mutual TLS.")] = None,
    tls_key: Annotated[str | None, _option("tls_key", "Its key.")] = None,
    tls_server_name: Annotated[str | None, _option("tls_server_name", "The name to expect in the certificate.")] = None,
    insecure_skip_verify: Annotated[
        bool, _option("insecure_skip_verify", "TLS to whoever answers. Not safe.", show_default=False)
    ] = False,
    request_timeout: Annotated[
        float | None, _option("request_timeout", "Seconds for any one call.", show_default="10", min=0.1)
    ] = None,
) -> Options:
    """Return the options that flags and environment make together; the flags win."""
    given: dict[str, Any] = {
        "cluster": cluster,
        "endpoints": None if endpoints is None else tuple(part.strip() for part in endpoints.split(",")),
        "username": username,
        "password": password,
        "insecure_skip_verify": insecure_skip_verify or None,
        "request_timeout": request_timeout,
        "dial_timeout": request_timeout,
    }
    try:
        if any((tls_ca, tls_cert, tls_key, tls_server_name)):
            given["tls"] = TLS(ca=tls_ca, cert=tls_cert, key=tls_key, server_name=tls_server_name)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            options = Options.from_env(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise typer.BadParameter(str(error)) from None
    for warning in warned:
        complain(str(warning.message))
    return options


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, whose first parameter is `options: Options`, the flags that make it."""
    own = inspect.signature(command)
    flags = inspect.signature(_connection)
    hints = get_type_hints(command, include_extras=True) | get_type_hints(_connection, include_extras=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = _connection(**{name: given.pop(name) for name in flags.parameters})
        command(options, **given)

    parameters = [p for name, p in own.parameters.items() if name != "options"] + list(flags.parameters.values())
    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = own.replace(
        parameters=[p.replace(kind=keyword, annotation=hints[p.name]) for p in parameters], return_annotation=None
    )
    vars(run).update(__signature__=signature, __annotations__={p: hints[p] for p in signature.parameters})
    return run


def with_grace(options: Options, suspect_grace: float | None) -> Options:
    """Return the options, with this grace if one is given."""
    return options if suspect_grace is None else dataclasses.replace(options, suspect_grace=suspect_grace)


def print_json(value: object) -> None:
    """Print one JSON document, on one line."""
    print(msgspec.json.encode(value, order="sorted").decode(), flush=True)
